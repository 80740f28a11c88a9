"""The tuning job with Optuna: Ray Tune asks for settings one by one; a trial is one of them with all its seeds."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from mnist_ray.cluster.trials import Watcher, WorkerSettings, train_runs
from mnist_ray.cluster.tune_job import TuneJob, read_all_progress
from mnist_ray.cluster.tuner import Trials, run_tuner
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
    """Trains settings that Optuna suggests, each judged by the mean over its seeds of the lowest validation loss.

    Args:
      job: the search.
      search: its kind and size.
      storage: where its folder is.
      samples: the settings so far; each suggestion is added.
      view: told how far the runs are.
      tracking: told of the runs.

    Returns:
      The number of runs that were trained.

    Raises:
      MnistRayError: as the error tree says; runs that were done by then stay done.
    """
    num_before = len(samples)
    losses = [_objective([view.progress[run.run] for run in job.runs([sample])]) for sample in samples]

    def suggestions(_: int, __: int | None) -> Trials:
        searcher = _searcher(job.grid, search, samples, losses)
        num_samples = search.num_samples - num_before
        return Trials(_train_suggestion, {}, {}, searcher=searcher, num_samples=num_samples)

    folder = GridFolder(storage, job.name)
    try:
        run_tuner(job, storage, suggestions, _Suggestions(view, tracking, job, folder, search, samples))
    finally:
        runs = job.runs(samples)
        tracking.update(run.run for run in runs)
        folder.write_runs(runs, read_all_progress(storage, runs))
    job.check_done(view.progress.values())
    # It may have suggested the same settings again.
    return (len(samples) - num_before) * len(job.grid.seeds)


class _Suggestions(Watcher):
    """Takes up each suggested setting, in the view and in grid.json."""

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
        """Takes up a suggestion; Tune calls this, also when a trial is started again."""
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
        # Indices: a level may be a list, which Optuna doesn't take.
        name: optuna.distributions.CategoricalDistribution(list(range(len(levels))))
        for name, levels in grid.axes.items()
    }
    space |= {name: _distribution(found) for name, found in grid.ranges.items()}
    points = [
        {name: list(grid.axes[name]).index(value) if name in grid.axes else value for name, value in sample.items()}
        for sample in samples
    ]
    known = {"points_to_evaluate": points, "evaluated_rewards": list(losses)} if points else {}
    # With the seed of the beginning it would suggest the beginning again.
    seed = (search.seed + 1_000_003 * len(samples)) % 2**32
    return OptunaSearch(space, metric=OBJECTIVE, mode="min", seed=seed, **known)


def _distribution(found: Range) -> Any:
    from optuna.distributions import FloatDistribution, IntDistribution

    if found.kind == "randint":
        return IntDistribution(int(found.low), int(found.high))
    return FloatDistribution(found.low, found.high, log=found.kind == "loguniform")


def _sample(chosen: Mapping[str, Any], grid: GridConfig) -> dict[str, Any]:
    return {name: grid.axes[name][value] if name in grid.axes else value for name, value in chosen.items()}


def _objective(found: Sequence[RunProgress]) -> float:
    """Returns the mean of the lowest validation losses; infinity if a run diverged, whatever the other seeds did."""
    losses = [row.best_val_loss for row in found if row.best_val_loss is not None and row.status != "diverged"]
    return fmean(losses) if losses and len(losses) == len(found) else math.inf


def _train_suggestion(chosen: dict[str, Any], *, settings: WorkerSettings) -> None:
    job = settings.job
    train_runs(job.runs([_sample(chosen, job.grid)]), settings, lambda found: {OBJECTIVE: _objective(found)})
