"""The training job: Ray Train's TorchTrainer around the core's loop, a checkpoint after each epoch."""

import logging
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError

from mnist_ray.cluster.background import beside
from mnist_ray.cluster.resources import Needs
from mnist_ray.cluster.session import ray_session
from mnist_ray.config.placement import ANYWHERE, Placement, on_cluster
from mnist_ray.config.settings import TrainConfig, make_config
from mnist_ray.data.datasets import load_examples
from mnist_ray.errors import ClusterError, DataError, MnistRayError, RunFailedError
from mnist_ray.models.ranks import Ranks
from mnist_ray.results.history import EpochResult, best_epoch
from mnist_ray.results.lineage import command_line
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.results.train_state import TrainState
from mnist_ray.storage.storage import open_storage
from mnist_ray.text.escape import say_line
from mnist_ray.tracking.trackers import Tracking, check_trackers, track
from mnist_ray.training.data import prepare_data
from mnist_ray.training.data_lines import training_lines
from mnist_ray.training.loop import fit

_PROGRESS_INTERVAL_S = 0.5
# What trackers group single runs by; those of a grid are grouped by its name.
EXPERIMENT = "mnist-ray"


@dataclass(frozen=True)
class TrainJob:
    """A run and where and how it is done; nothing here but the config changes the result.

    Attributes:
      config: all that the result depends on.
      run: name of the run.
      storage_uri: where the run's folder goes.
      data_dir: folder of the data sets.
      num_workers: processes that share every batch.
      resume: go on with a run that was interrupted.
      max_failures: how often the workers are started again after one died.
      command_line: the one that asked for the run, for its lineage.
      log: trackers that the run is written to.
      last_epoch: ends the run after this epoch, as one that was stopped; None for the config's own end.
      placement: on which machines.
    """

    config: TrainConfig
    run: str
    storage_uri: str
    data_dir: Path
    num_workers: int = 1
    resume: bool = False
    max_failures: int = 0
    command_line: str = field(default_factory=command_line)
    log: tuple[str, ...] = ()
    last_epoch: int | None = None
    placement: Placement = ANYWHERE


@dataclass(frozen=True)
class TrainOutcome:
    """What came of a run.

    Attributes:
      history: all its epochs.
      already_done: whether the run was finished before, so that nothing was trained.
    """

    history: tuple[EpochResult, ...]
    already_done: bool

    @property
    def best(self) -> EpochResult:
        """The epoch whose weights are kept."""
        return self.history[best_epoch(self.history) - 1]


def train(job: TrainJob) -> TrainOutcome:
    """Trains one run to its end and leaves its folder in the storage.

    One worker on this machine trains in this very process; more, or a job on a cluster, are Ray workers.

    Raises:
      MnistRayError: as the error tree says: data, storage, conflict, cluster, or a run that diverged.
    """
    storage = open_storage(job.storage_uri)
    check_trackers(job.log, storage)
    storage.check()
    with track(job.log, storage, experiment=EXPERIMENT) as tracking:
        return _train_tracked(job, RunFolder(storage, job.run), tracking)


def _train_tracked(job: TrainJob, folder: RunFolder, tracking: Tracking) -> TrainOutcome:
    device = torch.device("cpu")
    examples = load_examples(job.config.dataset, "train", data_dir=job.data_dir)
    data = prepare_data(job.config, examples, device=device)
    if len(data.labels) < job.num_workers:
        raise DataError(f"num_workers={job.num_workers}: more than the {len(data.labels)} training examples")
    reached = None
    if folder.storage.exists(folder.path("config.json")):
        # A conflict, or a run that is done, is told without starting Ray.
        folder.claim(job.config, data, resume=job.resume)
        folder.mend(say_line)
        if folder.is_finished():
            tracking.update([job.run])
            return TrainOutcome(folder.history(), already_done=True)
        # Of a damaged checkpoint nobody would hear from a worker.
        reached = folder.latest_state(say_line)
    # Train announces its local mode and every report at INFO; the epochs' lines say more.
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    with _workers(job, folder) as scaling:
        # Not before the workers are there: a command that asks for too many leaves the name free.
        folder.claim(job.config, data, resume=job.resume)
        for line in training_lines(job.config, data, [job.config.global_batch_size]):
            say_line(line)
        with _progress(folder, job.config, tracking, shown=len(reached.history) if reached else 0):
            fit_run(job, scaling=scaling)
    return TrainOutcome(folder.history(), already_done=False)


@contextmanager
def _workers(job: TrainJob, folder: RunFolder) -> Iterator[ScalingConfig]:
    """Yields the workers of a run: none but this process for one worker on this machine, or those of a Ray."""
    if job.num_workers == 1 and job.max_failures == 0 and not (on_cluster() or job.placement.use_gpu):
        yield ScalingConfig(num_workers=0)
    else:
        needs = Needs(f"run {job.run!r}", folder.storage, job.num_workers, least=job.num_workers)
        with ray_session(needs, job.placement) as use_gpu:
            yield ScalingConfig(num_workers=job.num_workers, use_gpu=use_gpu)


@contextmanager
def _progress(folder: RunFolder, config: TrainConfig, tracking: Tracking, *, shown: int) -> Iterator[None]:
    """Prints a line for each epoch that reaches the storage, wherever the workers are, and has it tracked.

    Args:
      folder: of the run.
      config: of the run.
      tracking: told after each epoch.
      shown: epochs that an earlier command has trained.
    """
    before = folder.history()

    def watch(ended: threading.Event) -> None:
        last = shown
        while True:
            ending = ended.wait(_PROGRESS_INTERVAL_S)
            try:
                history = folder.history()
            except MnistRayError:
                # A failing storage ends the run by what its workers raise; there is only nothing to show now.
                if ending:
                    return
                continue
            # What an earlier command left of epochs that are trained again.
            history = history[:shown] if history == before else history
            if last == shown and 0 < shown < len(history):
                # Not before: what is in the storage may turn out to be damaged.
                say_line(f"{folder.run}: went on after epoch {shown}")
            for row in history[last:]:
                say_line(_epoch_line(folder.run, config, row))
            if len(history) > last or ending:
                tracking.update([folder.run])
            last = len(history)
            if ending:
                return

    with beside(watch):
        yield


def fit_run(job: TrainJob, *, scaling: ScalingConfig, scratch: Path | None = None) -> None:
    """Trains a run that was claimed, on Ray Train's workers.

    Args:
      job: the run.
      scaling: its workers.
      scratch: an existing folder for Ray's own bookkeeping; the system's folder of temporary files by default.

    Raises:
      MnistRayError: as the error tree says.
    """
    settings = {
        "config": job.config.model_dump(mode="json"),
        "run": job.run,
        # Ray's workers run in folders of their own: a relative path would mean another place there.
        "storage_uri": open_storage(job.storage_uri).uri,
        "data_dir": str(job.data_dir.absolute()),
        "command_line": job.command_line,
        "last_epoch": job.last_epoch,
        "use_gpu": job.placement.use_gpu,
    }
    # Ray keeps its own bookkeeping in a folder of its own: checkpoints are ours, in the storage.
    with tempfile.TemporaryDirectory(prefix="mnist-ray-train-", dir=scratch) as bookkeeping:
        trainer = _Trainer(
            train_worker,
            train_loop_config=settings,
            scaling_config=scaling,
            run_config=RunConfig(
                name=job.run,
                storage_path=bookkeeping,
                failure_config=FailureConfig(max_failures=job.max_failures),
            ),
        )
        failure = _run(trainer, job)
    if failure:
        raise failure


class _Trainer(TorchTrainer):  # type: ignore[misc]
    """Leaves Ctrl-C to the launcher: Train's own handler loses one that comes before the workers are there."""

    def _register_sigint_handler(self, controller: Any) -> None:
        pass


def _run(trainer: TorchTrainer, job: TrainJob) -> MnistRayError | None:
    try:
        result = trainer.fit()
    except WorkerGroupError as error:
        rank, cause = sorted(error.worker_failures.items())[0]
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[-1]
        raise RunFailedError(
            f"run {job.run!r}: worker {rank} failed ({reason}); "
            "go on with --resume, or allow restarts with --max-failures"
        ) from error
    except (TrainingFailedError, RayActorError) as error:
        raise ClusterError(
            f"run {job.run!r}: Ray's controller failed: {str(error).strip().splitlines()[-1]}"
        ) from error
    value: MnistRayError | None = result.return_value
    return value


def train_worker(settings: dict[str, Any]) -> MnistRayError | None:
    """Trains as one rank of a run; goes on from the newest checkpoint if there is one.

    Returns:
      None, or an error that trying again would not mend; a raised one Ray would retry.
    """
    try:
        _train_rank(settings)
    except MnistRayError as error:
        return error
    return None


def _train_rank(settings: dict[str, Any]) -> None:
    context = ray.train.get_context()
    ranks = Ranks(context.get_world_rank(), context.get_world_size())
    device = torch.device("cpu") if settings["use_gpu"] is False else ray.train.torch.get_device()
    if device.type == "cpu":
        # One thread a worker: faster for networks of this size, and the same bits on every machine of a kind.
        torch.set_num_threads(1)
    config = make_config(TrainConfig, settings["config"])
    folder = RunFolder(open_storage(settings["storage_uri"]), settings["run"])
    with _shared_errors(ranks):
        examples = load_examples(config.dataset, "train", data_dir=Path(settings["data_dir"]))
        data = prepare_data(config, examples, device=device)
        state = folder.latest_state() if ranks.rank == 0 else None
    try:
        for reached in fit(config, data, device=device, ranks=ranks, state=_from_rank_0(state, ranks)):
            row = reached.history[-1]
            with _shared_errors(ranks):
                if ranks.rank == 0:
                    folder.save(
                        config, data, reached, command_line=settings["command_line"], num_workers=ranks.world_size
                    )
            ray.train.report({"epoch": row.epoch, "val_loss": row.val_loss})
            if row.epoch == settings["last_epoch"]:
                break
    except RunFailedError as error:
        if ranks.rank == 0:
            folder.mark("diverged", str(error))
        raise
    with _shared_errors(ranks):
        if ranks.rank == 0:
            folder.finish()


@contextmanager
def _shared_errors(ranks: Ranks) -> Iterator[None]:
    """Raises on every rank the first error that any of them has inside the block.

    Without, the others would wait for ever for the one that left.
    """
    error: MnistRayError | None = None
    try:
        yield
    except MnistRayError as caught:
        error = caught
    errors = [error] * ranks.world_size
    if ranks.world_size > 1:
        torch.distributed.all_gather_object(errors, error)
    for each in errors:
        if each:
            raise each


def _from_rank_0(state: TrainState | None, ranks: Ranks) -> TrainState | None:
    """Returns the state that rank 0 has read: every rank goes on from the same epoch."""
    states = [state]
    if ranks.world_size > 1:
        torch.distributed.broadcast_object_list(states, src=0)
    return states[0]


def _epoch_line(run: str, config: TrainConfig, row: EpochResult) -> str:
    return (
        f"{run}: epoch {row.epoch}/{config.epochs}  train loss {row.train_loss:.4f} acc {row.train_accuracy:.4f}  "
        f"val loss {row.val_loss:.4f} acc {row.val_accuracy:.4f}  {row.examples / row.epoch_seconds:,.0f} examples/s"
    )
