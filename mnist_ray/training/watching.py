"""Tells how far a run is within an epoch, a few times a second."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

# Reading a loss waits for the GPU.
_INTERVAL_S = 0.25


@dataclass(frozen=True)
class EpochProgress:
    """How far a run is within an epoch.

    Attributes:
      epoch: from 1.
      step: steps taken.
      num_steps: steps in the epoch.
      loss: mean training loss of these steps; with several ranks, that of rank 0's examples.
    """

    epoch: int
    step: int
    num_steps: int
    loss: float


class Watch:
    """Called after each step; passes the progress on at the end of an epoch, or if the last time is long enough ago."""

    def __init__(self, tell: Callable[[EpochProgress], None], *, world_size: int = 1) -> None:
        """Takes what to call, and the number of ranks that share each step."""
        self._tell, self._world_size = tell, world_size
        self._told_at = 0.0

    def __call__(self, epoch: int, step: int, losses: Tensor) -> None:
        """Notes a step.

        Args:
          step: steps taken.
          losses: this rank's share of the loss of each step of the epoch, [runs, steps], on the device; the first run's
            is told.
        """
        now = time.monotonic()
        if step < losses.shape[1] and now - self._told_at < _INTERVAL_S:
            return
        self._told_at = now
        loss = float(losses[0, :step].mean()) * self._world_size
        self._tell(EpochProgress(epoch, step, losses.shape[1], loss))
