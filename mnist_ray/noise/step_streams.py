"""The random streams of one training step, as the layers of a stack ask for them: (a run's seed, purpose, step)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from mnist_ray.noise.random_streams import draws16, draws16_for_step, for_each_seed, stream_key, uniform


class StepStreams(Protocol):
    """What a step draws, for each run of a stack from its own seed's streams; runs with equal seeds share draws."""

    def of(self, runs: slice) -> Self:
        """Returns the streams of some of the runs."""

    def distinct(self) -> Self:
        """Returns the streams with each seed once, in the order of their first appearance."""

    def draws16(self, purpose: str, rows: Tensor, columns: int) -> Tensor:
        """Returns uniform 16-bit draws, int16 [runs, rows, columns], not to be changed in place."""

    def uniform(self, purpose: str, rows: Tensor, columns: int) -> Tensor:
        """Returns uniform numbers in [0, 1), float64 [runs, rows, columns], not to be changed in place."""

    def for_each_run(self, values: Tensor) -> Tensor:
        """Repeats what belongs to a distinct seed, [distinct seeds, ...], for each run, [runs, ...]."""


@dataclass(frozen=True)
class SeededStreams:
    """Streams whose keys are computed when they are asked for.

    Attributes:
      seeds: the seed of each run.
      step: number of the step, from 0; tells the noise of one step from the next.
    """

    seeds: Sequence[int]
    step: int

    def of(self, runs: slice) -> "SeededStreams":
        """See StepStreams."""
        return SeededStreams(self.seeds[runs], self.step)

    def distinct(self) -> "SeededStreams":
        """See StepStreams."""
        return self if len(self.seeds) == 1 else SeededStreams(tuple(dict.fromkeys(self.seeds)), self.step)

    def draws16(self, purpose: str, rows: Tensor, columns: int) -> Tensor:
        """See StepStreams."""
        return draws16_for_step(self.seeds, purpose, self.step, rows, columns)

    def uniform(self, purpose: str, rows: Tensor, columns: int) -> Tensor:
        """See StepStreams."""
        seeds = self.distinct().seeds
        return self.for_each_run(uniform([stream_key(seed, purpose, self.step) for seed in seeds], rows, columns))

    def for_each_run(self, values: Tensor) -> Tensor:
        """See StepStreams."""
        return for_each_seed(values, self.seeds, self.distinct().seeds)


class StreamTables:
    """The stream keys of all steps of an epoch, on the device: a step that was recorded once finds its keys there.

    Attributes:
      step: int64 [1] on the device, the step's number in the epoch; who takes a step adds one.
    """

    def __init__(self, seeds: Sequence[int], num_steps: int, *, device: torch.device) -> None:
        """Makes tables for runs with these seeds and epochs of so many steps; begin_epoch fills them."""
        self._seeds = tuple(dict.fromkeys(seeds))
        self._num_steps, self._device = num_steps, device
        self._first_step = 0
        self._keys: dict[str, Tensor] = {}
        self._places: dict[tuple[int, ...], Tensor] = {}
        self.step = torch.zeros(1, dtype=torch.int64, device=device)

    def begin_epoch(self, first_step: int) -> None:
        """Fills the tables for the epoch that begins with a step."""
        self._first_step = first_step
        self.step.zero_()
        for purpose, keys in self._keys.items():
            keys.copy_(self._keys_of_epoch(purpose))

    def keys(self, purpose: str) -> Tensor:
        """Returns the current step's key of each distinct seed, int64 [distinct seeds]."""
        if purpose not in self._keys:
            self._keys[purpose] = self._keys_of_epoch(purpose).to(self._device)
        return self._keys[purpose].index_select(0, self.step)[0]

    def for_each_run(self, values: Tensor, seeds: tuple[int, ...]) -> Tensor:
        """See StepStreams."""
        if len(self._seeds) == 1:
            return values.expand(len(seeds), *values.shape[1:])
        if seeds == self._seeds:
            return values
        if seeds not in self._places:
            places = [self._seeds.index(seed) for seed in seeds]
            self._places[seeds] = torch.tensor(places, device=self._device)
        return values.index_select(0, self._places[seeds])

    def _keys_of_epoch(self, purpose: str) -> Tensor:
        steps = range(self._first_step, self._first_step + self._num_steps)
        return torch.tensor([[stream_key(seed, purpose, step) for seed in self._seeds] for step in steps])


@dataclass(frozen=True)
class TabledStreams:
    """Streams whose keys come from tables on the device; the host takes no part in drawing.

    Attributes:
      tables: shared by all steps of a training.
      seeds: the seed of each run.
    """

    tables: StreamTables
    seeds: tuple[int, ...]

    def of(self, runs: slice) -> "TabledStreams":
        """See StepStreams."""
        return replace(self, seeds=self.seeds[runs])

    def distinct(self) -> "TabledStreams":
        """See StepStreams."""
        return replace(self, seeds=tuple(dict.fromkeys(self.seeds)))

    def draws16(self, purpose: str, rows: Tensor, columns: int) -> Tensor:
        """See StepStreams."""
        return self.for_each_run(draws16(self.tables.keys(purpose), rows, columns))

    def uniform(self, purpose: str, rows: Tensor, columns: int) -> Tensor:
        """See StepStreams."""
        return self.for_each_run(uniform(self.tables.keys(purpose), rows, columns))

    def for_each_run(self, values: Tensor) -> Tensor:
        """See StepStreams."""
        return self.tables.for_each_run(values, self.seeds)
