"""The command for other programs: export."""

import json

import click

from mnist_ray.cli.code import code_options
from mnist_ray.cli.completion import complete_run
from mnist_ray.cli.help import Choice
from mnist_ray.cli.options import as_json_option, storage_option
from mnist_ray.config.names import check_name
from mnist_ray.text.doing import at_work

_FORMATS = ("state-dict", "safetensors", "onnx", "torch-export")


@click.command()
@click.argument("run", shell_complete=complete_run)
@click.option(
    "--to",
    "format_name",
    required=True,
    type=Choice(_FORMATS),
    help="state-dict and safetensors hold the weights, for normalized images; onnx (pip install 'mnist-ray[onnx]') and "
    "torch-export are whole programs for pixel values from 0 to 255.",
)
@click.option("--output", metavar="FILE", help="Local file or folder.  [default: RUN with the format's suffix]")
@click.option("--force", is_flag=True, help="Replace existing files.")
@storage_option
@code_options
@as_json_option
def export(run: str, format_name: str, output: str | None, force: bool, storage: str, as_json: bool) -> None:
    """Writes a run's best network for other programs, with a model card next to it."""
    with at_work(f"reading run {check_name(run, 'run')}"):
        # torch takes seconds to import.
        from mnist_ray.export.formats import export_run

        exported = export_run(storage, run, format_name=format_name, output=output, force=force)
    if as_json:
        files = {"file": str(exported.path), "card": str(exported.card), "sha256": exported.sha256}
        click.echo(json.dumps({"run": run, "format": format_name, **files}))
        return
    click.echo(f"{run} as {format_name}: {exported.path}; model card: {exported.card}")
