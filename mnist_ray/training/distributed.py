"""Messages between the ranks of a run besides sums: errors and states."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed

from mnist_ray.errors import MnistRayError
from mnist_ray.models.ranks import Ranks
from mnist_ray.results.train_state import TrainState


@contextmanager
def shared_errors(ranks: Ranks) -> Iterator[None]:
    """Raises the first error of any rank inside the block on every rank, so that no rank waits forever for another."""
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


def from_rank_0(state: TrainState | None, ranks: Ranks) -> TrainState | None:
    """Returns the state that rank 0 has read, so that every rank resumes from the same epoch."""
    states = [state]
    if ranks.world_size > 1:
        torch.distributed.broadcast_object_list(states, src=0)
    return states[0]
