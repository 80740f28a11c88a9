"""Training one run and leaving it in the storage, in one process or as one of several ranks; no Ray here."""

from collections.abc import Iterator

import torch

from mnist_ray.config.settings import TrainConfig
from mnist_ray.data.training_data import TrainingData
from mnist_ray.errors import RunFailedError
from mnist_ray.models.ranks import Ranks
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.results.train_state import TrainState
from mnist_ray.training.distributed import shared_errors
from mnist_ray.training.loop import fit


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
) -> Iterator[TrainState]:
    """Trains a claimed run to its end; rank 0 saves it after every epoch and writes its best checkpoint.

    Args:
      folder: of the run.
      config: of the run.
      data: its examples on the device, the same on every rank.
      device: where to compute.
      ranks: the processes that share every batch.
      state: where to go on.
      command_line: see RunFolder.save.
      last_epoch: ends the run after this epoch, as one that was stopped.

    Yields:
      The state after each epoch, once it is saved.

    Raises:
      RunFailedError: the run diverged, which is noted in its folder.
      MnistRayError: any rank failed to save it; every rank raises that.
    """
    saves = ranks.rank == 0
    try:
        for reached in fit(config, data, device=device, ranks=ranks, state=state):
            with shared_errors(ranks):
                if saves:
                    folder.save(config, data, reached, command_line=command_line, num_workers=ranks.world_size)
            yield reached
            if len(reached.history) == last_epoch:
                break
    except RunFailedError as error:
        if saves:
            folder.mark("diverged", str(error))
        raise
    with shared_errors(ranks):
        if saves:
            folder.finish()
