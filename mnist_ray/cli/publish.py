"""The command that makes tables of a lakehouse: publish."""

from collections import Counter

import click

from mnist_ray.cli.help import Choice
from mnist_ray.cli.options import storage_option
from mnist_ray.storage.storage import open_storage
from mnist_ray.text.escape import printable, say_line


@click.command()
@click.option("--to", "kind", type=Choice(["iceberg", "delta"]), required=True, help="Kind of the tables.")
@click.option(
    "--catalog",
    metavar="NAME",
    help="Catalog of ~/.pyiceberg.yaml, for Iceberg.  [default: an SQLite file in the storage]",
)
@click.option(
    "--namespace", metavar="NAME", help="Namespace of the Iceberg tables; holds one storage.  [default: mnist_ray]"
)
@storage_option
def publish(kind: str, catalog: str | None, namespace: str | None, storage: str) -> None:
    """Makes Iceberg or Delta tables of all evaluations, without copying their files.

    Run it again after each evaluation: it adds what is missing, and removes the evaluations that are no longer in the
    storage. docs/lakehouse.md says how to read the tables. Needs pip install 'mnist-ray[lake]'.
    """
    if kind == "delta" and (catalog or namespace):
        raise click.UsageError("--catalog and --namespace are for --to iceberg")
    place = open_storage(storage)
    # The changes are printed one by one, so no row may move below them.
    say_line(f"reading the evaluations in {place.uri}")
    from mnist_ray.lake.delta import DeltaLake
    from mnist_ray.lake.iceberg import NAMESPACE, IcebergLake
    from mnist_ray.lake.publish import publish as publish_to

    lake = (
        DeltaLake(place) if kind == "delta" else IcebergLake(place, catalog=catalog, namespace=namespace or NAMESPACE)
    )
    counts: Counter[str] = Counter()
    for change in publish_to(place, lake):
        counts[change.what] += 1
        if change.what != "kept":
            click.echo(f"{change.what} {printable(change.evaluation)}")
    if not counts:
        click.echo(f"no evaluations in {storage}")
        return
    words = [f"{counts[what]} {what}" for what in ("added", "replaced", "removed", "kept") if counts[what]]
    click.echo(f"{kind} in {printable(lake.where)}: evaluations: {', '.join(words)}")
