"""The answer of an evaluation in sentences, made from its comparisons and effects."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from mnist_ray.analysis.effects import MAIN, Effect, level_text
from mnist_ray.analysis.estimates import (
    BETTER,
    EQUIVALENT,
    LEAST_DIFFERING,
    UNRESOLVED,
    Estimate,
    seeds_to_decide,
)
from mnist_ray.config.settings import DATA_SETTINGS
from mnist_ray.report.comparison_report import ComparisonReport
from mnist_ray.report.grid_report import GridReport
from mnist_ray.report.size_report import worth_sentences
from mnist_ray.results.columns import setting_in
from mnist_ray.results.setting_words import level_words, setting_text, value_text, value_words, words
from mnist_ray.text.points import points_text
from mnist_ray.text.sizes import is_or_are

# More settings, or pairs, are counted instead of named.
_NAMED = 4


def answer(
    report: ComparisonReport, grid: GridReport, groups: Mapping[str, Mapping[int, Mapping[str, Any]]]
) -> list[str]:
    """Returns what helps, what may be the best, and what is open, one sentence or two each; empty for one setting.

    Args:
      groups: name of a setting -> seed -> row of the metrics table; the first setting is the reference.
    """
    if report.pairs is None:
        return []
    if not len(report.pairs):
        return ["No two settings have a seed in common, so none can be compared."]
    if max(report.pairs.accuracy.num_seeds) < 2:
        return ["One seed says nothing about other seeds, so nothing is resolved: use --seeds 5 or more."]
    # A search that follows results chose its settings by them, so their effects are not an answer.
    said = [] if grid.axes.follows_results else _of_effects(grid, report.num_examples)
    said = said or list(_of_pairs(report, grid, next(iter(groups))))
    return [*said, *worth_sentences(grid.sizes), _may_be_best(report, grid, groups)]


def _of_effects(grid: GridReport, num_examples: int) -> list[str]:
    """Returns a sentence for each level that helps or costs, the largest first, then what is not seen of each axis."""
    losses = {effect.term: effect.estimate for effect in grid.effects if effect.metric == "log_loss"}
    main = [effect for effect in grid.effects if (effect.metric, effect.term.kind) == ("accuracy", MAIN)]
    # More data helps; that is rarely the question.
    decided = sorted(
        (effect for effect in main if effect.estimate.is_decided),
        key=lambda effect: (effect.term.axis in DATA_SETTINGS, -effect.estimate.difference),
    )
    sentences = [
        f"{_capital(_levels([effect], grid))} {_change(effect.estimate, losses.get(effect.term))}" for effect in decided
    ]
    for axis, of_axis in groupby(main, key=lambda effect: effect.term.axis):
        levels = list(of_axis)
        for verdict in (UNRESOLVED, EQUIVALENT):
            some = [effect for effect in levels if effect.estimate.verdict == verdict]
            if some:
                what = words(axis) if len(some) == len(levels) else _levels(some, grid)
                nothing = _nothing(verdict, [effect.estimate for effect in some], grid, num_examples)
                sentences.append(f"{_capital(what)}: {nothing}")
    return sentences


def _levels(effects: Sequence[Effect], grid: GridReport) -> str:
    """Returns levels of one axis in words, such as `batch norm`, `dropout 0.2 and 0.5` or `dropout 0.5 against 0`."""
    axis, values = words(effects[0].term.axis), [json.loads(effect.term.level) for effect in effects]
    if effects[0].term.axis in grid.axes.ranges:
        low = setting_text(json.loads(effects[0].term.reference_level))
        return f"{axis} {setting_text(values[0])} against {low}"
    if len(values) == 1:
        return level_words(effects[0].term.axis, values[0])
    *others, last = (value_text(effects[0].term.axis, value) for value in values)
    return f"{axis} {', '.join(others)} and {last}"


def _of_pairs(report: ComparisonReport, grid: GridReport, reference: str) -> Iterator[str]:
    """Compares every setting with the reference; the best with the others if there are many."""
    assert report.pairs is not None
    place = report.pairs.labels.index(reference)
    with_it = np.flatnonzero((report.pairs.firsts == place) | (report.pairs.seconds == place))
    pairs = [pair if pair.second == reference else pair.reversed() for pair in report.pairs.rows(with_it)]
    decided = [pair for pair in pairs if pair.accuracy.is_decided]
    for pair in sorted(decided, key=lambda pair: -pair.accuracy.difference)[:_NAMED]:
        change = f"{_interval(pair.accuracy, signed=True)}{_smallness(pair.accuracy)}"
        yield f"{pair.first} is {pair.accuracy.verdict} than {reference}: {change}."
    if len(decided) > _NAMED:
        yield f"{is_or_are(len(decided) - _NAMED, 'more setting')} better or worse than {reference}."
    for verdict in (EQUIVALENT, UNRESOLVED):
        alike = [pair for pair in pairs if pair.accuracy.verdict == verdict]
        if alike:
            names = "; ".join(pair.first for pair in alike) if len(alike) <= _NAMED else f"{len(alike)} settings"
            estimates = [pair.accuracy for pair in alike]
            nothing = _nothing(verdict, estimates, grid, report.num_examples)
            yield f"{names} against {reference}: {nothing}"


def _change(estimate: Estimate, loss: Estimate | None) -> str:
    """Returns what a decided effect is in words; says if the log loss is decided the other way."""
    verb, change = ("helps:", estimate) if estimate.verdict == BETTER else ("costs", estimate.reversed())
    against = ""
    if loss is not None and loss.is_decided and loss.verdict != estimate.verdict:
        against = f"; its log loss is {loss.verdict} ({loss.difference:+.3f} nats)"
    return f"{verb} {_interval(change, signed=estimate.verdict == BETTER)}{_smallness(estimate)}{against}."


def _smallness(estimate: Estimate) -> str:
    return ", less than the margin" if estimate.is_small else ""


def _nothing(verdict: str, estimates: Sequence[Estimate], grid: GridReport, num_examples: int) -> str:
    most = max(
        (max(-one.low, one.high) for one in estimates if one.low is not None and one.high is not None), default=None
    )
    if most is None:
        return "nothing can be said."
    if verdict == EQUIVALENT:
        margin = estimates[0].margin or 0.0
        return f"no difference that matters, less than {points_text(margin)} either way."
    if all(one.differs_on_few for one in estimates):
        return f"fewer than {LEAST_DIFFERING} examples differ, too few to say more."
    resolved = to_resolve(estimates, grid, num_examples)
    return f"nothing seen, and less than {_bound(most)} points either way{resolved}."


def to_resolve(estimates: Sequence[Estimate], grid: GridReport, num_examples: int) -> str:
    """Returns what would resolve all of the unresolved estimates to the margin, to be said after what they are."""
    several = [one for one in estimates if one.num_seeds > 1]
    if not several:
        return "; one seed says nothing about others"
    margin, now = points_text(several[0].margin or 0.0), several[0].num_seeds
    needed = [one.num_seeds_needed for one in several]
    what = f"resolve {margin}"
    if None not in needed and max(number for number in needed if number) <= now:
        # The interval is narrow enough, but lies across the margin, or just touches 0.
        needed, what = [seeds_to_decide(one) for one in several], "resolve this if the difference stays as it is"
    if None in needed:
        return f"; {num_examples:,} examples are too few to {what}"
    most = max(number for number in needed if number)
    more = (
        "" if grid.seconds_per_seed is None else f" ({_time((most - now) * grid.seconds_per_seed)} more for one worker)"
    )
    return f"; {most} seeds{more} would {what}"


def _time(seconds: float) -> str:
    """Returns a rough time, such as `12 minutes`."""
    for unit, length in (("hours", 3600.0), ("minutes", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def _may_be_best(
    report: ComparisonReport, grid: GridReport, groups: Mapping[str, Mapping[int, Mapping[str, Any]]]
) -> str:
    best = [row["setting"] for row in report.settings if row["may_be_best"]]
    if len(best) == 1:
        return f"Best: {best[0]}."
    simplest = min(best, key=lambda label: _complexity(label, grid, groups))
    if len(best) <= _NAMED:
        return f"May be best: {'; '.join(best)}. Simplest of them: {simplest}."
    return f"May be best: {_described(best, grid, groups)}. Simplest of them: {simplest}."


def _complexity(label: str, grid: GridReport, groups: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> tuple[int, int]:
    """Returns by how many levels a setting is away from the grid's first levels, its data aside; then its place."""
    row = next(iter(groups[label].values()))
    levels = {
        axis: [level_text(level) for level in levels]
        for axis, levels in grid.axes.levels.items()
        if axis not in DATA_SETTINGS
    }
    steps = [texts.index(level_text(setting_in(row, axis))) for axis, texts in levels.items()]
    return sum(steps), list(groups).index(label)


def _described(best: Sequence[str], grid: GridReport, groups: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> str:
    """Returns many settings in words: `the 16 settings with batch norm` if they are exactly those."""
    rows = {label: next(iter(runs.values())) for label, runs in groups.items()}
    if len(best) == len(rows):
        return f"any of the {len(best)} settings"
    common = {}
    for axis, levels in grid.axes.levels.items():
        values = {level_text(setting_in(rows[label], axis)) for label in best}
        if len(values) == 1 and len(levels) > 1:
            common[axis] = values.pop()
    if not common:
        return f"{len(best)} of the {len(rows)} settings"
    matching = [
        label
        for label, row in rows.items()
        if all(level_text(setting_in(row, axis)) == text for axis, text in common.items())
    ]
    named = " and ".join(_with(axis, json.loads(text)) for axis, text in common.items())
    if len(matching) == len(best):
        return f"the {len(best)} settings {named}"
    return f"{len(best)} of the {len(rows)} settings, all {named}"


def _with(axis: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"{'with' if value else 'without'} {words(axis)}"
    return f"with {value_words(axis, value)}"


def _interval(estimate: Estimate, *, signed: bool) -> str:
    """Returns a difference with its interval in points, such as `+2.4 points (+0.8 to +3.9)`."""
    assert estimate.low is not None
    assert estimate.high is not None
    largest = max(abs(estimate.low), abs(estimate.high))
    difference, low, high = (
        _points(value, largest, signed=signed) for value in (estimate.difference, estimate.low, estimate.high)
    )
    return f"{difference} points ({low} to {high})"


def _points(value: float, largest: float, *, signed: bool = False) -> str:
    """Returns a fraction in points, with two digits after the point where all are below one point."""
    return f"{100 * value:{'+' if signed else ''}.{1 if abs(largest) >= 0.01 else 2}f}"


def _bound(value: float) -> str:
    """Returns a bound in points, rounded up."""
    digits = 1 if value >= 0.01 else 2
    return f"{math.ceil(100 * value * 10**digits - 1e-9) / 10**digits:.{digits}f}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
