"""A grid whose runs are simulated: their answers as in simulated_scores, and the time that they would take."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mnist_ray.analysis.blocks import Scores
from mnist_ray.jobs.grow import Cell


class SimulatedRuns:
    """See grow.Runs.

    Attributes:
      trained: the runs so far, in order.
      kept: setting -> seeds that are part of the result.
      clock: seconds since the start.
    """

    def __init__(
        self,
        correct: NDArray[np.bool_],
        *,
        run_seconds: Sequence[float] | None = None,
        budget_s: float = np.inf,
        at_once: int = 2,
        overhead: float = 0.0,
    ) -> None:
        """Starts the clock.

        Args:
          correct: bool [settings, seeds, examples].
          run_seconds: of each setting's runs.
          at_once: runs that train at once.
          overhead: seconds at the start of each call of train.
        """
        self.num_settings = len(correct)
        self.trained: list[Cell] = []
        self.kept: dict[int, int] = {}
        self.clock = 0.0
        self._correct, self._budget_s, self._at_once, self._overhead = correct, budget_s, at_once, overhead
        self._run_seconds = run_seconds or [1.0] * len(correct)

    def missing(self, places: Sequence[int], num_seeds: int) -> list[Cell]:
        done = set(self.trained)
        return [(place, seed) for seed in range(num_seeds) for place in places if (place, seed) not in done]

    def train(self, cells: Sequence[Cell]) -> None:
        if not cells:
            return
        workers = [self.clock + self._overhead] * self._at_once
        for place, seed in cells:
            first = int(np.argmin(workers))
            if workers[first] >= self._budget_s:
                break
            workers[first] += self._run_seconds[place]
            if workers[first] <= self._budget_s:
                self.trained.append((place, seed))
        self.clock = min(max(workers), max(self._budget_s, self.clock))

    def keep(self, places: Sequence[int], num_seeds: int) -> None:
        assert not self.missing(places, num_seeds)
        self.kept |= {place: max(num_seeds, self.kept.get(place, 0)) for place in places}

    def scores(self, place: int, num_seeds: int) -> Scores | None:
        assert not self.missing([place], num_seeds)
        return Scores(str(place), tuple(range(num_seeds)), self._correct[place, :num_seeds])

    def seconds(self, cells: Sequence[Cell]) -> float | None:
        if not self.trained:
            return None
        return self._overhead + sum(self._run_seconds[place] for place, _ in cells) / self._at_once

    def add_time(self, seconds: float) -> None:
        """Starts another command with so much time."""
        self._budget_s = self.clock + seconds

    def seconds_left(self) -> float:
        return self._budget_s - self.clock
