"""What the commands of the launcher share: options, and the way to a cluster."""

import os
import re
import shlex
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from mnist_ray.config import TrainConfig, parse_override, parse_value
from mnist_ray.errors import ConfigError
from mnist_ray.provenance import LAUNCHER_VARIABLE, command_line
from mnist_ray.storage import check_uri, open_storage

DATASET_HELP = (
    "mnist, fashion_mnist, kmnist, qmnist, emnist_balanced, emnist_letters, digits, or your own: idx:FOLDER, "
    "folder:URI, parquet:URI."
)

# One slash is enough: check_uri then tells of the second.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")

_Command = TypeVar("_Command", bound=Callable[..., None])


def config_options(*, without: Collection[str]) -> Callable[[_Command], _Command]:
    """Adds one option for every setting of TrainConfig; values stay text until the config checks them.

    Args:
      without: settings that the command offers in its own way.
    """

    def add(command: _Command) -> _Command:
        for name, field in reversed(TrainConfig.model_fields.items()):
            if name in without:
                continue
            default = "none" if field.default is None else _text(field.default)
            text = f"{field.description}  [default: {default}, or the variant's]"
            if field.annotation is bool:
                option = click.option(f"--{_dashed(name)}/--no-{_dashed(name)}", name, default=None, help=text)
            else:
                option = click.option(f"--{_dashed(name)}", name, metavar="VALUE", help=text)
            command = option(command)
        return command

    return add


def parse_settings(overrides: Sequence[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings that --set and the options of config_options give; an option wins over --set."""
    settings = dict(parse_override(text) for text in overrides)
    for name, value in options.items():
        if value is not None:
            settings[name] = value if TrainConfig.model_fields[name].annotation in (str, bool) else parse_value(value)
    if isinstance(settings.get("dataset"), str):
        settings["dataset"] = absolute_dataset(settings["dataset"])
    return settings


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


storage_option = click.option(
    "--storage",
    default="results",
    show_default=True,
    metavar="URI",
    help="Folder or s3://bucket/prefix of all results.",
)
data_dir_option = click.option(
    "--data-dir",
    metavar="FOLDER",
    help="Where data sets lie or are downloaded to.  [default: $MNIST_RAY_DATA, or the user's cache folder]",
)
address_option = click.option(
    "--address",
    metavar="URL",
    help="Submit to the Ray cluster with this job API, such as http://127.0.0.1:8265.  "
    "[default: $RAY_API_SERVER_ADDRESS or $RAY_ADDRESS; without, this machine]",
)
no_wait_option = click.option(
    "--no-wait", is_flag=True, help="With --address: print the job's id and don't follow its log."
)
as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
log_option = click.option(
    "--log",
    "log",
    multiple=True,
    type=click.Choice(["tensorboard", "mlflow"]),
    help="Write the runs to a tracker too; may be given for each. tensorboard: into STORAGE/tensorboard; mlflow: to "
    "$MLFLOW_TRACKING_URI, or into STORAGE/mlflow. Both are extras: pip install 'mnist-ray[tensorboard,mlflow]'.",
)
num_workers_option = click.option(
    "--num-workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes that share the work."
)


def absolute_dataset(dataset: str) -> str:
    """Makes the path of a data set of one's own absolute: Ray's workers run in other folders."""
    kind, _, place = dataset.partition(":")
    return dataset if not place or _SCHEME.match(place) else f"{kind}:{_expanded(place).absolute()}"


def target_cluster(context: click.Context, option: str | None) -> str | None:
    """Returns the job API to submit to, or None to work here: a job on a cluster never submits another."""
    if context.obj.get("in_job"):
        return None
    from mnist_ray.cluster.address import resolve_address

    return resolve_address(option, os.environ)


def needed_cluster(context: click.Context, option: str | None) -> str:
    """Returns the job API of a command that makes no sense without a cluster."""
    target = target_cluster(context, option)
    if target is None:
        raise click.UsageError("--address: which cluster? Give --address URL or set RAY_API_SERVER_ADDRESS")
    return target


def submit_job(
    target: str,
    script: str,
    arguments: Sequence[str],
    *,
    config_yaml: str | None,
    wait: bool,
    num_workers: int,
    run: str | None,
) -> None:
    """Submits jobs/<script>.py, prints its id and follows it unless told not to wait."""
    from mnist_ray.cluster import job_api, submission

    client = job_api.connect(target)
    with submission.stage_working_dir(config_yaml) as working_dir:
        job_id = submission.submit(
            client,
            script=script,
            arguments=arguments,
            working_dir=working_dir,
            metadata={"run": run} if run else {},
            resources={"CPU": num_workers},
            variables={LAUNCHER_VARIABLE: command_line()},
        )
    click.echo(job_id)
    if wait:
        sys.exit(follow_job(client, job_id, target))


def follow_job(client: Any, job_id: str, target: str) -> int:
    """Shows a job's log until it ends and returns its exit code; Ctrl-C leaves the job running."""
    from mnist_ray.cluster.following import follow, how_to_stop

    try:
        return follow(client, job_id, output=sys.stderr)
    except KeyboardInterrupt:
        return say(how_to_stop(job_id, target), 130)


def print_trackers(log: Sequence[str], storage: str) -> None:
    """Prints how to look at what trackers were given."""
    if log:
        from mnist_ray.tracking import how_to_look

        for command in how_to_look(log, open_storage(storage)):
            click.echo(f"look: {command}")


def remote_storage(storage: str) -> str:
    """Checks a storage for a job elsewhere, where a relative path would mean another folder.

    Raises:
      ConfigError: the URI breaks a rule, which must show before the cluster does: everybody there can read it.
    """
    check_uri(storage)
    if "://" not in storage and not Path(storage).is_absolute():
        raise click.UsageError(
            f"--storage {storage!r}: with --address give s3://..., or an absolute path that every node has"
        )
    return storage


def data_folder(option: str | None) -> Path:
    """Returns the folder of the data sets."""
    from mnist_ray.data import default_data_dir

    if option is None:
        return default_data_dir()
    if not option.strip():
        raise ConfigError(f"--data-dir {option!r}: give a folder")
    return _expanded(option)


def say_next(*parts: str, data_dir: str | None) -> None:
    """Prints a command of the launcher that can be typed next."""
    of_data = ["--data-dir", data_dir] if data_dir else []
    click.echo(f"next: {shlex.join(['mnist-ray', *parts, *of_data])}")


def _expanded(path: str) -> Path:
    # A shell leaves the '~' of --data-dir=~/x and folder:~/x as it is; Path.expanduser raises for an unknown user.
    return Path(os.path.expanduser(path))


def say(message: str, code: int) -> int:
    """Prints a line on stderr and returns the exit code."""
    click.echo(f"mnist-ray: {message}", err=True)
    return code
