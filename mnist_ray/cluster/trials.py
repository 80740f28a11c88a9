"""The work of Ray Tune's trials and their reports to the driver."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray import cloudpickle, tune
from ray.exceptions import RayError, RayTaskError

from mnist_ray.cluster.train_job import TrainJob
from mnist_ray.cluster.trainer import fit_run
from mnist_ray.cluster.tune_job import TuneJob
from mnist_ray.errors import MnistRayError, NetworkFailedError, RunFailedError
from mnist_ray.grids.asha import Decision, Rungs
from mnist_ray.grids.grid import GridRun
from mnist_ray.models.device import prepared
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.results.run_progress import RunProgress, read_progress
from mnist_ray.storage.storage import Storage, open_storage
from mnist_ray.text.escape import say_line
from mnist_ray.tracking.grid_progress import GridProgress
from mnist_ray.tracking.trackers import Tracking
from mnist_ray.training.data import cached_data
from mnist_ray.training.train_stack import train_stack


class Watcher(tune.Callback, tune.Stopper):  # type: ignore[misc]
    """Passes the workers' reports to the view and the trackers, and ends the grid at the first failure.

    Attributes:
      failure: the permanent error that ends the grid, or None.
    """

    def __init__(self, view: GridProgress, tracking: Tracking, is_late: Callable[[], bool] = lambda: False) -> None:
        """Makes a watcher that also ends all trials, after an epoch, once it is late."""
        self.view, self.tracking, self._is_late = view, tracking, is_late
        self.failure: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks to a file that is never read here, and a view can't be pickled.
        return {}

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **_: Any) -> None:
        """Handles a report; called by Tune."""
        del iteration, trials, trial
        for note in result.get("notes", ()):
            say_line(note)
        rows = [RunProgress(**row) for row in result.get("progress", ())]
        self.view.update(rows)
        self.tracking.update(row.run for row in rows)
        if "failure" in result:
            self.failure = result["failure"]

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        """Reports that a trial is restarted; called by Tune."""
        del iteration, trials
        if not self._is_bug(trial):
            say_line("a worker was lost; its runs go on from their last epochs")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        """Reports that a trial is given up; called by Tune."""
        del iteration, trials
        if not self._is_bug(trial):
            say_line("a worker was lost and is not started again; the others go on")

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Tells whether to end one trial; Tune asks after each report."""
        del trial_id, result
        return False

    def stop_all(self) -> bool:
        """Tells whether to end all trials; Tune asks after each report."""
        return self.failure is not None or self._is_late()

    def _is_bug(self, trial: Any) -> bool:
        """Tells whether an exception in a trial's code is the failure, which then ends the grid."""
        # get_pickled_error() looks for the file where Tune moves it only later.
        error = cloudpickle.loads(Path(trial.pickled_error_file).read_bytes()) if trial.pickled_error_file else None
        if isinstance(error, RayTaskError) and not isinstance(error.cause, RayError | RunFailedError):
            self.failure = error
        return self.failure is not None


class RungKeeper:
    """Actor with a grid's rungs, shared by all workers."""

    def __init__(self, rungs: Rungs) -> None:
        self._rungs = rungs

    def judge(self, run: str, epoch: int, val_loss: float) -> bool:
        """See Rungs.judge."""
        return self._rungs.judge(run, epoch, val_loss)

    def decisions(self) -> list[Decision]:
        """Returns the decisions so far."""
        return self._rungs.decisions


def start_rungs(rungs: Rungs, progress: Iterable[RunProgress], storage: Storage) -> Any:
    """Starts the actor, with the rungs that runs reached in earlier commands, read from their histories."""
    for run in progress:
        history = RunFolder(storage, run.run).history() if run.epochs_done else ()
        for row in history:
            if rungs.is_rung(row.epoch):
                rungs.remember(row.epoch, [min(before.val_loss for before in history[: row.epoch])])
    return ray.remote(num_cpus=0)(RungKeeper).remote(rungs)


@dataclass(frozen=True)
class WorkerSettings:
    """Settings that all trials of a grid share.

    Attributes:
      job: the grid, with absolute paths, because workers run in other folders.
      use_gpu: whether each worker gets a GPU.
      rungs: the actor that ends runs early, or None.
    """

    job: TuneJob
    use_gpu: bool
    rungs: Any


def train_trial(chosen: dict[str, int], *, trials: Sequence[Sequence[GridRun]], settings: WorkerSettings) -> None:
    """Trains the runs of the chosen trial."""
    train_runs(trials[chosen["trial"]], settings)


def train_runs(
    runs: Sequence[GridRun],
    settings: WorkerSettings,
    judge: Callable[[Sequence[RunProgress]], dict[str, float]] = lambda _: {},
) -> None:
    """Trains runs and reports their progress.

    Permanent errors are reported; Tune retries a raised error, such as a lost worker's.

    Args:
      runs: the runs of one stack, or a single run.
      settings: the grid's settings.
      judge: returns further metrics to report.
    """
    storage = open_storage(settings.job.storage_uri)
    try:
        if settings.job.workers_per_run:
            _train_on_workers(runs[0], storage, settings)
        else:
            notes: list[str] = []
            for progress in _train_stack(runs, storage, settings, notes):
                tune.report({"progress": [asdict(row) for row in progress], "notes": notes.copy(), **judge(progress)})
                notes.clear()
        final = [read_progress(storage, run.run) for run in runs]
    except NetworkFailedError as error:
        tune.report({"failure": error, **judge([])})
    except RunFailedError:
        # One of the workers that share a run was lost; treat it as the loss of the trial's own worker.
        raise
    except MnistRayError as error:
        tune.report({"failure": error, **judge([])})
    else:
        tune.report({"progress": [asdict(row) for row in final], **judge(final)})


def _train_stack(
    runs: Sequence[GridRun], storage: Storage, settings: WorkerSettings, notes: list[str]
) -> Iterator[Sequence[RunProgress]]:
    device = prepared(torch.device("cuda" if ray.get_gpu_ids() else "cpu"))
    data = cached_data(runs[0].config, settings.job.data_dir, device)
    yield from train_stack(
        runs,
        data,
        storage=storage,
        device=device,
        goes_on=_judge(settings.rungs),
        command_line=settings.job.command_line,
        say=notes.append,
    )


def _judge(rungs: Any) -> Callable[[RunProgress], bool]:
    """Returns a function that decides after each epoch whether a run continues."""

    def goes_on(progress: RunProgress) -> bool:
        return bool(ray.get(rungs.judge.remote(progress.run, progress.epochs_done, progress.best_val_loss)))

    return goes_on if rungs else lambda _: True


def _train_on_workers(run: GridRun, storage: Storage, settings: WorkerSettings) -> None:
    """Trains one run with its own TorchTrainer; divergence is recorded in the run's folder and ends only the trial."""
    folder, grid = RunFolder(storage, run.run), settings.job
    folder.claim(run.config, cached_data(run.config, grid.data_dir, torch.device("cpu")))
    # Tune restarts the trial.
    job = TrainJob(
        run.config, run.run, grid.storage_uri, grid.data_dir, grid.workers_per_run, max_failures=0,
        command_line=grid.command_line,
    )  # fmt: skip
    try:
        # In the trial's folder, which is removed with this Ray: a killed trial can't clean up.
        fit_run(job, use_gpu=settings.use_gpu, scratch=Path.cwd())
    except MnistRayError:
        if folder.status().status != "diverged":
            raise
