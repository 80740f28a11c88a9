"""Trains on Ray: a TorchTrainer runs the training loop; every worker is a rank with a share of each batch."""

import logging
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.exceptions import RayActorError, RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mnist_ray.cluster.resources import Needs
from mnist_ray.cluster.session import ray_session
from mnist_ray.cluster.train_job import MAX_FAILURES, TrainJob
from mnist_ray.errors import ClusterError, MnistRayError, NetworkFailedError, RunFailedError
from mnist_ray.models.device import prepared
from mnist_ray.models.ranks import LostRankError, Ranks
from mnist_ray.results.history import EpochResult
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.storage.storage import Storage, open_storage
from mnist_ray.text.escape import say_line
from mnist_ray.training.data import load_data
from mnist_ray.training.distributed import from_rank_0, shared_errors
from mnist_ray.training.train_run import train_run
from mnist_ray.training.watching import EpochProgress, Watch

_History = tuple[EpochResult, ...]
_ShowWithin = Callable[[EpochProgress], None]
# Time limit for the last progress lines to arrive when a run fails or is stopped.
_LAST_LINES_S = 2.0
# How often a run with a range of workers looks for more; taking them in costs the epoch that has begun.
_RESIZE_INTERVAL_S = 30.0


def train_on_workers(
    job: TrainJob,
    storage: Storage,
    *,
    begin: Callable[[], None],
    show: Callable[[_History], None],
    show_within: _ShowWithin | None,
) -> None:
    """Trains a run on the workers of the job's cluster, or of a local Ray.

    Args:
      job: the run.
      storage: the storage for its folder.
      begin: called once the workers fit; claims the run.
      show: called in a thread with the run's history after each epoch.
      show_within: called in the same thread with the progress within an epoch; None if nobody looks.

    Raises:
      MnistRayError: see mnist_ray.errors.
    """
    # Train logs every report at INFO; our progress lines say more.
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    # A relative path would mean another place to the workers, and to this process once a session has begun.
    job = replace(job, storage_uri=storage.uri)
    least = job.least_workers or job.num_workers
    needs = Needs(f"run {job.run!r}", storage, least, least=least)
    with ray_session(needs, job.placement) as use_gpu:
        begin()
        counts = f"{job.least_workers} to {job.num_workers}" if job.least_workers else f"{job.num_workers}"
        plural = "" if counts == "1" else "s"
        say_line(f"training {job.run} on {counts} worker{plural}, to be started first (about 10 s)")
        with _reports(show, show_within) as reports:
            fit_run(job, use_gpu=use_gpu, reports=reports, watched=show_within is not None)


@contextmanager
def _reports(show: Callable[[_History], None], show_within: _ShowWithin | None) -> Iterator[Queue]:
    """Yields a queue for what rank 0 sends, histories and progress; a thread passes it on."""
    # Keep the queue on this node: a worker's node may be lost.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})

    def listen() -> None:
        # If Ray fails, the workers' error ends the run; here there is just nothing more to show.
        with suppress(RayError):
            while (report := queue.get()) is not None:
                if not isinstance(report, EpochProgress):
                    show(report)
                elif show_within:
                    show_within(report)

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    patience: float | None = _LAST_LINES_S
    try:
        yield queue
        # A finished run loses no line, however busy the machine is.
        patience = None
    finally:
        with suppress(RayError):
            queue.put(None)
        thread.join(patience)


def fit_run(
    job: TrainJob,
    *,
    use_gpu: bool,
    reports: Queue | None = None,
    watched: bool = False,
    scratch: Path | None = None,
) -> None:
    """Trains a claimed run on Ray Train's workers.

    Args:
      job: the run; its storage_uri is absolute.
      use_gpu: whether each worker gets a GPU.
      reports: gets the run's history after each epoch.
      watched: whether reports gets the progress within an epoch too.
      scratch: an existing folder for Ray's bookkeeping; by default the system's folder for temporary files.

    Raises:
      MnistRayError: see mnist_ray.errors.
    """
    max_failures = MAX_FAILURES if job.max_failures is None else job.max_failures
    # Only for Ray's bookkeeping: train_run writes the checkpoints to the storage.
    with tempfile.TemporaryDirectory(prefix="mnist-ray-train-", dir=scratch) as bookkeeping:
        trainer = _Trainer(
            train_worker,
            train_loop_config={"job": job, "reports": reports, "watched": watched},
            scaling_config=ScalingConfig(
                num_workers=(job.least_workers, job.num_workers) if job.least_workers else job.num_workers,
                use_gpu=use_gpu,
                elastic_resize_monitor_interval_s=_RESIZE_INTERVAL_S,
            ),
            run_config=RunConfig(
                name=job.run, storage_path=bookkeeping, failure_config=FailureConfig(max_failures=max_failures)
            ),
        )
        failure = _run(trainer, job)
    if failure:
        raise failure


class _Trainer(TorchTrainer):  # type: ignore[misc]
    """Leaves Ctrl-C to the launcher: Train's own handler ignores one that comes before the workers start."""

    def _register_sigint_handler(self, controller: Any) -> None:
        pass


def _run(trainer: TorchTrainer, job: TrainJob) -> MnistRayError | None:
    try:
        result = trainer.fit()
    except WorkerGroupError as error:
        causes = {rank: str(cause).strip() for rank, cause in sorted(error.worker_failures.items())}
        for text in causes.values():
            # Ray wraps a worker's error; its text is the traceback. The other ranks just lost their connection.
            _, is_there, said = text.rpartition(f"{NetworkFailedError.__name__}: ")
            if is_there:
                failed = NetworkFailedError(said.splitlines()[0])
                failed.trace = text
                raise failed from error
        # A rank that is gone makes the others fail.
        rank, text = min(causes.items(), key=lambda cause: (LostRankError.__name__ in cause[1], cause[0]))
        reason = (text.splitlines() or [type(error.worker_failures[rank]).__name__])[-1]
        raise RunFailedError(
            f"run {job.run!r}: worker {rank} failed ({reason}); "
            "the same command goes on, --max-failures allows more restarts"
        ) from error
    except (TrainingFailedError, RayActorError) as error:
        raise ClusterError(
            f"run {job.run!r}: Ray's controller failed: {str(error).strip().splitlines()[-1]}"
        ) from error
    value: MnistRayError | None = result.return_value
    return value


def train_worker(given: dict[str, Any]) -> MnistRayError | None:
    """Trains as one rank of a run, from the newest checkpoint if there is one.

    Args:
      given: job, the run, and reports and watched, see fit_run.

    Returns:
      None, or a permanent error; Ray would retry a raised one.
    """
    try:
        _train_rank(**given)
    except MnistRayError as error:
        if isinstance(error, NetworkFailedError) and ray.train.get_context().get_world_size() > 1:
            # The other ranks may not have failed: they would wait for this one forever.
            raise
        return error
    return None


def _train_rank(job: TrainJob, reports: Queue | None, watched: bool) -> None:
    context = ray.train.get_context()
    ranks = Ranks(context.get_world_rank(), context.get_world_size())
    device = prepared(torch.device("cpu") if job.placement.use_gpu is False else ray.train.torch.get_device())
    folder = RunFolder(open_storage(job.storage_uri), job.run)
    with shared_errors(ranks):
        data = load_data(job.data_config or job.config, job.data_dir, device)
        # Every node has the data that the run was claimed for.
        folder.claim(job.config, data)
        state = folder.latest_state() if ranks.rank == 0 else None
    watch = None
    if reports is not None and watched and ranks.rank == 0:
        # Doesn't wait, as put would: all ranks would wait with it.
        watch = Watch(reports.actor.put_nowait.remote, world_size=ranks.world_size)
    for reached in train_run(
        folder, job.config, data, device=device, ranks=ranks, state=from_rank_0(state, ranks),
        command_line=job.command_line, last_epoch=job.last_epoch, watch=watch,
    ):  # fmt: skip
        if reports is not None and ranks.rank == 0:
            reports.put(reached.history)
        row = reached.history[-1]
        ray.train.report({"epoch": row.epoch, "val_loss": row.val_loss})
