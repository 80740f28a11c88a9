"""Decides, round by round, which runs of a growing grid to train; trains nothing itself."""

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from mnist_ray.analysis.blocks import Scores
from mnist_ray.analysis.comparisons import Accuracies
from mnist_ray.analysis.looks import Look, before_looks, by_promise, look_at, reopened
from mnist_ray.grids.growth import LEAST_SEEDS, Growth

# Runs may take longer than those before.
_USED = 0.9
# The place of a setting in the grid, and that of a seed among the grid's seeds.
Cell = tuple[int, int]


class Runs(Protocol):
    """The runs of a grid: every setting with every seed."""

    num_settings: int

    def missing(self, places: Sequence[int], num_seeds: int) -> list[Cell]:
        """Returns the runs of some settings' first seeds that are not done."""

    def train(self, cells: Sequence[Cell]) -> None:
        """Trains runs to their ends, or until the time is up."""

    def keep(self, places: Sequence[int], num_seeds: int) -> None:
        """Makes some settings' first seeds, which are done, part of the result."""

    def scores(self, place: int, num_seeds: int) -> Scores | None:
        """Returns the validation answers of a setting's first seeds, which are done; None if all of them diverged."""

    def seconds(self, cells: Sequence[Cell]) -> float | None:
        """Returns how long runs will take at the rate so far; None before any run is done."""

    def seconds_left(self) -> float:
        """Returns what is left of the budget; infinity without one."""


@dataclass(frozen=True)
class Round:
    """Settings that are trained up to a number of seeds."""

    places: list[int]
    num_seeds: int


def grow(runs: Runs, growth: Growth, taken: Sequence[Look]) -> Iterator[tuple[Look, Accuracies | None]]:
    """Trains a grid round by round and looks at it, until it is settled, the last look is taken or the time is up.

    Settings left out for lack of time stay out.

    Args:
      taken: the looks of earlier commands; they hold.

    Yields:
      Each new look, with the pairs of its settings.
    """
    look = taken[-1] if taken else before_looks(runs.num_settings)
    places = list(range(runs.num_settings))
    while (chosen := next_round(runs, growth, look, places)) is not None:
        places = chosen.places
        runs.train(runs.missing(places, chosen.num_seeds))
        places, num_seeds = _complete(runs, chosen, look)
        runs.keep(places, num_seeds)
        if num_seeds >= LEAST_SEEDS and num_seeds > look.num_seeds:
            scores = {place: runs.scores(place, num_seeds) for place in places}
            # What is settled stays settled only if it decides who gets seeds.
            last = look if growth.settles else reopened(look, places)
            look, pairs = look_at(last, scores, num_seeds, margin=growth.margin)
            yield look, pairs


def _complete(runs: Runs, chosen: Round, look: Look) -> tuple[list[int], int]:
    """Returns the settings and seeds of a round that count: all, unless the time was up earlier.

    Then the seeds that all of the settings have count. Before the first look, which needs two settings with two seeds,
    the settings that have these count, or else those that have one.
    """
    num_seeds = _num_done(runs, chosen.places, chosen.num_seeds)
    if look.num_seeds or num_seeds >= min(LEAST_SEEDS, chosen.num_seeds):
        return chosen.places, num_seeds
    several = [place for place in chosen.places if not runs.missing([place], LEAST_SEEDS)]
    if len(several) > 1:
        return several, LEAST_SEEDS
    return [place for place in chosen.places if not runs.missing([place], 1)], 1


def next_round(runs: Runs, growth: Growth, look: Look, places: Sequence[int]) -> Round | None:
    """Returns what to train next: as many seeds as fit up to the next look, of all settings that need them.

    If not even one more seed of all of them fits into the time left, those furthest behind the best are left out.

    Args:
      look: the last look.
      places: settings that were not left out.

    Returns:
      None if there is nothing left to train, or no time for it.
    """
    if growth.settles and look.num_seeds:
        places = [place for place in places if place in look.open]
    target = next((count for count in growth.looks if count > look.num_seeds), None)
    floor, least = look.num_seeds, 2
    if target is None:
        # After the last look, settings that an earlier command left out there get their seeds, too.
        places = [place for place in places if runs.missing([place], look.num_seeds)]
        target, floor, least = look.num_seeds, 0, 1
    if not places:
        return None
    left = runs.seconds_left()
    if math.isinf(left) or not runs.missing(places, target):
        return Round(list(places), target)
    done = _num_done(runs, places, target)
    if left > 0 and runs.seconds(runs.missing(places, target)) is None:
        return Round(list(places), done + 1)

    def fits(some: Sequence[int], num_seeds: int) -> bool:
        cells = runs.missing(some, num_seeds)
        if not cells or left <= 0:
            return not cells
        seconds = runs.seconds(cells)
        return seconds is not None and seconds <= _USED * left

    most = next((count for count in range(target, max(done, floor), -1) if fits(places, count)), done)
    if most > done or most >= max(LEAST_SEEDS, look.num_seeds + 1):
        return Round(list(places), most)
    one_more = max(done, floor) + 1
    order = _by_promise(runs, places, done)
    count = bisect_left(range(1, len(order) + 1), True, key=lambda count: not fits(order[:count], one_more))
    return Round(sorted(order[:count]), one_more) if count >= least else None


def _num_done(runs: Runs, places: Sequence[int], most: int) -> int:
    """Returns how many of the first seeds are done for all of some settings."""
    return next((count for count in range(most, 0, -1) if not runs.missing(places, count)), 0)


def _by_promise(runs: Runs, places: Sequence[int], num_seeds: int) -> list[int]:
    """Returns settings, the most promising first; before all have a run, those that have come first."""
    if not num_seeds:
        return sorted(places, key=lambda place: bool(runs.missing([place], 1)))
    scores = {place: runs.scores(place, num_seeds) for place in places}
    known = {place: of_place for place, of_place in scores.items() if of_place is not None}
    return by_promise(known)
