"""Where a command runs: here, or as a job of a cluster."""

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from mnist_ray.cli.options import say
from mnist_ray.config.own_code import given_code, shipped
from mnist_ray.config.placement import in_job
from mnist_ray.interruption import Stop
from mnist_ray.results.lineage import LAUNCHER_VARIABLE, command_line
from mnist_ray.storage.storage import check_uri, open_storage
from mnist_ray.text.doing import at_work

# Options that only the launcher uses; a submitted job doesn't get them.
_STAY_HERE = {"address", "code", "no_wait", "pip", "as_json"}


def cluster_to_submit_to(option: str | None, *, name: str, storage: str) -> str | None:
    """Returns the job API to submit a command to, or None to run it here.

    A job on a cluster never submits another. It runs the command itself, as a submitted one does: with a storage that
    every node has, and under the result's name in the list of jobs.

    Args:
      option: the value of --address.
      name: of the command's result.
      storage: the value of --storage.

    Raises:
      UsageError: this is a job on a cluster, and the storage is a relative path.
    """
    from mnist_ray.submission.address import resolve_address

    if not in_job():
        return resolve_address(option, os.environ)
    if option is not None:
        say("note: this process is a job on a cluster: the command runs here, and --address is not used", 0)
    remote_storage(storage, where="in a job on a cluster")
    from mnist_ray.cluster.job_client import name_job

    name_job(name)
    return None


def needed_cluster(option: str | None) -> str:
    """Returns the job API for a command that needs a cluster; in a job, the job's own cluster."""
    from mnist_ray.submission.address import resolve_address

    target = resolve_address(option, os.environ)
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
    from mnist_ray.submission import submit as submission
    from mnist_ray.submission.connect import connect

    given, uri = context.params, remote_storage(context.params["storage"])
    line = forwarded(context, {**replace, "storage": uri})
    codes = given_code()
    files, code_variable = shipped(codes)
    asked = digest(*line, config_yaml or "", *(code.sha256 for code in codes))
    named = name if is_unique else f"{name}-{asked[:8]}"
    with (
        at_work(f"submitting to {target}"),
        submission.stage_working_dir(config_yaml, pip=given["pip"], files=files) as working_dir,
    ):
        client = connect(target)
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
    code, has_ended = (0, False) if given["no_wait"] else follow_job(client, submitted.job_id)
    if given["as_json"]:
        end = {"exit_code": code} if has_ended else {}
        click.echo(json.dumps({"job": submitted.job_id, "is_new": submitted.is_new, **end}))
    sys.exit(code)


def digest(*parts: str) -> str:
    """Returns the hexadecimal SHA-256 of several texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def follow_job(client: Any, job_id: str, *, tail: int | None = None) -> tuple[int, bool]:
    """Shows a job's log until it ends; a signal leaves the job running.

    Returns:
      The exit code, and whether the job has ended with it.
    """
    from mnist_ray.submission.follow import follow, how_to_stop

    try:
        return follow(client, job_id, output=sys.stderr, tail=tail), True
    except Stop as stop:
        return say(f"job {job_id} goes on: {how_to_stop(job_id, client.address)}", stop.code), False


def remote_storage(storage: str, *, where: str = "with --address") -> str:
    """Returns a storage's normalized URI for a job elsewhere, where a relative path would mean another folder.

    Args:
      storage: the value of --storage.
      where: words for the message.

    Raises:
      ConfigError: the URI breaks a rule; checked before submission, because everyone on the cluster can read it.
    """
    uri = check_uri(storage)
    if "://" not in storage and not Path(storage).is_absolute():
        raise click.UsageError(f"--storage {storage!r}: {where} give s3://..., or an absolute path that every node has")
    return uri
