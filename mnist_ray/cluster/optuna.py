"""The tuning job with Optuna: Ray Tune asks for one setting at a time; a trial trains a setting with all its seeds."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from mnist_ray.cluster.trials import Watcher, WorkerSettings, train_runs
from mnist_ray.cluster.tune_job import TuneJob, read_all_progress
from mnist_ray.cluster.tuner import Trials, tuning_session
from mnist_ray.config.settings import GridConfig, Range
from mnist_ray.grids.search import Search
from mnist_ray.results.grid_folder import GridFolder
from mnist_ray.results.run_progress import RunProgress
from mnist_ray.storage.storage import Storage
from mnist_ray.tracking.grid_progress import GridProgress
from mnist_ray.tracking.trackers import Tracking

OBJECTIVE = "val_loss"


def train_suggestions(
    job: TuneJob,
    search: Search,
    storage: Storage,
    samples: list[dict[str, Any]],
    view: GridProgress,
    tracking: Tracking,
) -> int:
    """Trains settings that Optuna suggests; the objective is the lowest validation loss, averaged over the seeds.

    Args:
      job: the search.
      search: its kind and size.
      storage: the storage with its folder.
      samples: the settings so far; each suggestion is appended.
      view: gets the runs' progress.
      tracking: gets the runs.

    Returns:
      The number of runs that were trained.

    Raises:
      MnistRayError: see mnist_ray.errors; finished runs are kept.
    """
    num_before = len(samples)
    losses = [_objective([view.progress[run.run] for run in job.runs([sample])]) for sample in samples]
    folder = GridFolder(storage, job.name)
    try:
        with tuning_session(job, storage, _Suggestions(view, tracking, job, folder, search, samples)) as session:
            searcher = _searcher(job.grid, search, samples, losses)
            num_samples = search.num_samples - num_before
            session.fit(Trials(_train_suggestion, {}, {}, searcher=searcher, num_samples=num_samples))
    finally:
        runs = job.runs(samples)
        tracking.update(run.run for run in runs)
        folder.write_runs(runs, read_all_progress(storage, runs))
    job.check_done(view.progress.values())
    # Count new samples: Optuna may have suggested the same settings again.
    return (len(samples) - num_before) * len(job.grid.seeds)


class _Suggestions(Watcher):
    """Adds each suggested setting to the view and to grid.json."""

    def __init__(
        self,
        view: GridProgress,
        tracking: Tracking,
        job: TuneJob,
        folder: GridFolder,
        search: Search,
        samples: list[dict[str, Any]],
    ) -> None:
        super().__init__(view, tracking)
        self._job, self._folder, self._search, self._samples = job, folder, search, samples

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        """Adds a suggestion; Tune calls this for every start of a trial, including restarts."""
        del iteration, trials
        sample = _sample(trial.config, self._job.grid)
        if sample in self._samples:
            return
        self._samples.append(sample)
        self.view.add(self._job.runs([sample]))
        self._folder.claim(self._job.grid, self._job.runs(self._samples), search=self._search, samples=self._samples)


def _searcher(grid: GridConfig, search: Search, samples: Sequence[Mapping[str, Any]], losses: Sequence[float]) -> Any:
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    space: dict[str, Any] = {
        # Indices: a level may be a list, which Optuna doesn't accept.
        name: optuna.distributions.CategoricalDistribution(list(range(len(levels))))
        for name, levels in grid.axes.items()
    }
    space |= {name: _distribution(limits) for name, limits in grid.ranges.items()}
    points = [
        {name: list(grid.axes[name]).index(value) if name in grid.axes else value for name, value in sample.items()}
        for sample in samples
    ]
    known = {"points_to_evaluate": points, "evaluated_rewards": list(losses)} if points else {}
    # With the original seed a resumed search would repeat its first suggestions.
    seed = (search.seed + 1_000_003 * len(samples)) % 2**32
    return OptunaSearch(space, metric=OBJECTIVE, mode="min", seed=seed, **known)


def _distribution(limits: Range) -> Any:
    from optuna.distributions import FloatDistribution, IntDistribution

    if limits.kind == "randint":
        return IntDistribution(int(limits.low), int(limits.high))
    return FloatDistribution(limits.low, limits.high, log=limits.kind == "loguniform")


def _sample(chosen: Mapping[str, Any], grid: GridConfig) -> dict[str, Any]:
    return {name: grid.axes[name][value] if name in grid.axes else value for name, value in chosen.items()}


def _objective(progress: Sequence[RunProgress]) -> float:
    """Returns the mean of the runs' lowest validation losses; infinity if any run diverged."""
    losses = [row.best_val_loss for row in progress if row.best_val_loss is not None and row.status != "diverged"]
    return fmean(losses) if losses and len(losses) == len(progress) else math.inf


def _train_suggestion(chosen: dict[str, Any], *, settings: WorkerSettings) -> None:
    job = settings.job
    train_runs(job.runs([_sample(chosen, job.grid)]), settings, lambda progress: {OBJECTIVE: _objective(progress)})
