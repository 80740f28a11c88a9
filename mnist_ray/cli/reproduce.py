"""The command that holds a run to its promise: reproduce."""

import json
from typing import Any

import click

from mnist_ray.cli.options import as_json_option, data_dir_option, data_folder, storage_option
from mnist_ray.config.settings import check_name
from mnist_ray.errors import RunFailedError


@click.command()
@click.argument("run")
@storage_option
@data_dir_option
@click.option(
    "--num-workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes that share the work.  [default: the run's]",
)
@as_json_option
def reproduce(run: str, storage: str, data_dir: str | None, num_workers: int | None, as_json: bool) -> None:
    """Trains a run again, on this machine, and says whether it came out equal; the run itself is only read.

    Equal means every weight of its best checkpoint and every number of its history, bit for bit. That is promised for
    the same versions, hardware and number of workers, and ends with 0. With others, differences as large as the noise
    of the validation accuracy end with 0 too; what differs is printed. Any other outcome ends with 7.
    """
    from mnist_ray.jobs.reproduce import reproduce as train_again

    found = train_again(check_name(run, "run"), storage, data_folder(data_dir), num_workers=num_workers)
    if as_json:
        click.echo(json.dumps(found.as_dict()))
    else:
        for line in _lines(found):
            click.echo(line)
    if found.result == "different":
        reason = "more than the noise of the validation accuracy" if found.changes else "though nothing has changed"
        raise RunFailedError(f"run {run!r}: did not come out equal, {reason}")


def _lines(found: Any) -> list[str]:
    """Returns a reproduction.Reproduction in words."""
    epochs = f"{found.num_epochs} epochs, best {found.best_epoch}"
    if found.result == "equal":
        lines = [f"{found.run}: equal, bit for bit: all weights of the best checkpoint and the history ({epochs})"]
    else:
        verdict = "not bit for bit, but equal within the noise" if found.result == "close" else "not equal"
        lines = [
            f"{found.run}: {verdict} ({epochs}; again {found.num_epochs_again} epochs, best {found.best_epoch_again})",
            f"best validation accuracy: {found.best_val_accuracy_difference:+.4f} (noise: {found.noise:.4f})",
            f"largest difference of a weight: {found.weight_difference:.2g}",
            f"largest of an epoch's validation loss: {found.val_loss_difference:.2g}",
            f"largest of an epoch's validation accuracy: {found.val_accuracy_difference:.2g}",
        ]
    lines += [f"{change.what}: {_shown(change.then)} then, {_shown(change.now)} now" for change in found.changes]
    return lines


def _shown(value: object) -> str:
    return "none" if value is None else str(value)
