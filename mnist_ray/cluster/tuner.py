"""The tuning job: Ray Tune schedules stacks of runs; each trial is a stack, and workers are reused across trials."""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.exceptions import RayError
from ray.tune.execution import class_cache
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mnist_ray.cluster.ray_private import ON_HEAD_NODE
from mnist_ray.cluster.resources import Needs
from mnist_ray.cluster.session import ray_session
from mnist_ray.cluster.trials import Watcher, WorkerSettings, start_rungs, train_trial
from mnist_ray.cluster.tune_job import TuneJob
from mnist_ray.errors import ClusterError
from mnist_ray.grids.grid import GridRun
from mnist_ray.results.grid_folder import GridFolder
from mnist_ray.storage.storage import Storage
from mnist_ray.text.escape import say_line

# Tune's own files are not needed: a grid resumes from its runs' folders.
_TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
}


@dataclass(frozen=True)
class Trials:
    """The function that Tune calls, and its arguments.

    Attributes:
      trainable: called with a point of the space, the parameters and settings=WorkerSettings.
      parameters: arguments that all calls share.
      space: Tune's search space.
      searcher: chooses num_samples points; None for every point of the space.
      num_samples: points that the searcher chooses.
    """

    trainable: Callable[..., None]
    parameters: dict[str, Any]
    space: dict[str, Any]
    searcher: Any = None
    num_samples: int = 1


class TuningSession:
    """A Ray cluster, or a local Ray, that trains the runs of a grid.

    Attributes:
      at_once: trials that run at once; 0 if none fits.
    """

    def __init__(self, job: TuneJob, storage: Storage, watcher: Watcher, *, use_gpu: bool, bookkeeping: Path) -> None:
        """Counts the cluster's CPUs or GPUs; see tuning_session."""
        self._job, self._storage, self._watcher = job, storage, watcher
        self._use_gpu, self._bookkeeping = use_gpu, bookkeeping
        self.at_once = job.trials_at_once(ray.cluster_resources().get("GPU" if use_gpu else "CPU", 0), use_gpu=use_gpu)

    @cached_property
    def _gpu_memory(self) -> int | None:
        """Bytes of the smallest GPU; None if trials run on CPUs."""
        return _smallest_gpu_memory() if self._use_gpu else None

    def divide(self, runs: Sequence[GridRun]) -> list[tuple[GridRun, ...]]:
        """Returns the runs of each trial, see TuneJob.trials."""
        return self._job.trials(runs, self.at_once, gpu_memory=self._gpu_memory)

    def train(self, runs: Sequence[GridRun]) -> None:
        """Trains runs of the grid to their ends.

        Raises:
          MnistRayError: see mnist_ray.errors.
        """
        trials = self.divide(runs)
        points = tune.grid_search(list(range(len(trials))))
        self.fit(Trials(train_trial, {"trials": trials}, {"trial": points}))

    def fit(self, trials: Trials) -> None:
        """Runs trials to their ends.

        Raises:
          MnistRayError: see mnist_ray.errors.
        """
        job, watcher = self._job, self._watcher
        rungs = start_rungs(job.asha, watcher.view.progress.values(), self._storage) if job.asha else None
        settings = WorkerSettings(replace(job, storage_uri=self._storage.uri), self._use_gpu, rungs)
        # Tune would resume an experiment in the same folder.
        with tempfile.TemporaryDirectory(dir=self._bookkeeping) as folder:
            tuner = _tuner(trials, settings, watcher, at_once=self.at_once, bookkeeping=folder)
            try:
                with _keys_kept_from_ray():
                    tuner.fit()
            except (tune.TuneError, RayError) as error:
                raise ClusterError(f"grid {job.name!r}: Ray failed: {str(error).strip().splitlines()[-1]}") from error
            finally:
                if rungs:
                    _keep_decisions(rungs, GridFolder(self._storage, job.name))
        if watcher.failure:
            raise watcher.failure


@contextmanager
def tuning_session(job: TuneJob, storage: Storage, watcher: Watcher) -> Iterator[TuningSession]:
    """Connects to the job's cluster, or starts a local Ray, and shows the progress until it ends.

    Args:
      job: the grid and how to train it.
      storage: the storage with its folder.
      watcher: handles the workers' reports.

    Raises:
      MnistRayError: see mnist_ray.errors.
    """
    # The view reports lost workers, and errors that workers report are raised by TuningSession.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    for name, value in _TUNE_SETTINGS.items():
        os.environ.setdefault(name, value)
    workers = max(job.workers_per_run, 1)
    needs = Needs(f"grid {job.name!r}", storage, workers, least=workers, option="workers-per-run")
    with (
        ray_session(needs, job.placement) as use_gpu,
        tempfile.TemporaryDirectory(prefix="mnist-ray-tune-") as bookkeeping,
    ):
        session = TuningSession(job, storage, watcher, use_gpu=use_gpu, bookkeeping=Path(bookkeeping))
        what = "run" if job.workers_per_run else "stack of runs" if session.at_once == 1 else "stacks of runs"
        say_line(f"training grid {job.name}, {session.at_once} {what} at a time")
        with watcher.view:
            yield session


def _tuner(trials: Trials, settings: WorkerSettings, watcher: Watcher, *, at_once: int, bookkeeping: str) -> tune.Tuner:
    job = settings.job
    trainable = tune.with_parameters(trials.trainable, settings=settings, **trials.parameters)
    return tune.Tuner(
        tune.with_resources(trainable, _resources(job, use_gpu=settings.use_gpu)),
        param_space=trials.space,
        tune_config=tune.TuneConfig(
            reuse_actors=not job.workers_per_run,
            max_concurrent_trials=at_once,
            search_alg=trials.searcher,
            num_samples=trials.num_samples,
        ),
        run_config=tune.RunConfig(
            name=job.name,
            storage_path=bookkeeping,
            verbose=0,
            # In a notebook, Tune's default displays an empty cell.
            progress_reporter=tune.CLIReporter(),
            callbacks=[watcher],
            stop=watcher,
            failure_config=tune.FailureConfig(max_failures=job.max_failures),
        ),
    )


@contextmanager
def _keys_kept_from_ray() -> Iterator[None]:
    """Keeps this process's AWS keys out of the runtime environments of Tune's actors, which Ray writes to its logs.

    A local Ray's workers inherit this process's environment; a cluster's nodes have their own keys.
    """
    copied = class_cache.ENV_VARS_TO_PROPAGATE
    keys = {name for name in copied if name.startswith("AWS_")}
    copied -= keys
    try:
        yield
    finally:
        copied |= keys


def _keep_decisions(rungs: Any, folder: GridFolder) -> None:
    try:
        decisions = ray.get(rungs.decisions.remote())
    except RayError as error:
        # The error that ended Ray is raised elsewhere; a restart only needs the runs' histories.
        say_line(f"asha.json: lacks the decisions of this command ({type(error).__name__})")
    else:
        folder.write_decisions(decisions)


def _smallest_gpu_memory() -> int:
    """Returns the memory, in bytes, of the cluster's smallest GPU."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    on_node = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    tasks = [ray.remote(num_gpus=1, scheduling_strategy=place)(_gpu_memory).remote() for place in on_node]
    return int(min(ray.get(tasks)))


def _gpu_memory() -> int:
    return int(torch.cuda.get_device_properties(0).total_memory)


def _resources(job: TuneJob, *, use_gpu: bool) -> dict[str, float]:
    if job.workers_per_run:
        # The trial only waits for its workers; Tune's default of one CPU for it would leave a worker without one.
        return dict(ON_HEAD_NODE)
    return {"CPU": 1, "GPU": job.gpus_per_stack} if use_gpu else {"CPU": 1}
