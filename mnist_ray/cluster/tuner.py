"""The tuning job: Ray Tune schedules stacks of runs; a trial is a stack, its worker goes from stack to stack."""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray import tune
from ray.exceptions import RayError
from ray.tune.execution import class_cache
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mnist_ray.cluster.resources import Needs
from mnist_ray.cluster.session import ray_session
from mnist_ray.cluster.trials import StopAtFailure, Watcher, WorkerSettings, start_rungs, train_trial
from mnist_ray.cluster.tune_job import TuneJob, read_all_progress
from mnist_ray.config.settings import TrainConfig
from mnist_ray.errors import ClusterError, RunFailedError
from mnist_ray.grids.grid import GridRun
from mnist_ray.results.grid_folder import GridFolder
from mnist_ray.results.lineage import command_line
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.storage.storage import Storage, open_storage
from mnist_ray.text.escape import say_line
from mnist_ray.tracking.grid_progress import GridProgress
from mnist_ray.tracking.trackers import Tracking, check_trackers, track
from mnist_ray.training.data import data_settings, load_data
from mnist_ray.training.data_lines import training_lines

_REQUESTS_AT_ONCE = 16
# Tune's own files are of no use here: the runs' folders are what a grid goes on from.
_TUNE_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
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
    check_trackers(job.log, storage)
    storage.check()
    samples = job.samples()
    runs = job.runs(samples)
    check_data(job, runs)
    folder = GridFolder(storage, job.name)
    folder.claim(job.grid, runs, search=job.search, samples=samples)
    before = read_all_progress(storage, runs)
    view = GridProgress(runs, before)
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        done = [name for name, found in before.items() if found.status in ("finished", "stopped")]
        list(pool.map(lambda name: RunFolder(storage, name).mend(view.say), done))
    with track(job.log, storage, experiment=job.name, say=view.say) as tracking:
        num_trained = train_missing(job, storage, runs, view, tracking)
    return TuneOutcome(storage.uri_of(folder.path()), num_trained, folder.read_runs())


def check_data(job: TuneJob, runs: Sequence[GridRun]) -> None:
    """Loads the runs' data and says what was understood: an error in it shows before anything is started.

    Raises:
      DataError: the data is missing, damaged or too small.
      StorageError: the storage of the user's own data can't be read.
    """
    sizes: dict[TrainConfig, set[int]] = {}
    for run in runs:
        sizes.setdefault(data_settings(run.config), set()).add(run.config.global_batch_size)
    for config, global_batch_sizes in sizes.items():
        for line in training_lines(config, load_data(config, job.data_dir, torch.device("cpu")), global_batch_sizes):
            say_line(line)


def train_missing(
    job: TuneJob, storage: Storage, runs: Sequence[GridRun], view: GridProgress, tracking: Tracking
) -> int:
    """Trains the runs that are not done, writes runs.parquet and returns how many there were.

    Raises:
      MnistRayError: as the error tree says; runs.parquet is written all the same.
    """
    missing = [run for run in runs if view.progress[run.run].status == "unfinished"]

    def stacks_of(at_once: int, gpu_memory: int | None) -> Trials:
        trials = job.trials(missing, at_once, gpu_memory=gpu_memory)
        points = tune.grid_search(list(range(len(trials))))
        return Trials(train_trial, {"trials": trials}, {"trial": points})

    try:
        if missing:
            run_tuner(job, storage, stacks_of, Watcher(view, tracking))
    finally:
        # Those that were done before too: an earlier command may have tracked nothing.
        tracking.update(run.run for run in runs)
        GridFolder(storage, job.name).write_runs(runs, view.progress)
    check_done(job, view)
    return len(missing)


def check_done(job: TuneJob, view: GridProgress) -> None:
    """Checks that every run has come to its end.

    Raises:
      RunFailedError: some haven't.
    """
    unfinished = [row for row in view.progress.values() if row.status == "unfinished"]
    if unfinished:
        raise RunFailedError(
            f"grid {job.name!r}: {len(unfinished)} runs are not finished: a worker was lost more than "
            f"--max-failures {job.max_failures} times; the same command goes on with them"
        )


@dataclass(frozen=True)
class Trials:
    """What Tune calls, and with what.

    Attributes:
      trainable: called with a point of the space, the parameters and settings=WorkerSettings.
      parameters: what all calls share.
      space: Tune's space of points.
      searcher: what chooses points, for num_samples of them; None for every point of the space.
      num_samples: points that the searcher chooses.
    """

    trainable: Callable[..., None]
    parameters: dict[str, Any]
    space: dict[str, Any]
    searcher: Any = None
    num_samples: int = 1


def run_tuner(
    job: TuneJob, storage: Storage, make_trials: Callable[[int, int | None], Trials], watcher: Watcher
) -> None:
    """Runs trials on a Ray cluster, or on a Ray of our own.

    Args:
      job: the grid and how it is trained.
      storage: where its folder is.
      make_trials: called with the number of trials that run at once, and the bytes of the smallest GPU that they get,
        None if they get none.
      watcher: takes the workers' reports.

    Raises:
      MnistRayError: as the error tree says.
    """
    # The view tells of lost workers, and an error that a worker reports is raised.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    for name, value in _TUNE_SETTINGS.items():
        os.environ.setdefault(name, value)
    workers = max(job.workers_per_run, 1)
    needs = Needs(f"grid {job.name!r}", storage, workers, least=workers, option="workers-per-run")
    with (
        watcher.view,
        ray_session(needs, job.placement) as use_gpu,
        tempfile.TemporaryDirectory(prefix="mnist-ray-tune-") as bookkeeping,
    ):
        at_once = job.trials_at_once(ray.cluster_resources().get("GPU" if use_gpu else "CPU", 0), use_gpu=use_gpu)
        trials = make_trials(at_once, _smallest_gpu_memory() if use_gpu else None)
        rungs = start_rungs(job.asha, watcher.view.progress.values(), storage) if job.asha else None
        settings = WorkerSettings(
            storage.uri, job.data_dir.absolute(), job.workers_per_run, use_gpu, rungs, command_line()
        )
        trainable = tune.with_parameters(trials.trainable, settings=settings, **trials.parameters)
        tuner = tune.Tuner(
            tune.with_resources(trainable, _resources(job, use_gpu=use_gpu)),
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
                callbacks=[watcher],
                stop=StopAtFailure(watcher.failure),
                failure_config=tune.FailureConfig(max_failures=job.max_failures),
            ),
        )
        try:
            with _keys_kept_from_ray():
                tuner.fit()
        except (tune.TuneError, RayError) as error:
            raise ClusterError(f"grid {job.name!r}: Ray failed: {str(error).strip().splitlines()[-1]}") from error
        finally:
            if rungs:
                _keep_decisions(rungs, GridFolder(storage, job.name), watcher)
    if watcher.failure.error:
        raise watcher.failure.error


@contextmanager
def _keys_kept_from_ray() -> Iterator[None]:
    """Has Tune leave this process's AWS keys out of its actors' runtime environments, which Ray writes to its logs.

    They aren't needed there: a local Ray's workers inherit this environment, a cluster's nodes have keys of their own.
    """
    copied = class_cache.ENV_VARS_TO_PROPAGATE
    keys = {name for name in copied if name.startswith("AWS_")}
    copied -= keys
    try:
        yield
    finally:
        copied |= keys


def _keep_decisions(rungs: Any, folder: GridFolder, watcher: Watcher) -> None:
    try:
        decisions = ray.get(rungs.decisions.remote())
    except RayError as error:
        # What ended Ray is the error to tell; the runs' histories hold all that a restart needs.
        watcher.view.say(f"asha.json: lacks the decisions of this command ({type(error).__name__})")
    else:
        folder.write_decisions(decisions)


def _smallest_gpu_memory() -> int:
    """Returns the bytes of the smallest GPU of the cluster's nodes."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU")]
    on_node = [NodeAffinitySchedulingStrategy(node, soft=False) for node in nodes]
    tasks = [ray.remote(num_gpus=1, scheduling_strategy=place)(_gpu_memory).remote() for place in on_node]
    return int(min(ray.get(tasks)))


def _gpu_memory() -> int:
    return int(torch.cuda.get_device_properties(0).total_memory)


def _resources(job: TuneJob, *, use_gpu: bool) -> dict[str, float]:
    if job.workers_per_run:
        # The trial itself only waits for its workers; with the CPU that Tune would give it, two CPUs are too few.
        return {"CPU": 0, "node:__internal_head__": 0.001}
    return {"CPU": 1, "GPU": job.gpus_per_stack} if use_gpu else {"CPU": 1}
