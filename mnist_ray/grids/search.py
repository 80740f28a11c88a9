"""Random samples of a grid's settings, instead of every combination."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mnist_ray.config.settings import GridConfig, Range
from mnist_ray.errors import ConfigError
from mnist_ray.grids.grid import GridRun, distinct_runs


@dataclass(frozen=True)
class Search:
    """The way to choose settings from a grid's axes and ranges.

    Attributes:
      kind: random: independently; optuna: by the validation losses of earlier samples (TPE, Bergstra et al. 2011).
      num_samples: number of samples to train, each with every seed.
    """

    kind: Literal["random", "optuna"]
    num_samples: int
    seed: int = 0


def search_for(
    grid: GridConfig, kind: Literal["random", "optuna"] | None, num_samples: int | None, seed: int, *, source: str
) -> Search | None:
    """Returns the search that is asked for, or None for every combination of a grid.

    Args:
      grid: axes and ranges to choose from.
      kind, num_samples, seed: see Search.
      source: the grid, for messages.

    Raises:
      ConfigError: only one of kind and number is given, or there is nothing to choose from.
    """
    if kind is None and num_samples is None:
        return None
    if kind is None or num_samples is None:
        raise ConfigError("--search and --num-samples go together")
    if not (grid.axes or grid.ranges):
        raise ConfigError(f"search={kind!r}: {source} has no axis and no range to choose from")
    return Search(kind, num_samples, seed)


def random_samples(grid: GridConfig, search: Search) -> list[dict[str, Any]]:
    """Draws settings uniformly from the axes' levels and by each range's distribution, without duplicates.

    A smaller number of samples gives a prefix of the same sequence.
    """
    samples = []
    for index in range(search.num_samples):
        draws = {name: _draw(search.seed, name, index) for name in (*grid.axes, *grid.ranges)}
        sample = {name: levels[int(draws[name] * len(levels))] for name, levels in grid.axes.items()}
        sample |= {name: value_in(each, draws[name]) for name, each in grid.ranges.items()}
        if sample not in samples:
            samples.append(sample)
    return samples


def _draw(seed: int, setting: str, index: int) -> float:
    import torch

    from mnist_ray.noise.random_streams import stream_key, uniform

    return float(uniform([stream_key(seed, f"search {setting}", index)], torch.arange(1), 1))


def value_in(limits: Range, draw: float) -> float | int:
    """Returns the value at a share of a range, a number in [0, 1)."""
    if limits.kind == "randint":
        return int(limits.low) + int(draw * (limits.high - limits.low + 1))
    if limits.kind == "loguniform":
        low, high = math.log(limits.low), math.log(limits.high)
        # Rounding may exceed the ends.
        return min(max(math.exp(low + draw * (high - low)), limits.low), limits.high)
    return limits.low + draw * (limits.high - limits.low)


def share_of(limits: Range, value: float) -> float:
    """Returns at which share of a range a value lies, from 0 to 1."""
    if limits.kind == "loguniform":
        return math.log(value / limits.low) / math.log(limits.high / limits.low)
    return (value - limits.low) / (limits.high - limits.low)


def runs_of_samples(samples: Sequence[dict[str, Any]], grid: GridConfig, *, name: str) -> tuple[GridRun, ...]:
    """Returns the runs of some samples, each with every seed.

    Raises:
      ConfigError: a sample holds an invalid setting.
    """
    return distinct_runs([(sample, seed) for sample in samples for seed in grid.seeds], grid, name=name)
