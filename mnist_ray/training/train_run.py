"""Trains one run and saves it to the storage, in one process or as one of several ranks; no Ray here."""

from collections.abc import Iterator

import torch

from mnist_ray.config.settings import TrainConfig
from mnist_ray.data.training_data import TrainingData
from mnist_ray.errors import NetworkFailedError, RunFailedError
from mnist_ray.models.ranks import Ranks
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.results.train_state import TrainState
from mnist_ray.training.distributed import shared_errors
from mnist_ray.training.loop import fit
from mnist_ray.training.watching import Watch


def train_run(
    folder: RunFolder,
    config: TrainConfig,
    data: TrainingData,
    *,
    device: torch.device,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    state: TrainState | None = None,
    command_line: str | None = None,
    last_epoch: int | None = None,
    watch: Watch | None = None,
) -> Iterator[TrainState]:
    """Trains a claimed run to its end; rank 0 saves it after every epoch and writes its best checkpoint.

    Args:
      data: the run's examples on the device, the same on every rank.
      ranks: the processes that share every batch.
      command_line: see RunFolder.save.
      last_epoch: the epoch after which the run ends as a stopped one.
      watch: called after each step.

    Yields:
      The state after each epoch, once saved.

    Raises:
      RunFailedError: the run diverged; its folder is marked.
      MnistRayError: a rank failed to save the run; every rank raises the error.
    """
    saves = ranks.rank == 0
    try:
        for reached in fit(config, data, device=device, ranks=ranks, state=state, watch=watch):
            with shared_errors(ranks):
                if saves:
                    folder.save(config, data, reached, command_line=command_line, num_workers=ranks.world_size)
            yield reached
            if len(reached.history) == last_epoch:
                break
    except RunFailedError as error:
        if saves and not isinstance(error, NetworkFailedError):
            folder.mark("diverged", str(error))
        raise
    with shared_errors(ranks):
        if saves:
            folder.finish(config)
