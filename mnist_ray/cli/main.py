"""The launcher: options -> config -> one call. Imports neither torch nor ray until a command needs them."""

import json
import re
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import click

import mnist_ray
from mnist_ray.cli import export as cli_export
from mnist_ray.cli import grids as cli_grids
from mnist_ray.cli import predict as cli_predict
from mnist_ray.cli import query as cli_query
from mnist_ray.cli import reports as cli_reports
from mnist_ray.cli import reproduce as cli_reproduce
from mnist_ray.cli import storage as cli_storage
from mnist_ray.cli.options import (
    DATASET_HELP,
    IN_JOB_YAML,
    ClusterOptions,
    absolute_dataset,
    address_option,
    as_json_option,
    cluster_options,
    config_options,
    data_dir_option,
    data_folder,
    follow_job,
    log_option,
    needed_cluster,
    num_workers_option,
    parse_settings,
    print_trackers,
    say,
    say_next,
    storage_option,
    submit_job,
    target_cluster,
)
from mnist_ray.config.settings import (
    EvaluationConfig,
    TrainConfig,
    check_name,
    check_setting,
    make_config,
)
from mnist_ray.config.variants import VARIANTS, variant_config
from mnist_ray.config.yaml_files import parse_value, read_yaml, yaml_text
from mnist_ray.errors import MnistRayError, RunFailedError
from mnist_ray.interruption import Stop, last_stop, stoppable
from mnist_ray.text.escape import printable_log

# What the same command does after it was stopped.
_GOES_ON = {"train": "with --resume goes on", "tune": "goes on", "demo": "goes on"}


class _Stopped(Exception):
    """A stop, in a form for which Click prints no empty line."""


class _Launcher(click.Group):
    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except (KeyboardInterrupt, click.Abort):
            raise _Stopped from None


@click.group(cls=_Launcher, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(mnist_ray.__version__, prog_name="mnist-ray")
@click.pass_context
def cli(context: click.Context) -> None:
    """Trains regularized variants of an image classifier on Ray, evaluates them, and leaves Parquet tables.

    Start with `mnist-ray demo`. Exit codes: 0 done, 1 a bug, 2 usage or config, 3 data or checkpoint, 4 storage,
    5 cluster or token, 6 conflict, 7 the run failed, 130/143 stopped by a signal.
    """
    context.ensure_object(dict)


@cli.command()
@click.option("--variant", default=None, metavar="NAME", help=f"Preset: {', '.join(VARIANTS)}.  [default: baseline]")
@click.option(
    "--dataset",
    default=None,
    metavar="NAME",
    help=f"{DATASET_HELP}  [default: mnist]",
)
@click.option("--name", default=None, metavar="NAME", help="Name of the run.  [default: VARIANT-DATASET-sSEED]")
@storage_option
@data_dir_option
@num_workers_option
@click.option("--resume", is_flag=True, help="Go on with a run that was interrupted; starts it if there is none.")
@click.option(
    "--max-failures", type=click.IntRange(min=0), default=0, show_default=True, help="Restarts after a worker died."
)
@click.option(
    "--config", "config_file", type=click.Path(), metavar="FILE.yaml", help="Settings; options override them."
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="One setting by its name in the config.")
@log_option
@config_options(without=("variant", "dataset"))
@cluster_options
@as_json_option
@click.pass_context
def train(
    context: click.Context,
    /,
    variant: str | None,
    dataset: str | None,
    name: str | None,
    storage: str,
    data_dir: str | None,
    num_workers: int,
    resume: bool,
    max_failures: int,
    config_file: str | None,
    overrides: Sequence[str],
    log: tuple[str, ...],
    cluster: ClusterOptions,
    as_json: bool,
    **settings: Any,
) -> None:
    """Trains one run and leaves its folder, with the best checkpoint, in the storage."""
    chosen = {**settings, "dataset": dataset, "variant": variant}
    config = _train_config(config_file, overrides, chosen)
    run = check_name(default_run_name(config) if name is None else name)
    if context.obj.get("plan"):
        from mnist_ray.jobs.estimate import plan_run

        cli_grids.print_plan(plan_run(config, run, storage, data_folder(data_dir)), run, as_json=as_json)
        return
    target = target_cluster(cluster.address)
    if target:
        text = yaml_text(config.model_dump(mode="json"))
        replace = {**IN_JOB_YAML, "config_file": "job.yaml", "name": run}
        submit_job(target, context, replace, name=run, num_workers=num_workers, config_yaml=text)
        return
    from mnist_ray.cluster.train_job import TrainJob
    from mnist_ray.jobs.train import train as train_run

    job = TrainJob(
        config, run, storage, data_folder(data_dir), num_workers, resume, max_failures, log=log,
        placement=cluster.placement,
    )  # fmt: skip
    outcome = train_run(job)
    best = outcome.best
    if as_json:
        click.echo(json.dumps({"run": run, "epochs": len(outcome.history), "best_epoch": best.epoch,
                               "val_loss": best.val_loss, "val_accuracy": best.val_accuracy,
                               "already_done": outcome.already_done}))  # fmt: skip
        return
    done = "was finished already" if outcome.already_done else "is finished"
    click.echo(
        f"{run} {done}: best of {len(outcome.history)} epochs is {best.epoch}, validation accuracy "
        f"{best.val_accuracy:.4f}, loss {best.val_loss:.4f}"
    )
    say_next("evaluate", "--run", run, "--storage", storage, data_dir=data_dir)
    print_trackers(log, storage)


def _train_config(config_file: str | None, overrides: Sequence[str], options: dict[str, Any]) -> TrainConfig:
    settings = {} if config_file is None else read_yaml(Path(config_file))
    for name, value in settings.items():
        if name != "variant":
            # Here the file is known; what joins several settings is checked with the options.
            check_setting(name, value, f"--config {config_file!r}")
    settings.update(parse_settings(overrides, options))
    if isinstance(settings.get("dataset"), str):
        settings["dataset"] = absolute_dataset(settings["dataset"])
    return variant_config(settings.pop("variant", "baseline"), settings)


def default_run_name(config: TrainConfig) -> str:
    """Returns the name of a run that was given none, such as dropout-mnist-s0."""
    dataset = re.sub("[^A-Za-z0-9._-]", "-", config.dataset)
    return f"{config.variant}-{dataset[:30]}-s{config.seed}"[:64]


@cli.command()
@click.option("--run", "runs", multiple=True, metavar="NAME", help="A run to evaluate; may be given many times.")
@click.option("--grid", "grid_name", metavar="NAME", help="Every run of a grid that has a checkpoint.")
@click.option(
    "--all-runs", is_flag=True, help="Every finished run trained on the data set, or if none was, with its classes."
)
@click.option("--dataset", metavar="NAME", help="Data set, as for train.  [default: the one the runs were trained on]")
@click.option("--split", default="test", show_default=True, metavar="NAME", help="test or train.")
@click.option("--batch-size", metavar="N", help="Images in one pass through the networks.  [default: 1000]")
@click.option("--shard-size", metavar="N", help="Images in one part file.  [default: 10000]")
@click.option("--no-report", is_flag=True, help="Leave out the page; `mnist-ray report` writes it at any time.")
@storage_option
@data_dir_option
@num_workers_option
@cluster_options
@as_json_option
@click.pass_context
def evaluate(
    context: click.Context,
    /,
    runs: Sequence[str],
    grid_name: str | None,
    all_runs: bool,
    dataset: str | None,
    split: str,
    batch_size: str | None,
    shard_size: str | None,
    no_report: bool,
    storage: str,
    data_dir: str | None,
    num_workers: int,
    cluster: ClusterOptions,
    as_json: bool,
) -> None:
    """Evaluates runs on a data set in one pass over its images, commits the tables in one step, writes a report."""
    sizes = {"batch_size": batch_size, "shard_size": shard_size}
    chosen = {name: parse_value(value) for name, value in sizes.items() if value is not None}
    names = [check_name(run, "run") for run in runs]
    if [bool(names), bool(grid_name), all_runs].count(True) != 1:
        raise click.UsageError("give one of --run NAME (once or more), --grid NAME and --all-runs")
    if grid_name:
        chosen["grid"] = check_name(grid_name, "grid")
    if dataset is not None:
        chosen["dataset"] = absolute_dataset(dataset)
    config = make_config(EvaluationConfig, {"split": split, **chosen}, "evaluate")
    target = target_cluster(cluster.address)
    if target:
        name = grid_name or (names[0] if names else "all-runs")
        submit_job(target, context, {"dataset": config.dataset}, name=name, num_workers=num_workers, is_unique=False)
        return
    from mnist_ray.jobs.evaluate import EvaluateJob
    from mnist_ray.jobs.evaluate import evaluate as evaluate_runs

    job = EvaluateJob(
        config, tuple(names), storage, data_folder(data_dir), num_workers, report=not no_report,
        placement=cluster.placement,
    )  # fmt: skip
    outcome = evaluate_runs(job)
    if as_json:
        click.echo(json.dumps({"evaluation": outcome.name, "uri": outcome.uri, "already_done": outcome.already_done,
                               "report": outcome.report, "metrics": outcome.metrics}))  # fmt: skip
        return
    if grid_name:
        cli_grids.print_test_leaderboard(outcome.metrics, storage, grid_name)
    else:
        from mnist_ray.cli.metrics import print_metrics

        print_metrics(outcome.metrics)
    done = "was there already, nothing to do" if outcome.already_done else "committed"
    click.echo(f"evaluation {outcome.name} {done}: {outcome.uri}")
    if outcome.report:
        click.echo(f"report: {outcome.report}")


@cli.command()
@storage_option
@as_json_option
def runs(storage: str, as_json: bool) -> None:
    """Lists the runs of a storage."""
    from mnist_ray.results.listing import list_runs
    from mnist_ray.text.tables import print_rows

    print_rows(list_runs(storage), as_json=as_json, empty=f"no runs in {storage}")


@cli.command()
@storage_option
@as_json_option
def evaluations(storage: str, as_json: bool) -> None:
    """Lists the committed evaluations of a storage."""
    from mnist_ray.results.listing import list_evaluations
    from mnist_ray.text.tables import print_rows

    print_rows(list_evaluations(storage), as_json=as_json, empty=f"no evaluations in {storage}")


@cli.command()
@storage_option
@click.option("--epochs", type=click.IntRange(min=1), default=10, show_default=True, help="Epochs of each run.")
@click.option("--seeds", type=click.IntRange(min=1), default=2, show_default=True, help="Runs of each variant.")
def demo(storage: str, epochs: int, seeds: int) -> None:
    """Trains and evaluates the three variants on scikit-learn's handwritten digits, offline, in minutes."""
    from mnist_ray.cli.demo import run_demo

    run_demo(storage, epochs=epochs, seeds=seeds)


@cli.command()
@storage_option
@data_dir_option
@address_option
@click.pass_context
def doctor(context: click.Context, storage: str, data_dir: str | None, address: str | None) -> None:
    """Says what works here (Python, torch, GPU, Ray, data, storage, cluster) and what to do about the rest.

    Ends with the exit code of the first part that does not work.
    """
    from mnist_ray.cli.doctor import examine

    context.exit(examine(storage, data_folder(data_dir), target_cluster(address)))


@cli.group()
def jobs() -> None:
    """Lists, follows and stops the jobs of a cluster."""


@jobs.command("list")
@address_option
@as_json_option
def jobs_list(address: str | None, as_json: bool) -> None:
    """Lists the cluster's jobs, the newest first."""
    from mnist_ray.submission import job_api
    from mnist_ray.text.tables import print_rows

    found = job_api.jobs_list(job_api.connect(needed_cluster(address)))
    print_rows([_job_row(job) for job in found], as_json=as_json, empty="no jobs")


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
@click.option("--follow", is_flag=True, help="Go on until the job ends, and exit with its code.")
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


for _command in (
    cli_grids.tune,
    cli_grids.plan,
    cli_grids.grids,
    cli_reports.report,
    cli_reports.compare,
    cli_query.query,
    cli_export.export,
    cli_reproduce.reproduce,
    cli_predict.predict,
    cli_storage.storage,
):
    cli.add_command(_command)


def _job_row(job: Any) -> dict[str, Any]:
    started = datetime.fromtimestamp(job.start_time_s).isoformat(" ", "seconds") if job.start_time_s else None
    row = {"job": job.job_id, "status": job.status, "exit_code": job.exit_code, "started": started}
    return {**row, "run": job.metadata.get("run"), "entrypoint": job.entrypoint}


def run_command(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code; every error that a person can cause is one line."""
    with stoppable():
        try:
            result = cli.main(list(arguments), prog_name="mnist-ray", standalone_mode=False)
        except MnistRayError as error:
            return say(f"error: {error}", error.exit_code)
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message(), err=True)
            return 2
        except click.ClickException as error:
            where = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "mnist-ray"
            # Click lists choices below each other.
            return say(f"error: {' '.join(error.format_message().split())} (see `{where} --help`)", 2)
        except (_Stopped, click.Abort, KeyboardInterrupt):
            return _say_stop(arguments)
        except Exception:
            # What an interrupted import leaves half done can end in any error.
            if last_stop():
                return _say_stop(arguments)
            raise
    return result if isinstance(result, int) else 0


def _say_stop(arguments: Sequence[str]) -> int:
    stop = last_stop() or Stop(130, "stopped")
    if stop.code == RunFailedError.exit_code:
        return say(f"error: {stop.reason}", stop.code)
    return say(f"{stop.reason}; the same command {_GOES_ON.get(arguments[0], 'starts again')}", stop.code)
