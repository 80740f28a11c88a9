"""What the looks at a growing grid show, in lines and sentences."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mnist_ray.analysis.comparisons import Accuracies
from mnist_ray.analysis.looks import Look, settled_by
from mnist_ray.grids.growth import Growth
from mnist_ray.text.durations import duration
from mnist_ray.text.points import points_text
from mnist_ray.text.sizes import count_text, range_text

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
      num_examples: for validation.
      seconds_per_seed: to train one more seed of the settings that would get it; None if unknown.
    """

    names: Sequence[str]
    kept: Mapping[int, int]
    look: Look | None
    pairs: Accuracies | None
    num_examples: int
    seconds_per_seed: float | None


def growth_line(growth: Growth, *, num_settings: int) -> str:
    """Returns what a grid that starts growing will do."""
    *earlier, last = growth.looks
    budget = ""
    if growth.has_budget:
        budget = f"; trains for {duration(max(growth.deadline - time.monotonic(), 0))} at most"
    if not growth.settles:
        return f"{num_settings} settings, up to {last} seeds each{budget}"
    looks = f"looks at {', '.join(map(str, earlier))} and {last} seeds" if earlier else f"one look at {last} seeds"
    return (
        f"until settled: {looks} of {num_settings} settings, "
        f"{range_text(growth.looks[0] * num_settings, last * num_settings, 'run')}; "
        f"margin {points_text(growth.margin)}{budget}"
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
    left = f", {duration(most_seconds)} left" if most_seconds else ""
    best = f"{look.is_in.sum()} of {count} settings may be best"
    settled = f"{total - look.num_open_pairs}/{total} pairs settled, {count_text(len(look.open), 'setting')} open, "
    what = settled + f"{count - look.is_in.sum()} out" if growth.settles else best
    return f"look at {look.num_seeds} seeds: {what}, {num_runs} of at most {most_runs} runs{left}"


def answer(grown: Grown, growth: Growth) -> list[str]:
    """Returns what the validation answers tell, and with a budget what more time would, a sentence each."""
    if not growth.has_budget:
        return [_verdict(grown, growth)]
    is_settled = grown.look is not None and not grown.look.open
    more = [_more_time(grown, growth, grown.seconds_per_seed)] if grown.seconds_per_seed and not is_settled else []
    return [_seeds(grown), _verdict(grown, growth), *more]


def _seeds(grown: Grown) -> str:
    most = max(grown.kept.values())
    count = sum(num == most for num in grown.kept.values())
    seeds = "1 seed" if most == 1 else f"{most} seeds"
    if count == len(grown.names):
        return f"All {count} settings have {seeds}." if count > 1 else f"The setting has {seeds}."
    others = "fewer" if len(grown.kept) > count else "none"
    return f"{count} of {len(grown.names)} settings have {seeds}, the others {others}."


def _verdict(grown: Grown, growth: Growth) -> str:
    look = grown.look
    if len(grown.names) == 1:
        return "One setting: nothing to compare."
    if look is None:
        return "No two settings have two complete seeds, so nothing can be compared."
    best = [grown.names[place] for place in np.flatnonzero(look.is_in).tolist()]
    if not best:
        return "All settings diverged."
    if len(best) == 1:
        return f"By validation, the best setting is {best[0]}."
    named = "; ".join(best) if len(best) <= _NAMED else f"{len(best)} of the {len(grown.names)} settings"
    if not look.num_open_pairs:
        return f"By validation, these may be the best, and differ by less than {points_text(growth.margin)}: {named}."
    open_pairs = (
        "1 pair of them is open" if look.num_open_pairs == 1 else f"{look.num_open_pairs} pairs of them are open"
    )
    return f"By validation, these may be the best: {named}. {open_pairs}{_needed(grown, growth)}."


def _is_open(look: Look, pairs: Accuracies) -> NDArray[np.bool_]:
    """Returns which pairs of the last look are not settled [pairs]."""
    places = np.array(look.compared)
    is_open: NDArray[np.bool_] = ~look.is_settled[places[pairs.firsts], places[pairs.seconds]]
    return is_open


def _needed(grown: Grown, growth: Growth) -> str:
    """Returns what would tell all open pairs apart to the margin."""
    if grown.look is None or grown.pairs is None:
        return ""
    needed = grown.pairs.accuracy.seeds_needed()[_is_open(grown.look, grown.pairs)]
    if np.isnan(needed).any():
        return f"; {grown.num_examples:,} validation examples are too few to resolve {points_text(growth.margin)}"
    more = (needed > grown.look.num_seeds).any()
    return f"; {needed.max():.0f} seeds would resolve {points_text(growth.margin)}" if more else ""


def _more_time(grown: Grown, growth: Growth, seconds_per_seed: float) -> str:
    if grown.look is None or grown.pairs is None:
        return f"One more seed of all settings would take {duration(seconds_per_seed)}."
    room = growth.looks[-1] - grown.look.num_seeds
    if not room:
        option = f"--looks with one above {growth.looks[-1]}" if growth.settles else f"--seeds above {growth.looks[-1]}"
        return f"More time would buy nothing: the last look is taken; {option} goes on."
    what = f"the {len(grown.look.open)} open settings" if growth.settles else f"all {len(grown.names)} settings"
    count = min(int(_MORE_S / seconds_per_seed), room)
    if not count:
        return f"The next 10 minutes would buy nothing: one more seed of {what} takes {duration(seconds_per_seed)}."
    is_open = _is_open(grown.look, grown.pairs)
    seeds = "1 more seed" if count == 1 else f"{count} more seeds"
    if not is_open.any():
        # The open pairs are with settings that the last look left out.
        return f"The next 10 minutes would buy {seeds} of {what}."
    would = (settled_by(grown.pairs, count) & is_open).sum() or "none"
    return (
        f"The next 10 minutes would buy {seeds} of {what}, and settle {would} of the {is_open.sum()} open pairs if the "
        "differences stay as they are."
    )
