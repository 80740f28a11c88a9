"""What the launcher's commands do, as functions: the same configs, jobs and results, and nothing printed.

All of them stop at Ctrl-C as a KeyboardInterrupt, after what was begun is ended, and go on when they are called again.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Unpack

import pyarrow as pa

from mnist_ray.api.calling import StrPath, call
from mnist_ray.api.checks import check_choice, check_counts, check_share, share_of_points
from mnist_ray.api.results import STORAGE, Comparison, Evaluation, Grid, Prediction, Run, table_of
from mnist_ray.api.settings import GridSettings, RunSettings
from mnist_ray.cluster.train_job import MAX_FAILURES, TrainJob
from mnist_ray.config.default_names import default_grid_name, default_run_name, unnamed_grid
from mnist_ray.config.given_settings import absolute_dataset, given_config, given_settings
from mnist_ray.config.names import check_evaluation_name, check_name
from mnist_ray.config.own_code import given_code
from mnist_ray.config.placement import Placement
from mnist_ray.config.settings import EvaluationConfig, make_config
from mnist_ray.data.datasets import data_folder
from mnist_ray.data.polarity import POLARITIES
from mnist_ray.errors import ConfigError
from mnist_ray.grids.grid import check_grid_name, grid_settings, read_grid
from mnist_ray.grids.growth import GrowthOptions, deadline_of, read_looks
from mnist_ray.grids.search import search_for
from mnist_ray.storage.storage import open_storage
from mnist_ray.tracking.logged import TRACKERS, TrackerName

if TYPE_CHECKING:
    from mnist_ray.data.examples import Split
    from mnist_ray.data.polarity import Polarity


def train(
    *,
    name: str | None = None,
    storage: StrPath = STORAGE,
    data_dir: StrPath | None = None,
    num_workers: int | tuple[int, int] = 1,
    max_failures: int | None = None,
    log: Sequence[TrackerName] = (),
    code: Sequence[StrPath] = (),
    device: Literal["cpu", "gpu"] | None = None,
    quiet: bool = True,
    **settings: Unpack[RunSettings],
) -> Run:
    """Trains one run, or goes on with it, to more epochs too; a finished run is only read.

    Args:
      name: name of the run; by default made of the settings.
      storage: folder or s3://bucket/prefix of all results.
      data_dir: folder of the data sets, also for downloads.
      num_workers: processes that share every batch; (least, most) for as many as there are.
      max_failures: restarts after a worker dies, 3 by default; a number makes Ray watch over a single worker, too.
      log: trackers to log to.
      code: files, folders or packages of the user's own network, if `model` doesn't name its file.
      device: cpu or gpu; by default a GPU if there is one.
      quiet: whether to say nothing; otherwise standard error gets what the launcher says there.
      settings: of the run, see RunSettings; those of its variant by default.

    Raises:
      MnistRayError: see mnist_ray.errors.
    """
    least, most = num_workers if isinstance(num_workers, tuple) else (num_workers, num_workers)
    check_counts(1, num_workers=least)
    check_counts(least, num_workers=most)
    check_counts(0, max_failures=max_failures)
    _check_trackers(log)
    with call(quiet=quiet, code=code):
        from mnist_ray.jobs.train import train as train_run

        config = given_config(settings)
        run = check_name(default_run_name(config) if name is None else name)
        uri = open_storage(os.fspath(storage)).uri
        job = TrainJob(
            config, run, uri, data_folder(data_dir), most, max_failures=max_failures,
            log=tuple(log), placement=_placement(device), least_workers=least if least < most else None,
        )  # fmt: skip
        outcome = train_run(job)
        return Run(run, uri, _codes(), outcome.already_done)


def tune(
    grid: StrPath | Mapping[str, Any],
    *,
    seeds: int | Sequence[int] | None = None,
    name: str | None = None,
    storage: StrPath = STORAGE,
    data_dir: StrPath | None = None,
    num_workers: int | None = None,
    stack_size: int | None = None,
    gpus_per_stack: float = 1.0,
    workers_per_run: int | None = None,
    scheduler: Literal["none", "asha"] = "none",
    asha_epochs: int = 1,
    asha_factor: int = 3,
    search: Literal["random", "optuna"] | None = None,
    num_samples: int | None = None,
    search_seed: int = 0,
    until_settled: bool = False,
    looks: Sequence[int] | None = None,
    margin: float = 0.5,
    budget: str | None = None,
    max_failures: int = MAX_FAILURES,
    max_runs: int = 1000,
    log: Sequence[TrackerName] = (),
    code: Sequence[StrPath] = (),
    device: Literal["cpu", "gpu"] | None = None,
    quiet: bool = True,
    **settings: Unpack[GridSettings],
) -> Grid:
    """Trains a grid, or goes on with it; finished runs are only read, and more levels or seeds extend it.

    Args:
      grid: a named grid, a YAML file, or settings: a list of values is an axis, {"uniform": [0, 0.5]} a range.
      seeds: their number, or the seeds themselves; the grid's by default, or 1.
      name: name of the grid; by default the grid's, or its variant's and axes', and the data set's.
      num_workers: stacks that train at once; by default one per CPU or GPU.
      stack_size: most runs in a stack.
      gpus_per_stack: share of a GPU that a stack takes, where there are GPUs.
      workers_per_run: trains each run by itself, each batch split among so many workers.
      scheduler, asha_epochs, asha_factor: asha ends runs that aren't among the best after 1, 3, 9, ... epochs.
      search, num_samples, search_seed: trains so many settings chosen from the axes and ranges.
      until_settled, looks, margin, budget: trains the seeds one after the other until the settings are told apart, to
        a margin in points, or until a time such as 20m has passed.
      max_failures: restarts of a stack whose worker dies.
      max_runs: refuses a grid with more runs.
      storage, data_dir, log, code, device, quiet: see train.
      settings: of every run, see GridSettings; they replace the grid's.

    Raises:
      MnistRayError: see mnist_ray.errors; finished runs are kept.
    """
    check_counts(1, num_workers=num_workers, stack_size=stack_size, workers_per_run=workers_per_run,
                 asha_epochs=asha_epochs, num_samples=num_samples, max_runs=max_runs)  # fmt: skip
    check_counts(2, asha_factor=asha_factor)
    check_counts(0, search_seed=search_seed, max_failures=max_failures)
    check_share("gpus_per_stack", gpus_per_stack)
    check_choice("scheduler", scheduler, ("none", "asha"))
    check_choice("search", search or "random", ("random", "optuna"))
    share_of_points("margin", margin)
    _check_trackers(log)
    given = None if isinstance(grid, Mapping) else os.fspath(grid)
    source = "tune" if given is None else f"grid {given!r}"
    growing = GrowthOptions(
        until_settled, None if looks is None else read_looks(",".join(map(str, looks))), margin, deadline_of(budget)
    )
    with call(quiet=quiet, code=code):
        from mnist_ray.cluster.tune_job import TuneJob
        from mnist_ray.grids.asha import Rungs
        from mnist_ray.jobs.tune import tune as tune_grid
        from mnist_ray.report.growth_text import answer

        chosen = {**given_settings(settings), **({} if seeds is None else {"seeds": seeds})}
        read = grid if isinstance(grid, Mapping) else grid_settings(os.fspath(grid))
        config = read_grid(
            given_settings(read), seeds=None, overrides=chosen, source=source, default_seeds=growing.default_seeds
        )
        job = TuneJob(
            config,
            check_grid_name(default_grid_name(given or unnamed_grid(config), config) if name is None else name),
            open_storage(os.fspath(storage)).uri,
            data_folder(data_dir),
            num_workers=num_workers,
            stack_size=stack_size,
            gpus_per_stack=gpus_per_stack,
            workers_per_run=workers_per_run or 0,
            asha=Rungs(asha_epochs, asha_factor) if scheduler == "asha" else None,
            max_failures=max_failures,
            max_runs=max_runs,
            search=search_for(config, search, num_samples, search_seed, source=source),
            growth=growing.growth(config.seeds, scheduler=scheduler, search=search, workers_per_run=workers_per_run),
            log=tuple(log),
            placement=_placement(device),
        )
        outcome = tune_grid(job)
        said = answer(outcome.grown, job.growth) if job.growth and outcome.grown else ()
        return Grid(job.name, job.storage_uri, _codes(), outcome.num_trained, tuple(said))


def evaluate(
    trained: Run | Grid | Sequence[Run],
    *,
    dataset: str | None = None,
    split: "Split" = "test",
    batch_size: int = 1000,
    shard_size: int = 10_000,
    name: str | None = None,
    report: bool = False,
    data_dir: StrPath | None = None,
    num_workers: int = 1,
    code: Sequence[StrPath] = (),
    device: Literal["cpu", "gpu"] | None = None,
    quiet: bool = True,
) -> Evaluation:
    """Evaluates runs in one pass over a data set's images and commits the tables atomically; a repetition is only read.

    Args:
      trained: a run, several of one storage, or a grid, whose finished runs are evaluated.
      dataset: by default the one that the runs were trained on.
      split: of the data set.
      batch_size: images in one pass through the networks.
      shard_size: images in one part file.
      name: of the evaluation; by default made of the runs, the data and a hash of all.
      report: whether to write the page too, see Evaluation.write_report.
      num_workers: processes that share the images.
      data_dir, code, device, quiet: see train; the code that the runs were trained with is known.

    Raises:
      MnistRayError: see mnist_ray.errors.
    """
    check_counts(1, num_workers=num_workers)
    if name is not None:
        check_evaluation_name(name)
    each = [trained] if isinstance(trained, Run | Grid) else list(trained)
    storages = {one.storage for one in each}
    if len(storages) != 1:
        raise ConfigError(f"evaluate: give runs of one storage, not of {len(storages)}")
    chosen: dict[str, Any] = {"split": split, "batch_size": batch_size, "shard_size": shard_size}
    if isinstance(trained, Grid):
        chosen["grid"] = check_name(trained.name, "grid")
    if dataset is not None:
        chosen["dataset"] = absolute_dataset(dataset)
    config = make_config(EvaluationConfig, chosen, "evaluate")
    codes = [*code, *(given for one in each for given in one.code)]
    with call(quiet=quiet, code=codes):
        from mnist_ray.jobs.evaluate import EvaluateJob
        from mnist_ray.jobs.evaluate import evaluate as evaluate_runs
        from mnist_ray.tracking.evaluations import log_evaluation

        runs = () if isinstance(trained, Grid) else tuple(check_name(one.name, "run") for one in each)
        uri = open_storage(storages.pop()).uri
        job = EvaluateJob(
            config, runs, uri, data_folder(data_dir), num_workers, report=report, name=name,
            placement=_placement(device),
        )  # fmt: skip
        outcome = evaluate_runs(job)
        log_evaluation(uri, outcome.name)
        return Evaluation(outcome.name, uri, outcome.already_done)


def compare(
    evaluation: Evaluation, *, baseline: str | None = None, margin: float = 0.5, quiet: bool = True
) -> Comparison:
    """Says which settings help, by how much and how sure that is; stores the tables comparisons and effects.

    Args:
      baseline: compares with this setting only, as a family of its own: a variant, or a setting's name.
      margin: differences of accuracy up to this many points don't matter.
      quiet: see train.

    Raises:
      MnistRayError: see mnist_ray.errors.
    """
    share = share_of_points("margin", margin)
    with call(quiet=quiet):
        from mnist_ray.report.comparison_report import comparisons_table
        from mnist_ray.report.findings import find

        folder = evaluation._folder
        findings = find(folder, baseline=baseline, margin=share)
        effects = evaluation.table("effects")
        return Comparison(
            evaluation,
            tuple(findings.answer),
            table_of(findings.comparison.settings),
            comparisons_table(folder, findings.comparison.pairs),
            effects if findings.grid.uri else effects.slice(0, 0),
            findings.grid.note,
        )


def predict(
    run: Run,
    images: StrPath,
    *,
    polarity: "Polarity" = "auto",
    strict: bool = False,
    name: str | None = None,
    shard_size: int = 4096,
    num_workers: int = 1,
    code: Sequence[StrPath] = (),
    device: Literal["cpu", "gpu"] | None = None,
    quiet: bool = True,
) -> Prediction:
    """Classifies one's own images with a run's best network and commits the tables; a repetition is only read.

    Args:
      run: a finished run.
      images: a folder of image files, Parquet with the column image, an IDX file or one image; local or s3://.
      polarity: how grey images look, see `mnist-ray predict --help`.
      strict: whether an image that can't be read is an error; otherwise it is in the table image_errors.
      name: of the predictions; by default made of the run, the images and a hash of the content.
      shard_size: images in one part file.
      num_workers: processes that share the images.
      code, device, quiet: see train; the code that the run was trained with is known.

    Raises:
      MnistRayError: see mnist_ray.errors.
    """
    check_counts(1, shard_size=shard_size, num_workers=num_workers)
    check_choice("polarity", polarity, POLARITIES)
    if name is not None:
        check_name(name)
    with call(quiet=quiet, code=[*code, *run.code]):
        from mnist_ray.data.unlabelled import find_images
        from mnist_ray.evaluation.predict import make_plan
        from mnist_ray.jobs.predict import PredictJob
        from mnist_ray.jobs.predict import predict as predict_images

        storage, source = open_storage(run.storage), find_images(os.fspath(images))
        plan = make_plan(storage, check_name(run.name, "run"), source, polarity=polarity, shard_size=shard_size)
        done = predict_images(PredictJob(plan, source, storage, name, num_workers, strict, _placement(device)))
        return Prediction(done.name, storage.uri, done.already_done)


def query(
    sql: str, *, storage: StrPath = STORAGE, evaluation: Evaluation | None = None, quiet: bool = True
) -> pa.Table:
    """Runs SQL on a storage's tables, such as "SELECT run, accuracy FROM metrics"; needs DuckDB.

    Args:
      sql: a statement; its tables are those of Evaluation.table, and runs and grids.
      storage: folder or s3://bucket/prefix of all results.
      evaluation: the only one whose tables to read; by default those of all, and `evaluation` tells which.
      quiet: see train.

    Raises:
      MnistRayError: see mnist_ray.errors.
    """
    with call(quiet=quiet):
        from mnist_ray.report.query import query_table
        from mnist_ray.results.evaluation_folder import committed_evaluations

        place = open_storage(os.fspath(storage)) if evaluation is None else evaluation._folder.storage
        folders = committed_evaluations(place) if evaluation is None else [evaluation._folder]
        return query_table(place, folders, sql)


def _codes() -> tuple[str, ...]:
    """Returns the code that was given to this call, as it can be given to another."""
    return tuple(code.package or str(code.path) for code in given_code())


def _placement(device: str | None) -> Placement:
    if device is not None:
        check_choice("device", device, ("cpu", "gpu"))
    return Placement(None if device is None else device == "gpu")


def _check_trackers(log: Sequence[str]) -> None:
    for tracker in log:
        check_choice("log", tracker, TRACKERS)
