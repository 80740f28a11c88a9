"""The charts of a grid: the effects of each setting, and the accuracy over each pair of settings."""

import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np

from mnist_ray.analysis.effects import INTERACTION, MAIN, Effect
from mnist_ray.report import limits, plots
from mnist_ray.report.charts import Chart
from mnist_ray.report.comparison_text import effect_words
from mnist_ray.results.columns import setting_in
from mnist_ray.results.setting_words import setting_text

_EFFECT_CAPTIONS = {
    MAIN: "Each level against the first of its setting, averaged over the other settings. Bars: 95 % intervals, which "
    "hold jointly, for other seeds and other examples; blue: 0 is outside.",
    INTERACTION: "How much the first effect changes with the second setting. Bars as for the main effects.",
}


def effect_charts(effects: Sequence[Effect], *, split: str) -> list[Chart]:
    """Returns the charts of the main effects and of the largest interactions, on accuracy; none without effects."""
    charts = []
    for kind, title in ((MAIN, "Main effects"), (INTERACTION, "Largest interactions")):
        of_kind = [effect for effect in effects if (effect.metric, effect.term.kind) == ("accuracy", kind)]
        if kind == INTERACTION:
            of_kind = sorted(of_kind, key=lambda effect: -abs(effect.estimate.difference))
        if of_kind:
            rows, total = [_effect_row(effect) for effect in of_kind[: limits.EFFECTS]], len(of_kind)
            left_out = f"{len(rows)} of {total:,} effects; the table effects has all. " if len(rows) < total else ""
            caption = left_out + _EFFECT_CAPTIONS[kind]
            charts.append(plots.effect_intervals(f"effects-{kind}", title, rows, split=split, caption=caption))
    return charts


def heat_maps(rows: Sequence[Mapping[str, Any]], axes: Iterable[str], *, split: str) -> list[Chart]:
    """Returns charts of the mean accuracy over each pair of a grid's axes that vary.

    Args:
      rows: of the metrics table.
      axes: settings with levels.
    """
    all_levels = {axis: sorted({_level(row, axis) for row in rows}, key=_level_order) for axis in axes}
    levels = {axis: of_axis for axis, of_axis in all_levels.items() if len(of_axis) > 1}
    # The axis with more levels goes into the rows: a page is narrow.
    pairs = [sorted(pair, key=lambda axis: -len(levels[axis])) for pair in combinations(levels, 2)]
    return [_heat_map(rows, (down, levels[down]), (across, levels[across]), split=split) for down, across in pairs]


def _heat_map(
    rows: Sequence[Mapping[str, Any]], down: tuple[str, list[str]], across: tuple[str, list[str]], *, split: str
) -> Chart:
    values = np.full((len(down[1]), len(across[1])), np.nan)
    for place in np.ndindex(*values.shape):
        cell = (down[1][place[0]], across[1][place[1]])
        accuracies = [row["accuracy"] for row in rows if (_level(row, down[0]), _level(row, across[0])) == cell]
        if accuracies:
            values[place] = 100 * fmean(accuracies)
    named = [(axis, [_level_text(level) for level in levels]) for axis, levels in (down, across)]
    return plots.heat_map(values, rows=named[0], columns=named[1], split=split)


def _effect_row(effect: Effect) -> tuple[str, float, float | None, float | None]:
    estimate = effect.estimate
    low = None if estimate.low is None else 100 * estimate.low
    high = None if estimate.high is None else 100 * estimate.high
    return effect_words(effect)[0].replace(" x ", " × "), 100 * estimate.difference, low, high


def _level(row: Mapping[str, Any], axis: str) -> str:
    return json.dumps(setting_in(row, axis))


def _level_text(level: str) -> str:
    return setting_text(json.loads(level))


def _level_order(level: str) -> tuple[bool, Any]:
    value = json.loads(level)
    # Numbers by value, all others by their text.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return not is_number, value if is_number else level
