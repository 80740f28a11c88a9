"""The command that evaluates runs."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from mnist_ray.cli.code import code_options
from mnist_ray.cli.completion import complete_dataset, complete_grid, complete_run
from mnist_ray.cli.grids import print_test_leaderboard
from mnist_ray.cli.help import Command, complete, option
from mnist_ray.cli.options import (
    ClusterOptions,
    as_json_option,
    cluster_options,
    data_dir_option,
    num_workers_option,
    storage_option,
)
from mnist_ray.cli.submission import cluster_to_submit_to, submit_job
from mnist_ray.config.given_settings import absolute_dataset
from mnist_ray.config.names import check_evaluation_name, check_name
from mnist_ray.config.settings import EvaluationConfig, make_config
from mnist_ray.config.yaml_files import parse_value
from mnist_ray.data.datasets import data_folder
from mnist_ray.data.sources import list_words
from mnist_ray.setting import choices_of
from mnist_ray.text.doing import at_work

if TYPE_CHECKING:
    from mnist_ray.jobs.evaluate import EvaluateOutcome

_SPLITS = choices_of(EvaluationConfig, "split")


def _default(name: str) -> Any:
    return EvaluationConfig.model_fields[name].default


@click.command(cls=Command)
@option(
    "--run",
    "runs",
    group="Run",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_run,
    help="A run to evaluate; may be repeated.",
)
@option(
    "--grid",
    "grid_name",
    group="Run",
    metavar="NAME",
    shell_complete=complete_grid,
    help="Every run of a grid that has a checkpoint.",
)
@option(
    "--all-runs",
    group="Run",
    is_flag=True,
    help="Every finished run trained on the data set; if there are none, with its classes.",
)
@option(
    "--dataset",
    group="Data",
    metavar="NAME",
    shell_complete=complete_dataset,
    help="Data set, as for train.  [default: the one the runs were trained on]",
)
@option(
    "--split",
    group="Data",
    default="test",
    show_default=True,
    metavar=f"[{'|'.join(_SPLITS)}]",
    shell_complete=complete(_SPLITS),
    help="Images of the data set.",
)
@option(
    "--batch-size",
    group="Where it runs",
    metavar="N",
    help=f"Images in one pass through the networks.  [default: {_default('batch_size')}]",
)
@option(
    "--shard-size", group="Output", metavar="N", help=f"Images in one part file.  [default: {_default('shard_size')}]"
)
@option(
    "--name",
    group="Output",
    metavar="NAME",
    help="Name of the evaluation.  [default: made of the runs, the data and a hash of all]",
)
@option(
    "--no-report", group="Output", is_flag=True, help="Don't write the page; `mnist-ray report` can write it later."
)
@storage_option
@data_dir_option
@num_workers_option
@code_options
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
    name: str | None,
    no_report: bool,
    storage: str,
    data_dir: str | None,
    num_workers: int,
    cluster: ClusterOptions,
    as_json: bool,
) -> None:
    """Evaluates runs in one pass over a data set, commits the tables and writes a report."""
    sizes = {"batch_size": batch_size, "shard_size": shard_size}
    chosen = {name: parse_value(value) for name, value in sizes.items() if value is not None}
    names = [check_name(run, "run") for run in runs]
    if [bool(names), bool(grid_name), all_runs].count(True) != 1:
        raise click.UsageError("give one of --run NAME (once or more), --grid NAME and --all-runs")
    if grid_name:
        chosen["grid"] = check_name(grid_name, "grid")
    if name is not None:
        check_evaluation_name(name)
    if dataset is not None:
        chosen["dataset"] = absolute_dataset(dataset)
    config = make_config(EvaluationConfig, {"split": split, **chosen}, "evaluate")
    job_name = name or grid_name or (names[0] if names else "all-runs")
    target = cluster_to_submit_to(cluster.address, name=job_name, storage=storage)
    if target:
        submit_job(
            target, context, {"dataset": config.dataset}, name=job_name, num_workers=num_workers, is_unique=False
        )
        return
    with at_work(f"reading {_what(names, grid_name)}"):
        # torch takes seconds to import.
        from mnist_ray.jobs.evaluate import EvaluateJob
        from mnist_ray.jobs.evaluate import evaluate as evaluate_runs
        from mnist_ray.tracking.evaluations import log_evaluation

        job = EvaluateJob(
            config, tuple(names), storage, data_folder(data_dir), num_workers, report=not no_report, name=name,
            placement=cluster.placement,
        )  # fmt: skip
        outcome = evaluate_runs(job)
    _print_outcome(outcome, storage, grid_name, as_json=as_json)
    # A server may let one wait.
    log_evaluation(storage, outcome.name)


def _what(runs: Sequence[str], grid: str | None) -> str:
    if grid:
        return f"grid {grid}"
    return f"{'run' if len(runs) == 1 else 'runs'} {list_words(runs)}" if runs else "all runs"


def _print_outcome(outcome: "EvaluateOutcome", storage: str, grid_name: str | None, *, as_json: bool) -> None:
    from mnist_ray.text.tables import print_text

    if as_json:
        said = ("uri", "already_done", "report", "metrics")
        facts = {"evaluation": outcome.name, **{name: getattr(outcome, name) for name in said}}
        click.echo(json.dumps(facts, default=datetime.isoformat))
        return
    if grid_name:
        print_test_leaderboard(outcome.metrics, storage, grid_name)
    else:
        from mnist_ray.cli.metrics import print_metrics

        print_metrics(outcome.metrics)
    done = "was there already, nothing to do" if outcome.already_done else "committed"
    print_text(f"evaluation {outcome.name} {done}: {outcome.uri}")
    if outcome.report:
        print_text(f"report: {outcome.report}")
