"""Looks at a grid that grows by seeds: after each, only the settings that are still open get more.

A look compares the open settings on the seeds that they have so far. The looks share 5 % of error, spent by the number
of seeds, so looking often doesn't make a wrong word more likely.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mnist_ray.analysis.blocks import Scores, make_blocks
from mnist_ray.analysis.comparisons import Accuracies, compare_accuracies
from mnist_ray.analysis.estimates import UNRESOLVED
from mnist_ray.analysis.max_t import CONFIDENCE

# Seeds that spend half of the error.
_HALF_SPENT = 4


def spent(num_seeds: int) -> float:
    """Returns the probability of an error that looks up to a number of seeds may spend together.

    Source: Lan, DeMets, "Discrete sequential boundaries for clinical trials", 1983.
    """
    return (1 - CONFIDENCE) * (1 - math.pow(2, -num_seeds / _HALF_SPENT))


@dataclass(frozen=True, eq=False)
class Look:
    """What is known of the settings of a grid after a look.

    Attributes:
      num_seeds: seeds of the settings that were compared.
      compared: places of these settings.
      is_in: bool [settings]: whether the setting may be the best.
      is_settled: bool [settings, settings], symmetric: whether the pair needs no more seeds, because it has a word or
        one of the two can't be the best.
    """

    num_seeds: int
    compared: tuple[int, ...]
    is_in: NDArray[np.bool_]
    is_settled: NDArray[np.bool_]

    @property
    def open(self) -> list[int]:
        """Places of the settings that need more seeds: a pair of them is not settled."""
        places: list[int] = np.flatnonzero((~self.is_settled).any(axis=1)).tolist()
        return places

    @property
    def num_open_pairs(self) -> int:
        """Pairs that are not settled."""
        return int((~self.is_settled).sum()) // 2


def before_looks(num_settings: int) -> Look:
    """Returns what is known before the first look: nothing."""
    everything = np.ones(num_settings, dtype=bool)
    return Look(0, (), everything, np.eye(num_settings, dtype=bool))


def reopened(look: Look, places: Sequence[int]) -> Look:
    """Returns a look after which nothing is settled among some settings."""
    some, is_in, is_settled = np.array(places), look.is_in.copy(), look.is_settled.copy()
    is_in[some] = True
    is_settled[np.ix_(some, some)] = np.eye(len(some), dtype=bool)
    return replace(look, is_in=is_in, is_settled=is_settled)


def look_at(
    last: Look, scores: Mapping[int, Scores | None], num_seeds: int, *, margin: float
) -> tuple[Look, Accuracies | None]:
    """Compares settings on their first seeds.

    Pairs that get a word, and settings that can't be the best, are settled for good.

    Args:
      last: the look before.
      scores: place of a setting -> its runs of the first num_seeds seeds, without those that diverged; None if all
        diverged, so the setting can't be the best.
      num_seeds: more than at the last look.
      margin: of accuracy, a fraction.

    Returns:
      The look, and the pairs of the settings with scores; None with fewer than two.
    """
    is_in, is_settled = last.is_in.copy(), last.is_settled.copy()
    is_in[[place for place, of_place in scores.items() if of_place is None]] = False
    compared = {place: of_place for place, of_place in sorted(scores.items()) if of_place is not None}
    pairs = None
    if len(compared) > 1:
        level = 1 - (spent(num_seeds) - spent(last.num_seeds))
        pairs = compare_accuracies(make_blocks(list(compared.values())), margin=margin, level=level)
        assert pairs.may_be_best is not None
        places = np.array(list(compared))
        is_in[places] &= pairs.may_be_best
        told = pairs.accuracy.verdicts() != UNRESOLVED
        firsts, seconds = places[pairs.firsts[told]], places[pairs.seconds[told]]
        is_settled[firsts, seconds] = is_settled[seconds, firsts] = True
    is_settled |= ~is_in | ~is_in[:, None]
    return Look(num_seeds, tuple(compared), is_in, is_settled), pairs


def by_promise(scores: Mapping[int, Scores]) -> list[int]:
    """Returns the places of settings, the least behind the best first; with one seed by their mean accuracies."""
    places = sorted(scores)
    behind = compare_accuracies(make_blocks([scores[place] for place in places])).behind
    means = [float(scores[place].correct.mean()) for place in places]
    return [places[index] for index in sorted(range(len(places)), key=lambda index: (behind[index], -means[index]))]


def settled_by(pairs: Accuracies, more_seeds: int) -> NDArray[np.bool_]:
    """Returns which pairs would have a word with more seeds if their differences stayed as they are [pairs]."""
    accuracy = pairs.accuracy
    total = accuracy.num_seeds + more_seeds
    error = np.sqrt(accuracy.seed_variance * accuracy.num_seeds / total + accuracy.example_variance)
    half, difference = accuracy.critical * error, np.abs(accuracy.difference)
    computed: NDArray[np.bool_] = (difference > half) | (difference + half <= (accuracy.margin or 0.0))
    return computed
