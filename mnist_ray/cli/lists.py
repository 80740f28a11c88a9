"""The commands that list a storage's contents: runs and evaluations."""

import click

from mnist_ray.cli.options import as_json_option, storage_option


@click.command()
@storage_option
@as_json_option
def runs(storage: str, as_json: bool) -> None:
    """Lists the runs in a storage."""
    from mnist_ray.results.listing import list_runs
    from mnist_ray.text.tables import print_rows

    print_rows(list_runs(storage), as_json=as_json, empty=f"no runs in {storage}")


@click.command()
@storage_option
@as_json_option
def evaluations(storage: str, as_json: bool) -> None:
    """Lists the committed evaluations in a storage."""
    from mnist_ray.results.listing import list_evaluations
    from mnist_ray.text.tables import print_rows

    print_rows(list_evaluations(storage), as_json=as_json, empty=f"no evaluations in {storage}")
