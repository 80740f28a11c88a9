"""Trains one run in this process, or on Ray workers if several share it or the job runs on a cluster."""

from dataclasses import dataclass, replace

import torch

from mnist_ray.cluster.train_job import TrainJob
from mnist_ray.data.image_shape import ImageForm
from mnist_ray.data.training_data import TrainingData
from mnist_ray.errors import DataError, RunFailedError
from mnist_ray.models.device import choose_device
from mnist_ray.models.network_check import check_networks
from mnist_ray.results.history import EpochResult, best_epoch
from mnist_ray.results.run_claim import check_claim
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.results.train_state import TrainState
from mnist_ray.storage.storage import open_storage
from mnist_ray.text.doing import on_terminal
from mnist_ray.text.escape import say_line
from mnist_ray.tracking import pictures
from mnist_ray.tracking.epoch_lines import EpochLines
from mnist_ray.tracking.trackers import Tracking, check_trackers, track
from mnist_ray.training.data import data_settings, load_data
from mnist_ray.training.data_lines import training_lines
from mnist_ray.training.train_run import train_run
from mnist_ray.training.watching import Watch


@dataclass(frozen=True)
class TrainOutcome:
    """The outcome of a run.

    Attributes:
      history: all its epochs.
      already_done: whether the run was already finished, so that nothing was trained.
    """

    history: tuple[EpochResult, ...]
    already_done: bool

    @property
    def best(self) -> EpochResult:
        """The epoch whose weights are kept."""
        return self.history[best_epoch(self.history) - 1]


def train(job: TrainJob, data: TrainingData | None = None) -> TrainOutcome:
    """Trains one run to its end and writes its folder to the storage.

    Args:
      job: the run.
      data: its examples on the CPU; loaded here if not given.

    Raises:
      MnistRayError: data, storage, conflict or cluster errors (see mnist_ray.errors), or the run diverged.
    """
    storage = open_storage(job.storage_uri)
    check_trackers(job.log, storage)
    storage.check()
    data = data or load_data(job.config, job.data_dir, torch.device("cpu"))
    sheets = {data_settings(job.config): pictures.samples(data.images)} if job.log else None
    with track(job.log, storage, samples=sheets) as tracking:
        # Workers needn't look at all images again to find out what they are.
        form = ImageForm(data.image_shape, job.config.fit)
        job = replace(job, data_config=job.data_config or job.config.in_form(form))
        return _train_tracked(job, data, RunFolder(storage, job.run), tracking)


def _train_tracked(job: TrainJob, data: TrainingData, folder: RunFolder, tracking: Tracking) -> TrainOutcome:
    if len(data.labels) < job.num_workers:
        raise DataError(f"num_workers={job.num_workers}: more than the {len(data.labels)} training examples")
    for note in check_networks([job.config], data, num_workers=job.num_workers):
        say_line(note)
    state: TrainState | None = None
    if folder.storage.exists(folder.path("config.json")):
        say_line(f"checking what run {job.run} has")
        # Report a conflict or the end of a run without starting Ray.
        check_claim(folder.storage, job.run, job.config, data, resume=job.resume)
        folder.mend(say_line)
        status = folder.status()
        if status.status == "diverged":
            raise RunFailedError(
                f"run {job.run!r}: diverged ({status.reason}); change its settings and choose another --name"
            )
        if status.is_done and folder.config() == job.config:
            tracking.update([job.run])
            return TrainOutcome(folder.history(), already_done=True)
        # Check here even for several workers: a worker's report of damage would not reach the terminal.
        state = folder.latest_state(say_line)
    lines = EpochLines(job.run, job.config, tracking, num_before=len(state.history) if state else 0)

    def begin() -> None:
        folder.claim(job.config, data, resume=job.resume)
        for line in training_lines(job.config, data, [job.config.global_batch_size]):
            say_line(line)

    try:
        with lines:
            if job.needs_ray():
                from mnist_ray.cluster.trainer import train_on_workers

                # begin is called once the workers fit, so a request for too many leaves the name free.
                show_within = lines.show_within if on_terminal() else None
                train_on_workers(job, folder.storage, begin=begin, show=lines.show, show_within=show_within)
            else:
                device = choose_device(job.placement.use_gpu)
                begin()
                _train_here(job, data.to(device), folder, state, lines, device)
    except RunFailedError:
        tracking.update([job.run])
        raise
    # Its end comes after its last epoch.
    tracking.update([job.run])
    return TrainOutcome(folder.history(), already_done=False)


def _train_here(
    job: TrainJob,
    data: TrainingData,
    folder: RunFolder,
    state: TrainState | None,
    lines: EpochLines,
    device: torch.device,
) -> None:
    """Trains a claimed run in this process."""
    say_line(f"training {job.run} on {device}")
    watch = Watch(lines.show_within) if on_terminal() else None
    for reached in train_run(
        folder, job.config, data, device=device, state=state, command_line=job.command_line,
        last_epoch=job.last_epoch, watch=watch,
    ):  # fmt: skip
        lines.show(reached.history)
