"""The command group for a storage itself: storage check."""

import json
from dataclasses import asdict

import click

from mnist_ray.cli.help import Group
from mnist_ray.cli.options import as_json_option
from mnist_ray.storage.storage import open_storage


@click.group(cls=Group)
def storage() -> None:
    """Checks a storage."""


@storage.command("check")
@click.argument("uri")
@as_json_option
def storage_check(uri: str, as_json: bool) -> None:
    """Proves that objects at URI, a folder or s3://bucket/prefix, can be written, read, listed and deleted.

    Also proves that a name can be created only once, which keeps two commits apart, and that S3 refuses objects damaged
    in transit. Every job runs the same checks first. Shows where credentials come from, never the credentials.
    """
    opened = open_storage(uri)
    if as_json:
        proofs = [asdict(proof) for proof in opened.prove()]
        click.echo(json.dumps({**opened.place(), "proofs": proofs}))
        return
    place = {name: value for name, value in opened.place().items() if value is not None}
    click.echo(f"storage {place.pop('storage')}: " + ", ".join(f"{name} {value}" for name, value in place.items()))
    for proof in opened.prove():
        click.echo(f"ok   {proof.capability:18} {proof.proof}")
