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
      step_seconds: mean time of a step so far, with its share of what comes between epochs; None after the first step.
    """

    epoch: int
    step: int
    num_steps: int
    loss: float
    step_seconds: float | None


class Watch:
    """Called after each step; passes the progress on at the end of an epoch, or if the last time is long enough ago."""

    def __init__(
        self,
        tell: Callable[[EpochProgress], None],
        *,
        world_size: int = 1,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Takes what to call, the number of ranks that share each step, and the clock, in seconds."""
        self._tell, self._world_size, self._now = tell, world_size, now
        self._told_at = -_INTERVAL_S
        self._began: float | None = None
        self._num_steps = 0

    def __call__(self, epoch: int, step: int, losses: Tensor) -> None:
        """Notes a step.

        Args:
          step: steps taken.
          losses: this rank's share of the loss of each step of the epoch, [runs, steps], on the device; the first run's
            is told.
        """
        now = self._now()
        if self._began is None:
            self._began = now
        else:
            self._num_steps += 1
        if step < losses.shape[1] and now - self._told_at < _INTERVAL_S:
            return
        self._told_at = now
        loss = float(losses[0, :step].mean()) * self._world_size
        step_seconds = (now - self._began) / self._num_steps if self._num_steps else None
        self._tell(EpochProgress(epoch, step, losses.shape[1], loss, step_seconds))
