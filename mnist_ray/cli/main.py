"""The launcher: options -> config -> one call. Imports neither torch nor ray until a command needs them."""

import os
from collections.abc import Sequence
from typing import Any

import click

import mnist_ray
from mnist_ray.cli.completion import completion
from mnist_ray.cli.copying import cp
from mnist_ray.cli.evaluate import evaluate
from mnist_ray.cli.export import export
from mnist_ray.cli.grids import grids
from mnist_ray.cli.help import Group, no_such_option
from mnist_ray.cli.jobs import jobs
from mnist_ray.cli.lists import evaluations, runs
from mnist_ray.cli.options import address_option, data_dir_option, say, storage_option
from mnist_ray.cli.plan import plan
from mnist_ray.cli.predict import predict
from mnist_ray.cli.publish import publish
from mnist_ray.cli.query import query
from mnist_ray.cli.removal import prune, rm
from mnist_ray.cli.reports import compare, report
from mnist_ray.cli.reproduce import reproduce
from mnist_ray.cli.show import show
from mnist_ray.cli.storage import storage
from mnist_ray.cli.tables import tables
from mnist_ray.cli.train import train
from mnist_ray.cli.tune import tune
from mnist_ray.data.datasets import data_folder
from mnist_ray.errors import MnistRayError, RunFailedError
from mnist_ray.interruption import Stop, last_stop, stoppable
from mnist_ray.text.doing import at_work
from mnist_ray.text.escape import printable_log

# What the same command does when it is run again after a stop.
_GOES_ON = {
    "train": "goes on",
    "tune": "goes on",
    "demo": "goes on",
    "rm": "goes on",
    "prune": "goes on",
    "cp": "goes on",
}


class _Stopped(Exception):
    """A stop for which Click doesn't print an empty line."""


class _Launcher(Group):
    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (KeyboardInterrupt, click.Abort):
            raise _Stopped from None


@click.group(cls=_Launcher, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(mnist_ray.__version__, prog_name="mnist-ray")
@click.pass_context
def cli(context: click.Context) -> None:
    """Trains regularized variants of an image classifier on Ray, evaluates them, and writes Parquet tables.

    Start with `mnist-ray demo`. Exit codes: 0 done, 1 a bug, 2 usage or config, 3 data or checkpoint, 4 storage,
    5 cluster or token, 6 conflict, 7 the run failed, 129/130/143 stopped by a signal.
    """
    context.ensure_object(dict)


@click.command()
@storage_option
@click.option("--epochs", type=click.IntRange(min=1), default=10, show_default=True, help="Epochs of each run.")
@click.option("--seeds", type=click.IntRange(min=1), default=2, show_default=True, help="Runs of each variant.")
def demo(storage: str, epochs: int, seeds: int) -> None:
    """Trains and evaluates three variants on scikit-learn's digits, offline, in minutes."""
    with at_work("training three variants on digits, then evaluating them"):
        # torch takes seconds to import.
        from mnist_ray.cli.demo import print_demo, run_demo

        ran = run_demo(storage, epochs=epochs, seeds=seeds)
    print_demo(*ran, storage)


@click.command()
@storage_option
@data_dir_option
@address_option("Check this Ray cluster too", otherwise="none")
@click.pass_context
def doctor(context: click.Context, storage: str, data_dir: str | None, address: str | None) -> None:
    """Checks what works here and says how to fix the rest.

    That is Python, torch, GPU, Ray, data, storage and cluster. Exits with the code of the first check that fails.
    """
    from mnist_ray.cli.doctor import examine
    from mnist_ray.submission.address import resolve_address

    context.exit(examine(storage, data_folder(data_dir), resolve_address(address, os.environ)))


cli.add_commands("Train and evaluate", (demo, train, tune, plan, evaluate, predict, reproduce))
cli.add_commands("Look", (runs, show, grids, evaluations, report, compare, query, tables))
cli.add_commands("Storage and other programs", (rm, prune, cp, storage, export, publish))
cli.add_commands("This machine and clusters", (doctor, jobs, completion))


def run_command(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code; prints every error that a user can cause as one line."""
    with stoppable():
        try:
            result = cli.main(list(arguments), prog_name="mnist-ray", standalone_mode=False)
        except MnistRayError as error:
            say(f"error: {error}", error.exit_code)
            for note in getattr(error, "__notes__", ()):
                click.echo(printable_log(note), err=True)
            return error.exit_code
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message(), err=True)
            return 2
        except click.ClickException as error:
            message = no_such_option(error) if isinstance(error, click.NoSuchOption) else error.format_message()
            where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "mnist-ray"
            # Click prints choices on several lines.
            return say(f"error: {' '.join(message.split())} (see `{where} --help`)", 2)
        except (_Stopped, click.Abort, KeyboardInterrupt):
            return _say_stop(arguments)
        except Exception:
            # An interrupted import can cause any error later.
            if last_stop():
                return _say_stop(arguments)
            raise
    return result if isinstance(result, int) else 0


def _say_stop(arguments: Sequence[str]) -> int:
    stop = last_stop() or Stop(130, "stopped")
    if stop.code == RunFailedError.exit_code:
        return say(f"error: {stop.reason}", stop.code)
    return say(f"{stop.reason}; the same command {_GOES_ON.get(arguments[0], 'starts again')}", stop.code)
