"""The command that checks a run's reproducibility: reproduce."""

import json
from typing import Any

import click

from mnist_ray.cli.code import code_options
from mnist_ray.cli.completion import complete_run
from mnist_ray.cli.options import as_json_option, data_dir_option, storage_option
from mnist_ray.config.names import check_name
from mnist_ray.data.datasets import data_folder
from mnist_ray.errors import RunFailedError
from mnist_ray.text.doing import at_work


@click.command()
@click.argument("run", shell_complete=complete_run)
@storage_option
@data_dir_option
@click.option(
    "--num-workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes that share the work.  [default: the run's]",
)
@code_options
@as_json_option
def reproduce(run: str, storage: str, data_dir: str | None, num_workers: int | None, as_json: bool) -> None:
    """Trains a run again on this machine and says whether the results are equal.

    The run itself is only read. Equal means every weight of the best checkpoint and every number of the history, bit
    for bit (exit code 0). This is guaranteed for the same versions, hardware and number of workers. If any of these
    differ, differences within the noise of the validation accuracy also exit with 0 and are printed. Any other outcome
    exits with 7.
    """
    with at_work(f"reading run {check_name(run, 'run')}"):
        # torch takes seconds to import.
        from mnist_ray.jobs.reproduce import reproduce as train_again

        done = train_again(run, storage, data_folder(data_dir), num_workers=num_workers)
    if as_json:
        click.echo(json.dumps(done.as_dict()))
    else:
        for line in _lines(done):
            click.echo(line)
    if done.result == "different":
        reason = "more than the noise of the validation accuracy" if done.changes else "though nothing has changed"
        raise RunFailedError(f"run {run!r}: did not come out equal, {reason}")


def _lines(done: Any) -> list[str]:
    """Describes a results.reproduction.Reproduction."""
    epochs = f"{done.num_epochs} epochs, best {done.best_epoch}"
    if done.result == "equal":
        lines = [f"{done.run}: equal, bit for bit: all weights of the best checkpoint and the history ({epochs})"]
    else:
        verdict = "not bit for bit, but equal within the noise" if done.result == "close" else "not equal"
        lines = [
            f"{done.run}: {verdict} ({epochs}; again {done.num_epochs_again} epochs, best {done.best_epoch_again})",
            f"best validation accuracy: {done.best_val_accuracy_difference:+.4f} (noise: {done.noise:.4f})",
            f"largest difference of a weight: {done.weight_difference:.2g}",
            f"largest difference of an epoch's validation loss: {done.val_loss_difference:.2g}",
            f"largest difference of an epoch's validation accuracy: {done.val_accuracy_difference:.2g}",
        ]
    lines += [f"{change.what}: {_shown(change.then)} then, {_shown(change.now)} now" for change in done.changes]
    return lines


def _shown(value: object) -> str:
    return "none" if value is None else str(value)
