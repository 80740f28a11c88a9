"""The command tune."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import click

from mnist_ray.cli.code import code_options
from mnist_ray.cli.completion import complete_dataset, complete_named_grid, complete_variant
from mnist_ray.cli.growth import growth_options
from mnist_ray.cli.help import Choice, Command, option
from mnist_ray.cli.options import (
    DATASET_HELP,
    IN_JOB_YAML,
    ClusterOptions,
    FiniteRange,
    as_json_option,
    cluster_options,
    data_dir_option,
    log_option,
    print_trackers,
    say_next,
    storage_option,
)
from mnist_ray.cli.plan import print_plan
from mnist_ray.cli.setting_options import config_options, parse_settings
from mnist_ray.cli.submission import cluster_to_submit_to, submit_job
from mnist_ray.cluster.train_job import MAX_FAILURES
from mnist_ray.config.default_names import default_grid_name, unnamed_grid
from mnist_ray.config.given_settings import given_settings
from mnist_ray.config.names import loading_words
from mnist_ray.config.settings import DATA_SETTINGS, GridConfig
from mnist_ray.config.variants import VARIANTS
from mnist_ray.config.yaml_files import yaml_text
from mnist_ray.data.datasets import data_folder
from mnist_ray.grids.grid import GRIDS, check_grid_name, expand, grid_settings, read_grid, shown_settings, written_grid
from mnist_ray.grids.growth import GrowthOptions, check_comparable
from mnist_ray.grids.search import search_for
from mnist_ray.text.doing import at_work


@click.command(cls=Command)
@option(
    "--grid",
    "grid_name",
    group="Grid",
    metavar="NAME|FILE",
    shell_complete=complete_named_grid,
    help=f"{', '.join(GRIDS)}, or a YAML file with settings as for train; a list of values is an axis. Not needed "
    "if options give an axis or several seeds.",
)
@option(
    "--seeds",
    group="Grid",
    metavar="N|LIST",
    help="5 for the seeds 0 to 4, or 3,7,11.  [default: the grid's, or 1; with "
    "--until-settled or --budget those of the looks, or 12]",
)
@option(
    "--name",
    group="Grid",
    metavar="NAME",
    help="Name of the grid.  [default: the grid's name, or what varies, and the data set's]",
)
@storage_option
@data_dir_option
@option(
    "--num-workers",
    group="Where it runs",
    metavar="N",
    type=click.IntRange(min=1),
    help="Stacks that train at once.  [default: one per CPU or GPU]",
)
@option(
    "--stack-size",
    group="Where it runs",
    metavar="N",
    type=click.IntRange(min=1),
    help="Maximum runs in a stack.  [default: 8 on a CPU, 160 on a GPU]",
)
@option(
    "--gpus-per-stack",
    group="Where it runs",
    metavar="NUMBER",
    type=FiniteRange(min=0, min_open=True, max=1),
    default=1.0,
    show_default=True,
    help="Share of a GPU that a stack takes, where there are GPUs.",
)
@option(
    "--workers-per-run",
    group="Where it runs",
    metavar="N",
    type=click.IntRange(min=1),
    help="Train each run by itself instead of in stacks, each batch split among so many workers; same results.",
)
@option(
    "--scheduler",
    group="Search and early end",
    type=Choice(["none", "asha"]),
    default="none",
    show_default=True,
    help="asha ends runs that aren't among the best by validation loss after 1, 3, 9, ... epochs.",
)
@option(
    "--asha-epochs",
    group="Search and early end",
    metavar="N",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Epochs before the first decision.",
)
@option(
    "--asha-factor",
    group="Search and early end",
    metavar="N",
    type=click.IntRange(min=2),
    default=3,
    show_default=True,
    help="One run in this many continues.",
)
@option(
    "--search",
    "search_kind",
    group="Search and early end",
    type=Choice(["random", "optuna"]),
    help="Train --num-samples settings, chosen from the axes and from ranges such as dropout: {uniform: [0, 0.5]}, "
    "weight_decay: {loguniform: [1e-6, 1e-3]}, instead of every combination.",
)
@option(
    "--num-samples",
    group="Search and early end",
    metavar="N",
    type=click.IntRange(min=1),
    help="Settings that --search chooses, each with every seed.",
)
@option(
    "--search-seed",
    group="Search and early end",
    metavar="N",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed of --search.",
)
@growth_options
@option(
    "--max-failures",
    group="Where it runs",
    metavar="N",
    type=click.IntRange(min=0),
    default=MAX_FAILURES,
    show_default=True,
    help="Restarts of a stack whose workers die.",
)
@option(
    "--max-runs",
    group="Grid",
    metavar="N",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="Refuse a grid with more runs.",
)
@option(
    "--variant",
    group="Grid",
    metavar="NAME",
    shell_complete=complete_variant,
    help=f"Preset of all runs: {', '.join(VARIANTS)}.  [default: the grid's]",
)
@option(
    "--dataset",
    group="Data",
    metavar="NAME",
    shell_complete=complete_dataset,
    help=f"{DATASET_HELP}  [default: the grid's, or mnist]",
)
@option(
    "--set",
    "overrides",
    group="Grid",
    multiple=True,
    metavar="KEY=VALUE",
    help="A setting of all runs, or an axis: dropout=0,0.2.",
)
@log_option
@config_options(without=("variant", "dataset", "seed", "code_sha256"))
@code_options
@cluster_options
@as_json_option
@click.pass_context
def tune(
    context: click.Context,
    /,
    grid_name: str | None,
    seeds: str | None,
    name: str | None,
    storage: str,
    data_dir: str | None,
    num_workers: int | None,
    stack_size: int | None,
    gpus_per_stack: float,
    workers_per_run: int | None,
    scheduler: str,
    asha_epochs: int,
    asha_factor: int,
    search_kind: Literal["random", "optuna"] | None,
    num_samples: int | None,
    search_seed: int,
    growing: GrowthOptions,
    max_failures: int,
    max_runs: int,
    overrides: Sequence[str],
    log: tuple[str, ...],
    cluster: ClusterOptions,
    as_json: bool,
    **settings: Any,
) -> None:
    """Trains a grid: all combinations of its axes with each seed; keeps finished runs.

    Several values of a setting are an axis: --dropout 0.1,0.2, or --hidden-sizes '[[256,128],[64]]' for a list of
    sizes. The same command resumes with the missing runs. More levels or seeds extend a grid of the same name.

    Settings that aren't given are those of the grid, else of the variant; the defaults shown are baseline's.
    """
    grid, grid_name = _grid(grid_name, seeds, parse_settings(overrides, settings), growing)
    growth = growing.growth(grid.seeds, scheduler=scheduler, search=search_kind, workers_per_run=workers_per_run)
    grid_folder_name = check_grid_name(default_grid_name(grid_name, grid) if name is None else name)
    if math.isnan(gpus_per_stack):
        raise click.BadParameter("nan is not a share of a GPU", param_hint="--gpus-per-stack")
    search = search_for(grid, search_kind, num_samples, search_seed, source=f"grid {grid_name!r}")
    if search is None:
        runs = expand(grid, name=grid_folder_name, max_runs=max_runs)
        if growth:
            check_comparable(runs)
    is_plan = context.obj.get("plan")
    target = None if is_plan else cluster_to_submit_to(cluster.address, name=grid_folder_name, storage=storage)
    if target:
        replace = {**IN_JOB_YAML, "grid_name": "./job.yaml", "seeds": None, "name": grid_folder_name}
        submit_job(
            target, context, replace, name=grid_folder_name, num_workers=workers_per_run or 1,
            config_yaml=yaml_text(written_grid(grid)),
        )  # fmt: skip
        return
    datasets = grid.axes.get("dataset") or [grid.fixed.get("dataset", "mnist")]
    with at_work(loading_words(*map(str, datasets))):
        # torch takes seconds to import.
        from mnist_ray.cluster.tune_job import TuneJob
        from mnist_ray.grids.asha import Rungs

        job = TuneJob(
            grid,
            grid_folder_name,
            storage,
            data_folder(data_dir),
            num_workers=num_workers,
            stack_size=stack_size,
            gpus_per_stack=gpus_per_stack,
            workers_per_run=workers_per_run or 0,
            asha=Rungs(asha_epochs, asha_factor) if scheduler == "asha" else None,
            max_failures=max_failures,
            max_runs=max_runs,
            search=search,
            growth=growth,
            log=log,
            placement=cluster.placement,
        )
        result = _planned(job) if is_plan else _tuned(job)
    if is_plan:
        print_plan(result, grid_folder_name, as_json=as_json)
        if growth and growth.has_budget and not as_json:
            click.echo("--budget ends the training earlier, with as many seeds of all settings as fit")
        return
    _print_outcome(job, result, data_dir=data_dir, as_json=as_json)


def _grid(
    name: str | None, seeds: str | None, settings: Mapping[str, Any], growing: GrowthOptions
) -> tuple[GridConfig, str]:
    """Returns a grid with other settings, and its name or file; one without either is named after its axes."""
    grid = read_grid(
        given_settings({} if name is None else grid_settings(name)),
        seeds=seeds,
        overrides=given_settings(settings),
        source="tune" if name is None else f"grid {name!r}",
        default_seeds=growing.default_seeds,
    )
    if name is None and not (grid.axes or grid.ranges) and len(grid.seeds) == 1:
        raise click.UsageError("give --grid NAME or FILE, or several values of a setting, such as --dropout 0.1,0.2")
    return grid, unnamed_grid(grid) if name is None else name


def _planned(job: Any) -> Any:
    from mnist_ray.jobs.estimate import plan_grid

    return plan_grid(job)


def _tuned(job: Any) -> Any:
    from mnist_ray.jobs.tune import tune as tune_grid

    return tune_grid(job)


def _print_outcome(job: Any, outcome: Any, *, data_dir: str | None, as_json: bool) -> None:
    from mnist_ray.analysis.leaderboard import leaderboard, print_leaderboard
    from mnist_ray.report.growth_text import answer
    from mnist_ray.text.tables import print_text

    columns = shown_settings(job.grid)
    board = leaderboard(outcome.rows, columns)
    said = [] if job.growth is None else answer(outcome.grown, job.growth)
    if as_json:
        facts = {"grid": job.name, "uri": outcome.uri, "trained": outcome.num_trained, "leaderboard": board}
        click.echo(json.dumps(facts if job.growth is None else {**facts, "answer": said}))
        return
    print_leaderboard(board, columns)
    if varying := [axis for axis in (*job.grid.axes, *job.grid.ranges) if axis in DATA_SETTINGS]:
        print_text(f"note: the validation examples differ with {', '.join(varying)}; this ranking doesn't compare them")
    for sentence in said:
        print_text(sentence)
    done = f"{outcome.num_trained} trained now" if outcome.num_trained else "all were done already"
    print_text(f"grid {job.name}: {len(outcome.rows)} runs, {done}: {outcome.uri}/runs.parquet")
    say_next("evaluate", "--grid", job.name, "--storage", job.storage_uri, data_dir=data_dir)
    print_trackers(job.log, job.storage_uri)
