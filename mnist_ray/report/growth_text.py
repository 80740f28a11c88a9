"""What the looks at a growing grid show, in lines and sentences."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mnist_ray.analysis.comparisons import Accuracies
from mnist_ray.analysis.looks import Look, settled_by
from mnist_ray.grids.growth import Growth
from mnist_ray.text.durations import duration

# More settings are counted instead of named.
_NAMED = 4
_MORE_S = 600.0


@dataclass(frozen=True)
class Grown:
    """A grid that has stopped growing.

    Attributes:
      names: of the settings.
      kept: place of a setting -> number of its seeds in the result.
      look: the last; None if there was none.
      pairs: of its settings; None if there were fewer than two.
      seconds_per_seed: to train one more seed of the settings that are still open; None if unknown.
    """

    names: Sequence[str]
    kept: Mapping[int, int]
    look: Look | None
    pairs: Accuracies | None
    seconds_per_seed: float | None


def growth_line(growth: Growth, *, num_settings: int) -> str:
    """Returns what a grid that starts growing will do."""
    *earlier, last = growth.looks
    budget = f"; ends in {duration(growth.deadline - time.monotonic())} at the latest" if growth.has_budget else ""
    if not growth.settles:
        return f"{num_settings} settings, up to {last} seeds each{budget}"
    looks = f"looks at {', '.join(map(str, earlier))} and {last} seeds" if earlier else f"one look at {last} seeds"
    return (
        f"until settled: {looks} of {num_settings} settings, {growth.looks[0] * num_settings} to "
        f"{last * num_settings} runs; differences up to {100 * growth.margin:g} points don't matter{budget}"
    )


def look_line(look: Look, growth: Growth, *, num_runs: int, most_runs: int, most_seconds: float | None) -> str:
    """Returns a look in one line.

    Args:
      growth: of the grid.
      num_runs: runs so far.
      most_runs: runs if nothing more is settled.
      most_seconds: time left in that case; None if unknown.
    """
    count = len(look.is_in)
    total = count * (count - 1) // 2
    left = f", {duration(most_seconds)} left at most" if most_seconds else ""
    best = f"{look.is_in.sum()} of {count} settings may be best"
    settled = f"{total - look.num_open_pairs} of {total} pairs settled, {len(look.open)} settings open, "
    what = settled + f"{count - look.is_in.sum()} out" if growth.settles else best
    return f"look at {look.num_seeds} seeds: {what}; {num_runs} runs of {most_runs} at most{left}"


def answer(grown: Grown, growth: Growth) -> list[str]:
    """Returns what the validation answers tell, and with a budget what more time would, a sentence each."""
    if not growth.has_budget:
        return [_verdict(grown, growth)]
    if growth.settles and grown.look is not None and not grown.look.open:
        return [_verdict(grown, growth)]
    more = [_more_time(grown, grown.seconds_per_seed)] if grown.seconds_per_seed else []
    return [_seeds(grown), _verdict(grown, growth), *more]


def _seeds(grown: Grown) -> str:
    most = max(grown.kept.values())
    count = sum(num_seeds == most for num_seeds in grown.kept.values())
    seeds = "1 seed" if most == 1 else f"{most} seeds"
    if count == len(grown.names):
        return f"The budget is used: all {count} settings have {seeds}."
    return f"The budget is used: {count} of {len(grown.names)} settings have {seeds}, the others fewer."


def _verdict(grown: Grown, growth: Growth) -> str:
    look = grown.look
    if len(grown.names) == 1:
        return "One setting: nothing to compare."
    if look is None:
        return "Fewer than two seeds are complete, which say nothing about others: nothing is resolved."
    best = [grown.names[place] for place in np.flatnonzero(look.is_in).tolist()]
    if not best:
        return "All settings diverged."
    if len(best) == 1:
        return f"By validation, the best is {best[0]}."
    named = "; ".join(best) if len(best) <= _NAMED else f"{len(best)} of the {len(grown.names)} settings"
    if not look.num_open_pairs:
        return f"By validation, these differ by less than {100 * growth.margin:g} points and may be the best: {named}."
    return f"By validation, may be best: {named}; {look.num_open_pairs} pairs of them are open."


def _more_time(grown: Grown, seconds_per_seed: float) -> str:
    if grown.look is None or grown.pairs is None:
        return f"One more seed would take {duration(seconds_per_seed)}."
    count = int(_MORE_S / seconds_per_seed)
    places = np.array(grown.look.compared)
    is_open = ~grown.look.is_settled[places[grown.pairs.firsts], places[grown.pairs.seconds]]
    if not is_open.any():
        return "More time would change nothing: no pair is open."
    what = f"{len(grown.look.open)} open settings"
    if not count:
        return f"The next 10 minutes would buy nothing: one more seed of the {what} takes {duration(seconds_per_seed)}."
    would = int((settled_by(grown.pairs, count) & is_open).sum())
    seeds = "1 more seed" if count == 1 else f"{count} more seeds"
    return (
        f"The next 10 minutes would buy {seeds} of the {what}; if the differences stay as they are, {would} of the "
        f"{is_open.sum()} open pairs would be settled then."
    )
