"""Main effects and two-way interactions of a grid's settings, with intervals over seeds."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

METRICS = ("accuracy", "log_loss")
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Effect:
    """One row of the effects table.

    Attributes:
      metric: accuracy (fraction) or log_loss (nats).
      kind: main or interaction.
      axis, level, reference_level: the setting, its level and the level that it is compared with.
      second_axis, second_level, second_reference_level: the same for an interaction; None for a main effect.
      effect: the mean difference.
      effect_low, effect_high: its 95 % interval over seeds; None with one seed.
      p_value: of a two-sided paired t test over seeds; None with one seed.
      p_adjusted: p_value after Holm's correction over all effects of the metric.
      num_seeds: averaged seeds.
      num_pairs: combinations of the other axes that are averaged for each seed.
    """

    metric: str
    kind: str
    axis: str
    level: str
    reference_level: str
    second_axis: str | None
    second_level: str | None
    second_reference_level: str | None
    effect: float
    effect_low: float | None
    effect_high: float | None
    p_value: float | None
    p_adjusted: float | None
    num_seeds: int
    num_pairs: int


def effects(rows: Sequence[Mapping[str, Any]], axes: Mapping[str, Sequence[Any]]) -> list[Effect]:
    """Computes every main effect and two-way interaction of a grid.

    The main effect of a level is the difference from the axis's first level, averaged over all combinations of the
    other axes; an interaction is the change of one axis's difference with the level of another,
    m(a, b) - m(a0, b) - m(a, b0) + m(a0, b0). Both are first averaged within each seed: runs with the same seed share
    batches and noise, so the seeds' averages are independent paired differences. The t interval of their mean covers
    other seeds on this test set, not other test examples.

    If runs are missing (diverged), a combination counts only if all its cells exist for every seed, so every seed
    averages the same combinations without bias. An effect without any combination is left out; missing_runs reports
    it. Sums are exact, with accuracies as numbers of examples, so equal sums compare equal.

    Args:
      rows: rows of a metrics table: run, the settings, seed, num_examples, accuracy, log_loss. If two have the same
        levels and seed, the first by name counts.
      axes: setting -> its levels; the first is the reference.

    Reference: Montgomery, "Design and Analysis of Experiments", chapter 5; Holm 1979.
    """
    computed: list[Effect] = []
    for metric in METRICS:
        of_metric = list(_effects_of(metric, _Cells(rows, axes, metric)))
        adjusted = holm([effect.p_value for effect in of_metric])
        computed += [replace(effect, p_adjusted=p) for effect, p in zip(of_metric, adjusted, strict=True)]
    return computed


def missing_runs(rows: Sequence[Mapping[str, Any]], axes: Mapping[str, Sequence[Any]]) -> str | None:
    """Returns a message about what effects() leaves out; None if no run is missing. Args as in effects()."""
    if not rows:
        return None
    cells = _Cells(rows, axes, METRICS[0])
    there = ~np.isnan(cells.values).reshape(-1, len(cells.seeds))
    num_missing = int((~there.all(axis=1)).sum())
    if not num_missing:
        return None
    fewest = int(there.sum(axis=0).argmin())
    return (
        f"{num_missing} of {len(there)} settings lack a run of some seed and are left out (seed {cells.seeds[fewest]} "
        f"has {int(there[:, fewest].sum())} of {len(there)})"
    )


class _Cells:
    """One metric of every cell: values[level of axis 1, ..., seed], NaN for a missing run.

    Attributes:
      scale: divisor of the values; accuracies are stored as whole numbers of examples.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], axes: Mapping[str, Sequence[Any]], metric: str) -> None:
        # An axis with one level has no effect.
        self.axes = {name: [level_text(level) for level in levels] for name, levels in axes.items() if len(levels) > 1}
        self.seeds = sorted({row["seed"] for row in rows})
        self.scale = rows[0]["num_examples"] if rows and metric == "accuracy" else 1
        self.values = np.full([*map(len, self.axes.values()), len(self.seeds)], np.nan)
        # Reversed, so the first by name is written last.
        for row in sorted(rows, key=lambda row: str(row["run"]), reverse=True):
            levels_of_row = [levels.index(level_text(row[name])) for name, levels in self.axes.items()]
            value = round(row[metric] * self.scale) if metric == "accuracy" else row[metric]
            self.values[(*levels_of_row, self.seeds.index(row["seed"]))] = value

    def contrast(self, parts: Sequence[tuple[str, int]]) -> npt.NDArray[np.float64]:
        """Returns the signed cells of a difference from the first level of one or two axes.

        Returns:
          [cells of one difference, combinations of the other axes, seeds].
        """
        names = list(self.axes)
        chosen = np.moveaxis(self.values, [names.index(name) for name, _ in parts], range(len(parts)))
        signed = [
            np.prod([sign for _, sign in levels]) * chosen[tuple(level for level, _ in levels)]
            for levels in product(*([(level, 1), (0, -1)] for _, level in parts))
        ]
        return np.stack(signed).reshape(len(signed), -1, len(self.seeds))


def _effects_of(metric: str, cells: _Cells) -> Iterator[Effect]:
    for name, levels in cells.axes.items():
        for level in range(1, len(levels)):
            yield from _effect(metric, cells, [(name, level)])
    for first, second in combinations(cells.axes, 2):
        for level, other in product(range(1, len(cells.axes[first])), range(1, len(cells.axes[second]))):
            yield from _effect(metric, cells, [(first, level), (second, other)])


def _effect(metric: str, cells: _Cells, parts: Sequence[tuple[str, int]]) -> Iterator[Effect]:
    signed = cells.contrast(parts)
    whole = signed[:, ~np.isnan(signed).any(axis=(0, 2))]
    num_pairs = whole.shape[1]
    if not num_pairs:
        return
    per_seed = np.array([math.fsum(of_seed.flat) for of_seed in np.moveaxis(whole, -1, 0)]) / (num_pairs * cells.scale)
    low, high, p_value = t_interval(per_seed)
    (axis, level), *rest = parts
    second, second_level = rest[0] if rest else (None, 0)
    yield Effect(
        metric=metric,
        kind="interaction" if second else "main",
        axis=axis,
        level=cells.axes[axis][level],
        reference_level=cells.axes[axis][0],
        second_axis=second,
        second_level=cells.axes[second][second_level] if second else None,
        second_reference_level=cells.axes[second][0] if second else None,
        effect=float(per_seed.mean()),
        effect_low=low,
        effect_high=high,
        p_value=p_value,
        p_adjusted=None,
        num_seeds=len(per_seed),
        num_pairs=num_pairs,
    )


def t_interval(values: npt.NDArray[np.float64]) -> tuple[float | None, float | None, float | None]:
    """Returns the 95 % t interval of the mean and the two-sided p value of a mean of zero; None for one value.

    All-zero values give an interval of width 0 and p = 1. Other equal values, which accuracies on few examples can be
    by chance, do not show their uncertainty: None.
    """
    count = len(values)
    if not values.any() and count > 1:
        return 0.0, 0.0, 1.0
    if not np.ptp(values) > 0:
        return None, None, None
    mean, error = float(values.mean()), float(values.std(ddof=1)) / count**0.5
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * error
    return mean - half, mean + half, float(2 * stats.t.sf(abs(mean / error), count - 1))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Returns Holm's step-down adjusted p values; None stays None and doesn't count."""
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min((len(known) - rank) * p, 1.0))
        adjusted[index] = largest
    return adjusted


def level_text(level: Any) -> str:
    """Returns a level as JSON; equal numbers give equal text."""
    if isinstance(level, tuple | list):
        return json.dumps(list(level))
    if isinstance(level, int | float) and not isinstance(level, bool):
        return f"{level:.12g}"
    return json.dumps(level)
