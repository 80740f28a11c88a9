"""Trains a grid or a search: Ray Tune schedules the missing runs; if none is missing, Ray isn't started."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import Any

import torch

from mnist_ray.cluster.tune_job import TuneJob, read_all_progress
from mnist_ray.config.settings import TrainConfig
from mnist_ray.data.datasets import DATASETS
from mnist_ray.data.training_data import TrainingData
from mnist_ray.errors import ConfigError
from mnist_ray.grids.grid import GridRun, check_count
from mnist_ray.grids.growth import Growth
from mnist_ray.grids.search import random_samples
from mnist_ray.jobs.growing_runs import Session
from mnist_ray.jobs.tune_growing import GrowingGrid
from mnist_ray.models.network_check import check_networks
from mnist_ray.report.growth_text import Grown, growth_line
from mnist_ray.results.grid_folder import GridFolder
from mnist_ray.results.run_claim import check_data
from mnist_ray.results.run_documents import read_run_document
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.storage.manifest import REQUESTS_AT_ONCE
from mnist_ray.storage.storage import Storage, open_storage
from mnist_ray.text.escape import say_line
from mnist_ray.tracking import pictures
from mnist_ray.tracking.grid_progress import GridProgress
from mnist_ray.tracking.trackers import Tracking, check_trackers, track
from mnist_ray.training.data import data_settings, load_data
from mnist_ray.training.data_lines import training_lines


@dataclass(frozen=True)
class TuneOutcome:
    """A grid whose runs are all done.

    Attributes:
      uri: URI of the grid's folder.
      num_trained: runs that this command trained.
      rows: the rows of runs.parquet.
      grown: what came of a growing grid; None for others.
    """

    uri: str
    num_trained: int
    rows: list[dict[str, Any]]
    grown: Grown | None = None


def tune(job: TuneJob) -> TuneOutcome:
    """Trains a grid's missing runs; each result is the same as from `train`.

    With Optuna, earlier suggestions are finished first and count towards the number of samples.

    Raises:
      MnistRayError: see mnist_ray.errors; finished runs are kept.
    """
    storage = open_storage(job.storage_uri)
    check_trackers(job.log, storage)
    storage.check()
    folder = GridFolder(storage, job.name)
    if job.suggests:
        _check_optuna(job)
    samples = folder.samples() if job.suggests else job.samples()
    runs = job.runs(samples)
    # Optuna's first suggestion isn't known yet; any settings have the same data.
    first = runs or (job.runs(random_samples(job.grid, job.search)[:1]) if job.search else ())
    shorter = {} if job.growth else folder.shorter_runs(runs)
    tracked = partial(track, job.log, storage, grid=job.name, samples=_check_data(job, first, shorter))
    if job.growth:
        return _grow(job, job.growth, storage, runs, tracked)
    _begin_from(shorter, runs, folder)
    folder.claim(job.grid, runs, search=job.search, samples=samples, shorter=shorter)
    view = GridProgress(runs, read_all_progress(storage, runs))
    if num_done := view.counts()["finished"]:
        say_line(f"grid {job.name}: {num_done} of {len(runs)} runs are finished already")
    _mend(storage, view)
    with tracked(say=say_line) as tracking:
        num_trained = _train_missing(job, storage, runs, view, tracking)
        if job.search and job.suggests and samples is not None and len(samples) < job.search.num_samples:
            from mnist_ray.cluster.optuna import train_suggestions

            num_trained += train_suggestions(job, job.search, storage, samples, view, tracking)
    return TuneOutcome(storage.uri_of(folder.path()), num_trained, folder.read_runs())


def _begin_from(shorter: Mapping[str, str], runs: Sequence[GridRun], folder: GridFolder) -> None:
    """Begins the runs of a grid that was given more epochs with those that its runs have; see shorter_runs."""

    def begin(run: GridRun) -> bool:
        old = RunFolder(folder.storage, shorter[run.run])
        return folder.storage.exists(old.path("config.json")) and RunFolder(folder.storage, run.run).begin_from(
            old, run.config
        )

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        begun = list(pool.map(begin, [run for run in runs if run.run in shorter]))
    if begun:
        say_line(
            f"grid {folder.name!r}: {sum(begun)} of {len(runs)} runs go on from those with fewer epochs, which stay as "
            "single runs"
        )


def _grow(
    job: TuneJob,
    growth: Growth,
    storage: Storage,
    runs: Sequence[GridRun],
    tracked: Callable[..., AbstractContextManager[Tracking]],
) -> TuneOutcome:
    """Trains a growing grid; see tune."""
    grid, folder = GrowingGrid(job, growth, storage, runs), GridFolder(storage, job.name)
    say_line(growth_line(growth, num_settings=len(runs) // len(job.grid.seeds)))
    view = GridProgress(grid.listed, {run.run: grid.progress[run.run] for run in grid.listed})
    _mend(storage, view)
    with tracked(say=say_line) as tracking:

        def open_session(is_late: Callable[[], bool]) -> AbstractContextManager[Session]:
            from mnist_ray.cluster.trials import Watcher
            from mnist_ray.cluster.tuner import tuning_session

            return tuning_session(job, storage, Watcher(view, tracking, is_late))

        grown, num_trained = grid.grow(view, tracking, open_session)
    return TuneOutcome(storage.uri_of(folder.path()), num_trained, folder.read_runs(), grown)


def _check_optuna(job: TuneJob) -> None:
    assert job.search
    try:
        import optuna
    except ImportError:
        raise ConfigError("search='optuna': needs the package optuna; pip install 'mnist-ray[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    check_count(job.search.num_samples * len(job.grid.seeds), job.name, job.max_runs)


def _check_data(job: TuneJob, runs: Sequence[GridRun], shorter: Mapping[str, str]) -> dict[TrainConfig, bytes]:
    """Loads the runs' data, prints a summary and checks networks on it, so that errors show before anything starts.

    Args:
      shorter: see GridFolder.shorter_runs.

    Returns:
      Data settings -> pictures of the data, PNG, if there are trackers for them.

    Raises:
      ConfigError: a network is too deep for the images, or can't be trained.
      ConflictError: a run of the grid has begun with other data.
      DataError: the data is missing, damaged or too small.
      StorageError: the storage of the user's own data can't be read.
    """
    of_data: dict[TrainConfig, list[GridRun]] = {}
    for run in runs:
        of_data.setdefault(data_settings(run.config), []).append(run)
    storage, sheets = open_storage(job.storage_uri), {}
    for config, alike in of_data.items():
        data = load_data(config, job.data_dir, torch.device("cpu"))
        for line in training_lines(config, data, {run.config.global_batch_size for run in alike}):
            say_line(line)
        if config.dataset not in DATASETS:
            names = [name for run in alike for name in (run.run, shorter.get(run.run)) if name]
            _check_begun(storage, names, config, data)
        for note in check_networks([run.config for run in alike], data, num_workers=job.workers_per_run or 1):
            say_line(note)
        if job.log:
            sheets[config] = pictures.samples(data.images)
    return sheets


def _check_begun(storage: Storage, runs: Sequence[str], config: TrainConfig, data: TrainingData) -> None:
    """Checks that the runs that exist were trained on this data, so that a grid never mixes two."""
    folders = [RunFolder(storage, run) for run in runs]
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        exist = list(pool.map(lambda folder: folder.storage.exists(folder.path("config.json")), folders))
        taken = [folder.run for folder in compress(folders, exist)]
        for run, document in zip(taken, pool.map(lambda run: read_run_document(storage, run), taken), strict=True):
            check_data(run, document, config, data)


def _mend(storage: Storage, view: GridProgress) -> None:
    """Repairs finished runs whose tables a killed writer left incomplete."""
    done = [row.run for row in view.progress.values() if row.status in ("finished", "stopped")]
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        list(pool.map(lambda name: RunFolder(storage, name).mend(say_line), done))


def _train_missing(
    job: TuneJob, storage: Storage, runs: Sequence[GridRun], view: GridProgress, tracking: Tracking
) -> int:
    """Trains the unfinished runs, writes runs.parquet and returns the number of runs trained.

    Raises:
      MnistRayError: see mnist_ray.errors; runs.parquet is written even then.
    """
    missing = [run for run in runs if view.progress[run.run].status == "unfinished"]
    try:
        if missing:
            from mnist_ray.cluster.trials import Watcher
            from mnist_ray.cluster.tuner import tuning_session

            with tuning_session(job, storage, Watcher(view, tracking)) as session:
                session.train(missing)
    finally:
        # Include runs finished earlier: that command may not have used a tracker.
        tracking.update(run.run for run in runs)
        GridFolder(storage, job.name).write_runs(runs, view.progress)
    job.check_done(view.progress.values())
    return len(missing)
