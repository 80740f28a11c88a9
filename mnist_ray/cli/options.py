"""Options that the launcher's commands share."""

import functools
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from mnist_ray.cli.code import code_words
from mnist_ray.cli.help import Choice, option
from mnist_ray.config.placement import Placement
from mnist_ray.config.settings import TrainConfig
from mnist_ray.data.datasets import DATASETS
from mnist_ray.storage.storage import open_storage
from mnist_ray.text.escape import say_line
from mnist_ray.tracking.logged import TRACKERS

DATASET_HELP = f"{', '.join(DATASETS)}, or your own: idx:FOLDER, folder:URI, parquet:URI."

# Parameters of train and tune that the shipped job.yaml replaces.
IN_JOB_YAML: Mapping[str, None] = dict.fromkeys([*TrainConfig.model_fields, "overrides"])


@dataclass(frozen=True)
class ClusterOptions:
    """Values of the options that cluster_options adds.

    Attributes:
      address: the option as given; see cluster_to_submit_to.
      placement: where the workers run.
    """

    address: str | None
    placement: Placement


def cluster_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options for where a job runs; the command gets them as one argument, cluster."""

    @functools.wraps(command)
    def with_cluster(
        *arguments: Any,
        address: str | None,
        no_wait: bool,  # noqa: ARG001  (cli/submission.py reads these two from Click's context)
        pip: bool,  # noqa: ARG001
        device: str | None,
        resource_timeout: float,
        shared_storage: bool,
        **named: Any,
    ) -> None:
        placement = Placement(None if device is None else device == "gpu", resource_timeout, shared_storage)
        command(*arguments, cluster=ClusterOptions(address, placement), **named)

    decorated: Callable[..., None] = with_cluster
    for add_option in reversed(_cluster_options):
        decorated = add_option(decorated)
    return decorated


class FiniteRange(click.FloatRange):
    """A finite number in a range; click's takes NaN, which is below and above nothing."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See click.ParamType."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


storage_option = option(
    "--storage",
    group="Output",
    default="results",
    show_default=True,
    metavar="URI",
    help="Folder or s3://bucket/prefix of all results.",
)
data_dir_option = option(
    "--data-dir",
    group="Data",
    metavar="FOLDER",
    help="Folder of the data sets; downloads go there too.  [default: $MNIST_RAY_DATA, or the user's cache folder]",
)


def address_option(what: str, *, otherwise: str) -> Callable[[Callable[..., Any]], Any]:
    """Returns the option --address.

    Args:
      what: what the command does with the cluster.
      otherwise: what it does without one.
    """
    return option(
        "--address",
        group="Where it runs",
        metavar="ADDRESS",
        help=f"{what}: http://HOST:8265 (its dashboard), HOST:6379 (its GCS), or auto, the Ray on this machine.  "
        f"[default: $RAY_API_SERVER_ADDRESS or $RAY_ADDRESS, or else {otherwise}]",
    )


_cluster_options = (
    address_option(
        "Submit the command as a job to this Ray cluster, show its log and exit with its code",
        otherwise="local: run here. A job on a cluster runs the command there",
    ),
    option(
        "--no-wait",
        group="Where it runs",
        is_flag=True,
        help="With --address: print the job's id and don't follow its log.",
    ),
    option(
        "--pip",
        group="Where it runs",
        is_flag=True,
        help="With --address: install mnist-ray's dependencies on the cluster for this job.",
    ),
    option(
        "--device",
        group="Where it runs",
        type=Choice(["cpu", "gpu"]),
        help="Device of each worker; with gpu, each has one.  [default: gpu if there are enough]",
    ),
    # Its older form.
    option("--use-gpu", "device", group="Where it runs", flag_value="gpu", hidden=True, help="Like --device gpu."),
    option("--no-use-gpu", "device", group="Where it runs", flag_value="cpu", hidden=True, help="Like --device cpu."),
    option(
        "--resource-timeout",
        group="Where it runs",
        type=FiniteRange(min=0),
        default=Placement.resource_timeout_s,
        show_default=True,
        metavar="SECONDS",
        help="How long a job on a cluster waits for CPUs or GPUs that are not there yet or were lost.",
    ),
    option(
        "--shared-storage",
        group="Where it runs",
        is_flag=True,
        help="The storage is a local folder that is the same on all nodes of a cluster.",
    ),
)
as_json_option = option("--json", "as_json", group="Output", is_flag=True, help="Print JSON, for scripts.")
DEFAULT_MARGIN = 0.5
MARGIN_TYPE = FiniteRange(min=0, max=100, min_open=True)
margin_option = option(
    "--margin",
    group="Output",
    type=MARGIN_TYPE,
    default=DEFAULT_MARGIN,
    show_default=True,
    metavar="POINTS",
    help="Differences of accuracy up to this many points don't matter; smaller ones are equivalent.",
)
log_option = option(
    "--log",
    "log",
    group="Output",
    multiple=True,
    type=Choice(TRACKERS),
    help="Also log the runs to a tracker; may be repeated. tensorboard: into STORAGE/tensorboard; mlflow: to "
    "$MLFLOW_TRACKING_URI, or into STORAGE/mlflow. Both are extras: pip install 'mnist-ray[tensorboard,mlflow]'.",
)


num_workers_option = option(
    "--num-workers",
    group="Where it runs",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    show_default=True,
    help="Processes that share the work.",
)


def print_trackers(log: Sequence[str], storage: str) -> None:
    """Prints how to view the trackers' logs."""
    if log:
        from mnist_ray.tracking.trackers import how_to_look

        for command in how_to_look(log, open_storage(storage)):
            click.echo(f"look: {command}")


def say_next(*parts: str, data_dir: str | None) -> None:
    """Prints the launcher command to type next."""
    data_option = ["--data-dir", data_dir] if data_dir else []
    click.echo(f"next: {shlex.join(['mnist-ray', *parts, *data_option, *code_words()])}")


def say(message: str, code: int) -> int:
    """Prints a line on stderr and returns the exit code."""
    say_line(f"mnist-ray: {message}")
    return code
