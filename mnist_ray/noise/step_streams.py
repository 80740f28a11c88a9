"""The random streams of one training step for the layers of a stack, keyed by (a run's seed, purpose, step)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from mnist_ray.noise.random_streams import draws16, draws16_for_step, for_each_seed, stream_key, uniform


class StepStreams(Protocol):
    """The draws of a step: each run of a stack draws from its seed's streams; runs with equal seeds share draws."""

    def of(self, runs: slice) -> Self:
        """Returns the streams of some of the runs."""

    def distinct(self) -> Self:
        """Returns the streams of the distinct seeds, in the order of their first appearance."""

    def draws16(self, purpose: str, rows: Tensor, columns: int) -> Tensor:
        """Returns uniform 16-bit draws, int16 [runs, rows, columns]; read-only."""

    def uniform(self, purpose: str, rows: Tensor, columns: int) -> Tensor:
        """Returns uniform numbers in [0, 1), float64 [runs, rows, columns]; read-only."""

    def for_each_run(self, values: Tensor) -> Tensor:
        """Expands values per distinct seed, [distinct seeds, ...], to values per run, [runs, ...]."""


@dataclass(frozen=True)
class SeededStreams:
    """Streams that compute their keys on demand.

    Attributes:
      seeds: the seed of each run.
      step: number of the step, from 0.
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
    """The stream keys of all steps of an epoch, on the device, where a recorded step reads them.

    Attributes:
      step: int64 [1] on the device, the step's number in the epoch; the caller adds 1 after each step.
    """

    def __init__(self, seeds: Sequence[int], num_steps: int, *, device: torch.device) -> None:
        """Makes tables for runs with these seeds and epochs of num_steps steps; begin_epoch fills them."""
        self._seeds = tuple(dict.fromkeys(seeds))
        self._num_steps, self._device = num_steps, device
        self._first_step = 0
        self._keys: dict[str, Tensor] = {}
        self._places: dict[tuple[int, ...], Tensor] = {}
        self.step = torch.zeros(1, dtype=torch.int64, device=device)

    def begin_epoch(self, first_step: int) -> None:
        """Fills the tables for the epoch that begins with first_step."""
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
    """Streams whose keys come from tables on the device, without work on the host.

    Attributes:
      tables: the tables, shared by all steps.
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
