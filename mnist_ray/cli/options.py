"""Options that the launcher's commands share, and the submission of jobs."""

import functools
import hashlib
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from mnist_ray.cli.code import code_words
from mnist_ray.cli.help import Choice, option
from mnist_ray.config.own_code import given_code, shipped
from mnist_ray.config.placement import Placement
from mnist_ray.config.requirements import JOB_VARIABLE
from mnist_ray.config.settings import TrainConfig
from mnist_ray.data.datasets import DATASETS
from mnist_ray.errors import ConfigError
from mnist_ray.interruption import Stop
from mnist_ray.results.lineage import LAUNCHER_VARIABLE, command_line
from mnist_ray.storage.storage import check_uri, open_storage
from mnist_ray.text.escape import say_line

DATASET_HELP = f"{', '.join(DATASETS)}, or your own: idx:FOLDER, folder:URI, parquet:URI."

# One slash is enough: check_uri reports a missing second one.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")

# Options that only the launcher uses; a submitted job doesn't get them.
_STAY_HERE = {"address", "code", "no_wait", "pip", "as_json"}
# Parameters of train and tune that the shipped job.yaml replaces.
IN_JOB_YAML: Mapping[str, None] = dict.fromkeys([*TrainConfig.model_fields, "overrides"])


@dataclass(frozen=True)
class ClusterOptions:
    """Values of the options that cluster_options adds.

    Attributes:
      address: the option as given; see target_cluster.
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
        no_wait: bool,  # noqa: ARG001  (submit_job reads these two from Click's context)
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
address_option = option(
    "--address",
    group="Where it runs",
    metavar="URL",
    help="Submit to the Ray cluster with this job API, such as http://127.0.0.1:8265.  "
    "[default: $RAY_API_SERVER_ADDRESS or $RAY_ADDRESS, or else this machine]",
)
_cluster_options = (
    address_option,
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
    type=Choice(["tensorboard", "mlflow"]),
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


def absolute_dataset(dataset: str) -> str:
    """Makes the path of the user's own data set absolute: Ray's workers run in other folders."""
    kind, _, place = dataset.partition(":")
    return dataset if not place or _SCHEME.match(place) else f"{kind}:{_expanded(place).absolute()}"


def target_cluster(option: str | None) -> str | None:
    """Returns the job API to submit to, or None to run here; a job on a cluster never submits another."""
    from mnist_ray.submission.address import resolve_address

    return None if JOB_VARIABLE in os.environ else resolve_address(option, os.environ)


def needed_cluster(option: str | None) -> str:
    """Returns the job API for a command that needs a cluster."""
    target = target_cluster(option)
    if target is None:
        raise click.UsageError("--address: which cluster? Give --address URL or set RAY_API_SERVER_ADDRESS")
    return target


def forwarded(context: click.Context, replace: Mapping[str, Any]) -> list[str]:
    """Returns the arguments, defaults included, with which a job does what this command was asked to do.

    Args:
      context: of the command that runs here; options about the submission itself are left out.
      replace: parameter name -> the job's own value; None leaves the option out.
    """
    values = {**context.params, **replace}
    # Hidden options are other forms of visible ones.
    options = [each for each in context.command.params if isinstance(each, click.Option) and not each.hidden]
    return [part for each in options if each.name not in _STAY_HERE for part in _typed(each, values[each.name])]


def _typed(option: click.Option, value: Any) -> list[str]:
    """Returns an option as typed on a command line."""
    if value is None:
        return []
    if option.is_flag:
        return (option.opts if value else option.secondary_opts)[:1]
    return [part for each in (value if option.multiple else [value]) for part in (option.opts[0], str(each))]


def submit_job(
    target: str,
    context: click.Context,
    replace: Mapping[str, Any],
    *,
    name: str,
    num_workers: int,
    is_unique: bool = True,
    config_yaml: str | None = None,
) -> None:
    """Submits the command that runs here as a job, prints its id and, unless --no-wait is given, follows it.

    If the same job is already running, follows it and submits nothing.

    Args:
      target: the job API.
      context: of the command; jobs/ has a script of its name.
      replace: see `forwarded`; the storage is replaced here.
      name: of the job's result; with the storage it makes the job's id.
      num_workers: workers that must fit into the cluster at once.
      is_unique: whether only one job of that name may run at a time; if not, the id includes a hash of the request.
      config_yaml: text to ship as job.yaml.
    """
    from mnist_ray.submission import job_api
    from mnist_ray.submission import submit as submission

    given, uri = context.params, remote_storage(context.params["storage"])
    line = forwarded(context, {**replace, "storage": uri})
    codes = given_code()
    files, code_variable = shipped(codes)
    asked = digest(*line, config_yaml or "", *(code.sha256 for code in codes))
    named = name if is_unique else f"{name}-{asked[:8]}"
    client = job_api.connect(target)
    with submission.stage_working_dir(config_yaml, pip=given["pip"], files=files) as working_dir:
        submitted = submission.submit(
            client,
            script=str(context.command.name),
            arguments=line,
            working_dir=working_dir,
            name=f"{context.command.name}-{named}-{digest(uri)[:8]}",
            metadata={"run": named, "asked": asked},
            resources={"GPU" if given["device"] == "gpu" else "CPU": num_workers},
            local_storage=uri if open_storage(uri).is_local and not given["shared_storage"] else None,
            variables={LAUNCHER_VARIABLE: command_line(), **code_variable},
            pip=given["pip"],
        )
    if not submitted.is_new:
        say(f"note: job {submitted.job_id} runs already; nothing was submitted", 0)
    if not given["as_json"]:
        click.echo(submitted.job_id)
    code, has_ended = (0, False) if given["no_wait"] else follow_job(client, submitted.job_id, target)
    if given["as_json"]:
        end = {"exit_code": code} if has_ended else {}
        click.echo(json.dumps({"job": submitted.job_id, "is_new": submitted.is_new, **end}))
    sys.exit(code)


def digest(*parts: str) -> str:
    """Returns the hexadecimal SHA-256 of several texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def follow_job(client: Any, job_id: str, target: str) -> tuple[int, bool]:
    """Shows a job's log until it ends; a signal leaves the job running.

    Returns:
      The exit code, and whether the job has ended with it.
    """
    from mnist_ray.submission.follow import follow, how_to_stop

    try:
        return follow(client, job_id, output=sys.stderr), True
    except Stop as stop:
        return say(how_to_stop(job_id, target), stop.code), False


def print_trackers(log: Sequence[str], storage: str) -> None:
    """Prints how to view the trackers' logs."""
    if log:
        from mnist_ray.tracking.trackers import how_to_look

        for command in how_to_look(log, open_storage(storage)):
            click.echo(f"look: {command}")


def remote_storage(storage: str) -> str:
    """Returns a storage's normalized URI for a job elsewhere, where a relative path would mean another folder.

    Raises:
      ConfigError: the URI breaks a rule; checked before submission, because everyone on the cluster can read it.
    """
    uri = check_uri(storage)
    if "://" not in storage and not Path(storage).is_absolute():
        raise click.UsageError(
            f"--storage {storage!r}: with --address give s3://..., or an absolute path that every node has"
        )
    return uri


def data_folder(option: str | None) -> Path:
    """Returns the folder of the data sets."""
    from mnist_ray.data.datasets import default_data_dir

    if option is None:
        return default_data_dir()
    if not option.strip():
        raise ConfigError(f"--data-dir {option!r}: give a folder")
    return _expanded(option).absolute()


def say_next(*parts: str, data_dir: str | None) -> None:
    """Prints the launcher command to type next."""
    data_option = ["--data-dir", data_dir] if data_dir else []
    click.echo(f"next: {shlex.join(['mnist-ray', *parts, *data_option, *code_words()])}")


def _expanded(path: str) -> Path:
    # A shell doesn't expand the '~' in --data-dir=~/x or folder:~/x; Path.expanduser raises for an unknown user.
    return Path(os.path.expanduser(path))


def say(message: str, code: int) -> int:
    """Prints a line on stderr and returns the exit code."""
    say_line(f"mnist-ray: {message}")
    return code
