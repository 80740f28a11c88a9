"""The results of an evaluation's settings, and those settings and seeds of which no run is missing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.analysis.estimates import Block, make_block
from mnist_ray.analysis.rectangle import rectangle

_Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Scores:
    """Results of one setting's runs on the examples.

    Attributes:
      seeds: one per run, without duplicates.
      correct: bool [seeds, examples].
      loss: float32 [seeds, examples], nats; None if only the accuracies are compared.
    """

    label: str
    seeds: tuple[int, ...]
    correct: NDArray[np.bool_]
    loss: NDArray[np.float32] | None = None

    def take(self, places: Sequence[int]) -> "Scores":
        """Returns the scores of some of the runs."""
        chosen, loss = list(places), None if self.loss is None else self.loss[list(places)]
        return Scores(self.label, tuple(self.seeds[place] for place in chosen), self.correct[chosen], loss)


@dataclass(frozen=True, eq=False)
class Blocks:
    """The settings and seeds of which no run is missing, with both metrics.

    Attributes:
      settings: all settings, also those outside.
      seeds: of the runs inside, ascending.
      accuracy: None if no two settings have a seed in common.
      loss: of the settings inside with finite losses; None if fewer than two have them.
    """

    settings: tuple[Scores, ...]
    seeds: tuple[int, ...]
    accuracy: Block | None
    loss: Block | None

    @property
    def settings_left_out(self) -> list[str]:
        """Settings outside."""
        inside = set() if self.accuracy is None else set(self.accuracy.places.tolist())
        return [scores.label for place, scores in enumerate(self.settings) if place not in inside]

    @property
    def seeds_left_out(self) -> list[int]:
        """Seeds outside."""
        return sorted({seed for scores in self.settings for seed in scores.seeds} - set(self.seeds))


def make_blocks(settings: Sequence[Scores]) -> Blocks:
    """Chooses the settings and seeds of which no run is missing, see `rectangle`, and computes their mean squares.

    Args:
      settings: one or more, all with the same examples, in the same order.
    """
    seeds = sorted({seed for scores in settings for seed in scores.seeds})
    inside, chosen = rectangle(np.array([[seed in scores.seeds for seed in seeds] for scores in settings]))
    return blocks_of(settings, inside, [seeds[place] for place in chosen])


def blocks_of(settings: Sequence[Scores], inside: _Ints, seeds: Sequence[int]) -> Blocks:
    """Computes the mean squares of some of the settings.

    Args:
      settings: see make_blocks.
      inside: places of the settings, ascending.
      seeds: that all of them have, ascending.
    """
    blocks: list[Block | None] = []
    for name, places in (
        ("correct", inside),
        ("loss", inside[[_has_losses(settings[place]) for place in inside]]),
    ):
        values = [of_seeds(settings[place], seeds, name) for place in places]
        blocks.append(make_block(places, np.stack(values)) if seeds and len(values) > 1 else None)
    return Blocks(tuple(settings), tuple(seeds), *blocks)


def _has_losses(scores: Scores) -> bool:
    return scores.loss is not None and bool(np.isfinite(scores.loss).all())


def of_seeds(scores: Scores, seeds: Sequence[int], name: str) -> NDArray[Any]:
    """Returns the values of some seeds [seeds, examples] of a metric, correct or loss."""
    rows = [scores.seeds.index(seed) for seed in seeds]
    values: NDArray[Any] = getattr(scores, name)
    return values if rows == list(range(len(values))) else values[rows]
