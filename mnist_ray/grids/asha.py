"""Asynchronous successive halving: decides by validation loss which runs of a grid go on.

Reference: Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020.
"""

import math
from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Decision:
    """One run's arrival at a rung.

    Attributes:
      epoch: the rung, in epochs.
      val_loss: its lowest validation loss so far (nats), the criterion.
      goes_on: whether it was among the best of the runs that had arrived.
    """

    run: str
    epoch: int
    val_loss: float
    goes_on: bool


@dataclass
class Rungs:
    """The rungs of one grid and the runs that have arrived at each.

    At the rungs, after `first`, `first` * `factor`, `first` * `factor`**2, ... epochs, a run goes on if it is among
    the best 1/`factor` (rounded up, ties included) of all runs that have arrived so far, itself included. So the first
    run to arrive always goes on, no run waits for another, and the outcome depends on the order of arrival.

    Attributes:
      first: epochs before the first decision.
      factor: one in `factor` runs goes on.
    """

    first: int
    factor: int
    decisions: list[Decision] = field(default_factory=list)
    _arrived: dict[int, list[float]] = field(default_factory=dict)

    def is_rung(self, epoch: int) -> bool:
        """Tells whether runs are judged after an epoch."""
        rung = self.first
        while rung < epoch:
            rung *= self.factor
        return rung == epoch

    def judge(self, run: str, epoch: int, val_loss: float) -> bool:
        """Records a run's arrival, if there is a rung after this epoch, and tells whether it goes on."""
        if not self.is_rung(epoch):
            return True
        arrived = self._arrived.setdefault(epoch, [])
        insort(arrived, val_loss)
        goes_on = bisect_left(arrived, val_loss) < math.ceil(len(arrived) / self.factor)
        self.decisions.append(Decision(run, epoch, val_loss, goes_on))
        return goes_on

    def remember(self, epoch: int, val_losses: Iterable[float]) -> None:
        """Counts runs that arrived at a rung before an interruption, without judging them again."""
        for val_loss in val_losses:
            insort(self._arrived.setdefault(epoch, []), val_loss)
