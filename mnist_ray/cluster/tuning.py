"""The tuning job: Ray Tune schedules stacks of runs; a trial is a stack, its worker goes from stack to stack."""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray import tune
from ray.exceptions import RayError

from mnist_ray import errors
from mnist_ray.cluster.session import ray_session
from mnist_ray.cluster.tuning_trials import StopAtFailure, Watcher, WorkerSettings, start_rungs, train_trial
from mnist_ray.errors import ClusterError, ConfigError, RunFailedError
from mnist_ray.grid_folder import GridFolder
from mnist_ray.grid_progress import GridProgress
from mnist_ray.grids import GridRun, expand
from mnist_ray.planning import TuneJob, read_all_progress
from mnist_ray.storage import Storage, open_storage
from mnist_ray.training_data import data_settings, load_data

# Tune's own files are of no use here: the runs' folders are what a grid goes on from.
_TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True)
class TuneOutcome:
    """A grid whose runs are all done.

    Attributes:
      uri: of the grid's folder.
      num_trained: runs that this command trained.
      rows: the rows of runs.parquet.
    """

    uri: str
    num_trained: int
    rows: list[dict[str, Any]]


def tune_grid(job: TuneJob) -> TuneOutcome:
    """Trains what is missing of a grid, and leaves each run as `train` would.

    Raises:
      MnistRayError: as the error tree says; runs that were done by then stay done.
    """
    storage = open_storage(job.storage_uri)
    storage.check()
    runs = expand(job.grid, name=job.name, max_runs=job.max_runs)
    if job.asha and job.workers_per_run:
        raise ConfigError("scheduler='asha': works on stacks; leave out --workers-per-run")
    for config in dict.fromkeys(data_settings(run.config) for run in runs):
        # An error in the data shows before anything is started.
        load_data(config, job.data_dir, torch.device("cpu"))
    folder = GridFolder(storage, job.name)
    folder.claim(job.grid, runs)
    before = read_all_progress(storage, runs)
    missing = [run for run in runs if before[run.run].status == "unfinished"]
    view = GridProgress(runs, before)
    try:
        if missing:
            with view:
                _train(job, storage, missing, view)
    finally:
        folder.write_runs(runs, view.progress)
    _check_done(job, [run for run in runs if view.progress[run.run].status == "unfinished"])
    return TuneOutcome(storage.uri_of(folder.path()), len(missing), folder.read_runs())


def _check_done(job: TuneJob, unfinished: Sequence[GridRun]) -> None:
    if unfinished:
        raise RunFailedError(
            f"grid {job.name!r}: {len(unfinished)} runs are not finished, as their workers were lost "
            f"{job.max_failures + 1} times; the same command goes on with them"
        )


def _train(job: TuneJob, storage: Storage, runs: Sequence[GridRun], view: GridProgress) -> None:
    watcher = Watcher(view)
    for name, value in _TUNE_SETTINGS.items():
        os.environ.setdefault(name, value)
    with (
        ray_session(num_workers=max(job.workers_per_run, 1)) as use_gpu,
        tempfile.TemporaryDirectory(prefix="mnist-ray-tune-") as bookkeeping,
    ):
        resources = ray.cluster_resources()
        at_once = job.trials_at_once(resources.get("GPU" if use_gpu else "CPU", 0), use_gpu=use_gpu)
        trials = job.trials(runs, at_once, use_gpu=use_gpu)
        rungs = start_rungs(job.asha, view.progress.values(), storage) if job.asha else None
        settings = WorkerSettings(storage.uri, job.data_dir.absolute(), job.workers_per_run, rungs)
        trainable = tune.with_parameters(train_trial, trials=trials, settings=settings)
        try:
            tune.Tuner(
                tune.with_resources(trainable, _resources(job, use_gpu=use_gpu)),
                param_space={"trial": tune.grid_search(list(range(len(trials))))},
                tune_config=tune.TuneConfig(reuse_actors=not job.workers_per_run, max_concurrent_trials=at_once),
                run_config=tune.RunConfig(
                    name=job.name,
                    storage_path=bookkeeping,
                    verbose=0,
                    callbacks=[watcher],
                    stop=StopAtFailure(watcher.failure),
                    failure_config=tune.FailureConfig(max_failures=job.max_failures),
                ),
            ).fit()
        except (tune.TuneError, RayError) as error:
            raise ClusterError(f"grid {job.name!r}: Ray failed: {str(error).strip().splitlines()[-1]}") from error
        finally:
            if rungs:
                GridFolder(storage, job.name).write_decisions(ray.get(rungs.decisions.remote()))
    if watcher.failure.kind:
        raise getattr(errors, watcher.failure.kind)(watcher.failure.message)


def _resources(job: TuneJob, *, use_gpu: bool) -> dict[str, float]:
    if job.workers_per_run:
        # The trial itself only waits for its workers; with the CPU that Tune would give it, two CPUs are too few.
        return {"CPU": 0, "node:__internal_head__": 0.001}
    return {"CPU": 1, "GPU": job.gpus_per_stack} if use_gpu else {"CPU": 1}
