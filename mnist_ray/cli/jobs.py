"""The commands for a cluster's jobs."""

import sys
from datetime import datetime
from typing import Any

import click

from mnist_ray.cli.help import Group
from mnist_ray.cli.options import address_option, as_json_option, follow_job, needed_cluster
from mnist_ray.text.escape import printable_log


@click.group(cls=Group)
def jobs() -> None:
    """Lists, follows and stops a cluster's jobs."""


@jobs.command("list")
@address_option
@as_json_option
def jobs_list(address: str | None, as_json: bool) -> None:
    """Lists the cluster's jobs, newest first."""
    from mnist_ray.submission import job_api
    from mnist_ray.text.tables import print_rows

    listed = job_api.jobs_list(job_api.connect(needed_cluster(address)))
    print_rows([_job_row(job) for job in listed], as_json=as_json, empty="no jobs")


@jobs.command("status")
@click.argument("job_id")
@address_option
@as_json_option
def jobs_status(job_id: str, address: str | None, as_json: bool) -> None:
    """Prints one job's status."""
    from mnist_ray.submission import job_api
    from mnist_ray.text.tables import print_rows

    job = job_api.job_status(job_api.connect(needed_cluster(address)), job_id)
    print_rows([_job_row(job)], as_json=as_json, empty="")


@jobs.command("logs")
@click.argument("job_id")
@click.option("--follow", is_flag=True, help="Follow the log until the job ends, and exit with its code.")
@address_option
@click.pass_context
def jobs_logs(context: click.Context, job_id: str, follow: bool, address: str | None) -> None:
    """Prints one job's log."""
    from mnist_ray.submission import job_api

    target = needed_cluster(address)
    client = job_api.connect(target)
    if follow:
        context.exit(follow_job(client, job_id, target)[0])
    log = job_api.job_logs(client, job_id)
    click.echo(printable_log(log) if sys.stdout.isatty() else log, nl=False)


@jobs.command("stop")
@click.argument("job_id")
@address_option
def jobs_stop(job_id: str, address: str | None) -> None:
    """Stops one job and waits until it has ended."""
    from mnist_ray.submission import job_api

    job = job_api.job_stop(job_api.connect(needed_cluster(address)), job_id)
    click.echo(f"{job.job_id}: {job.status}")


def _job_row(job: Any) -> dict[str, Any]:
    started = datetime.fromtimestamp(job.start_time_s).isoformat(" ", "seconds") if job.start_time_s else None
    row = {"job": job.job_id, "status": job.status, "exit_code": job.exit_code, "started": started}
    return {**row, "run": job.metadata.get("run"), "entrypoint": job.entrypoint}
