"""The commands for a cluster's jobs."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from mnist_ray.cli.help import Choice, Group
from mnist_ray.cli.lists import DATE_COLUMNS, Columns, as_is, date_text, print_list, selection_options
from mnist_ray.cli.options import address_option, as_json_option
from mnist_ray.cli.submission import follow_job, needed_cluster
from mnist_ray.text.doing import at_work_if_slow
from mnist_ray.text.durations import duration
from mnist_ray.text.escape import printable_log

if TYPE_CHECKING:
    from mnist_ray.results.listing import Selection
    from mnist_ray.submission.job_api import Job, JobClient

_address_option = address_option("The Ray cluster to ask", otherwise="none; in a job, its own cluster")
_STATUSES = ("pending", "running", "succeeded", "failed", "stopped")
_COLUMNS: Columns = {
    "job": ("job", as_is),
    "status": ("status", as_is),
    "exit code": ("exit_code", as_is),
    **DATE_COLUMNS,
    "duration": ("duration_s", duration),
    "run": ("run", as_is),
}


@click.group(cls=Group)
def jobs() -> None:
    """Lists, follows, stops and deletes a cluster's jobs."""


@jobs.command("list")
@click.option("--status", type=Choice(_STATUSES, case_sensitive=False), help="Only those with this status.")
@selection_options
@_address_option
def jobs_list(selection: "Selection", status: str | None, as_json: bool, address: str | None) -> None:
    """Lists the cluster's jobs, the newest last: when each was submitted, how long it has taken, what it makes."""
    from mnist_ray.submission import job_api

    if status is not None:
        selection = replace(selection, where=(*selection.where, ("status", status.upper())))
    rows = [_row(job) for job in job_api.jobs_list(_connected(address))]
    print_list(
        rows, _COLUMNS, selection, as_json=as_json, empty="no jobs", known=_FIELDS, printed=_printed,
        optional=("run", "duration", "exit code", "time"),
    )  # fmt: skip


@jobs.command("status")
@click.argument("job_id")
@_address_option
@as_json_option
def jobs_status(job_id: str, address: str | None, as_json: bool) -> None:
    """Prints one job's status, times, exit code and entry point."""
    from mnist_ray.submission import job_api
    from mnist_ray.text.tables import cell, print_fields

    row = _row(job_api.job_status(_connected(address), job_id))
    if as_json:
        click.echo(json.dumps([row], indent=1, default=datetime.isoformat))
        return
    said = {**row, "date": row["date"] and date_text(row["date"]), "ended": row["ended"] and date_text(row["ended"])}
    said["duration"] = duration(row["duration_s"]) if row["duration_s"] is not None else None
    print_fields({name: None if said[name] is None else cell(said[name]) for name in _PRINTED})


@jobs.command("logs")
@click.argument("job_id")
@click.option("--follow", is_flag=True, help="Follow the log until the job ends, and exit with its code.")
@click.option("--tail", type=click.IntRange(min=0), metavar="N", help="Only the last N lines of the log so far.")
@_address_option
@click.pass_context
def jobs_logs(context: click.Context, job_id: str, follow: bool, tail: int | None, address: str | None) -> None:
    """Prints one job's log."""
    from mnist_ray.submission import job_api
    from mnist_ray.submission.follow import last_lines

    client = _connected(address)
    if follow:
        context.exit(follow_job(client, job_id, tail=tail)[0])
    log = last_lines(job_api.job_logs(client, job_id), tail)
    click.echo(printable_log(log) if sys.stdout.isatty() else log, nl=False)


@jobs.command("stop")
@click.argument("job_id")
@_address_option
def jobs_stop(job_id: str, address: str | None) -> None:
    """Stops one job and waits until it has ended; the same job, submitted again, goes on."""
    from mnist_ray.submission import job_api

    client = _connected(address)
    with at_work_if_slow(f"waiting until {job_id} has ended"):
        job = job_api.job_stop(client, job_id)
    click.echo(f"{job.job_id}: {job.status}")


@jobs.command("delete")
@click.argument("job_ids", nargs=-1, required=True)
@_address_option
def jobs_delete(job_ids: Sequence[str], address: str | None) -> None:
    """Deletes the cluster's records and logs of jobs that have ended; their results stay in the storage."""
    from mnist_ray.submission import job_api

    client = _connected(address)
    for job_id in job_ids:
        job_api.job_delete(client, job_id)
        click.echo(f"{job_id}: deleted")


def _connected(address: str | None) -> "JobClient":
    from mnist_ray.submission.connect import connect

    cluster = needed_cluster(address)
    with at_work_if_slow(f"connecting to {cluster}"):
        return connect(cluster)


_FIELDS = (
    *("job", "status", "exit_code", "date", "ended", "duration_s", "run", "entrypoint", "error_type", "message"),
    "metadata",
)
# By jobs status.
_PRINTED = ("job", "status", "exit_code", "date", "ended", "duration", "run", "entrypoint", "error_type", "message")


def _row(job: "Job") -> dict[str, Any]:
    facts = {**asdict(job), "job": job.job_id, "date": _date(job.start_time_s), "ended": _date(job.end_time_s)}
    facts |= {"duration_s": job.duration_s, "run": job.metadata.get("run")}
    return {name: facts[name] for name in _FIELDS}


def _date(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _printed(rows: Sequence[dict[str, Any]]) -> tuple[str, Sequence[dict[str, Any]]]:
    """Leaves out names of runs that a job's id holds already."""
    return "", [{**row, "run": None if (row["run"] or "") in row["job"] else row["run"]} for row in rows]
