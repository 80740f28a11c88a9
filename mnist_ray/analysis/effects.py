"""Main effects and two-way interactions of a grid's settings, as contrasts of the settings' means."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, compress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from mnist_ray.analysis.blocks import Blocks, blocks_of
from mnist_ray.analysis.estimates import Block, Estimate, estimate, unknown
from mnist_ray.analysis.max_t import Weighted, positive_part
from mnist_ray.config.settings import Range
from mnist_ray.grids.search import share_of

MAIN, INTERACTION = "main", "interaction"
FACTORIAL, ADDITIVE = "factorial", "additive"
_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Term:
    """What an effect is of.

    Attributes:
      axis, level, reference_level: the setting, its level and the level that it is compared with.
      second_axis, second_level, second_reference_level: the same for an interaction; None for a main effect.
    """

    axis: str
    level: str
    reference_level: str
    second_axis: str | None = None
    second_level: str | None = None
    second_reference_level: str | None = None

    @property
    def kind(self) -> str:
        """Main or interaction."""
        return MAIN if self.second_axis is None else INTERACTION


@dataclass(frozen=True)
class Effect:
    """An effect on one metric.

    Attributes:
      metric: accuracy (fraction) or log_loss (nats).
      model: factorial: means over all combinations of the other settings; additive: coefficients of a model without
        interactions, for incomplete grids and searches.
      num_settings: settings that it was computed from.
    """

    metric: str
    model: str
    term: Term
    estimate: Estimate
    num_settings: int


@dataclass(frozen=True)
class Axes:
    """The settings of a grid or search that vary.

    Attributes:
      levels: axis -> its levels, the reference first.
      ranges: axis -> the range that a search drew from; its effect is that of the whole range, from low to high.
      follows_results: whether a search chose settings by the results of earlier ones.
    """

    levels: Mapping[str, Sequence[Any]]
    ranges: Mapping[str, Range] = field(default_factory=dict)
    follows_results: bool = False


def blocks_of_effects(blocks: Blocks, settings: Sequence[Mapping[str, Any]], axes: Axes) -> Blocks:
    """Returns what the effects are computed from: all settings with the seeds that all have, or the given blocks.

    An effect averages over settings, so a setting less costs more than a few seeds less. All settings are kept if they
    share two seeds or more, and if that leaves out at most half of the blocks' seeds, or the blocks lack a level.

    Args:
      blocks: the settings and seeds of which no run is missing, by `make_blocks`.
      settings: the values of the axes of each setting.
    """
    common = set.intersection(*(set(scores.seeds) for scores in blocks.settings))
    if not blocks.settings_left_out or len(common) < 2:
        return blocks
    inside = [] if blocks.accuracy is None else [settings[place] for place in blocks.accuracy.places]
    lacks_level = evaluated_levels(axes.levels, inside) != evaluated_levels(axes.levels, settings)
    if 2 * len(common) < len(blocks.seeds) and not lacks_level:
        return blocks
    return blocks_of(blocks.settings, np.arange(len(blocks.settings)), sorted(common))


def effects(blocks: Blocks, settings: Sequence[Mapping[str, Any]], axes: Axes, *, margin: float) -> list[Effect]:
    """Computes the effects on accuracy and on log loss.

    The main effect of a level is the difference from the axis's first level, averaged over all combinations of the
    other axes; an interaction is the change of one axis's difference with the level of another,
    m(a, b) - m(a0, b) - m(a, b0) + m(a0, b0). Main effects are one family, interactions another.

    If the settings in the blocks are not all combinations, or an axis is a range, the main effects are the
    coefficients of an additive model and there are no interactions, see `_additive`.

    Args:
      blocks: of the evaluation's settings, see `blocks_of_effects`.
      settings: the values of the axes of each setting.
      margin: of accuracy, a fraction.

    Source: Montgomery, "Design and Analysis of Experiments", chapter 5.
    """
    computed: list[Effect] = []
    for metric, block in (("accuracy", blocks.accuracy), ("log_loss", blocks.loss)):
        if block is not None:
            rows = [settings[place] for place in block.places]
            of_metric = margin if metric == "accuracy" else None
            levels = evaluated_levels(axes.levels, rows)
            codes = {
                axis: np.array([texts.index(level_text(row[axis])) for row in rows]) for axis, texts in levels.items()
            }
            if _is_complete(codes, levels) and not axes.ranges:
                computed += _factorial(metric, block, codes, levels, of_metric)
            else:
                computed += _additive(metric, block, rows, codes, levels, axes, of_metric)
    return computed


def evaluated_levels(levels: Mapping[str, Sequence[Any]], rows: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Returns the levels of each axis that occur in the rows, as level_text; axes with one level are left out."""
    seen = {axis: {level_text(row[axis]) for row in rows} for axis in levels}
    texts = {axis: [text for text in map(level_text, all_) if text in seen[axis]] for axis, all_ in levels.items()}
    return {axis: of_axis for axis, of_axis in texts.items() if len(of_axis) > 1}


def _is_complete(codes: Mapping[str, _Ints], levels: Mapping[str, Sequence[str]]) -> bool:
    """Tells whether there is exactly one setting for each combination of levels."""
    combinations_there = set(zip(*(of_axis.tolist() for of_axis in codes.values()), strict=True))
    count = len(next(iter(codes.values()), ()))
    return count == len(combinations_there) == math.prod(map(len, levels.values())) and count > 1


def _factorial(
    metric: str, block: Block, codes: Mapping[str, _Ints], levels: Mapping[str, list[str]], margin: float | None
) -> Iterator[Effect]:
    main = [[(axis, level)] for axis, texts in levels.items() for level in range(1, len(texts))]
    pairs = [[*one, *other] for one, other in combinations(main, 2) if one[0][0] != other[0][0]]
    for family in (main, pairs):
        if not family:
            continue
        signs = np.stack(
            [np.prod([_sign(codes[axis], level) for axis, level in parts], axis=0) for parts in family]
        ).astype(np.float64)
        # The cells of each level of the parts.
        count = [len(block.places) / math.prod(len(levels[axis]) for axis, _ in parts) for parts in family]
        contrasts = [Weighted(signs / np.array(count)[:, None])]
        estimates = estimate(
            block, contrasts, block.chance(contrasts), num_differing=differing(block, signs), margin=margin
        )
        for parts, row in zip(family, estimates.rows(), strict=True):
            yield Effect(metric, FACTORIAL, _term(parts, levels), row, len(block.places))


def _sign(codes: _Ints, level: int) -> _Ints:
    computed: NDArray[np.int64] = (codes == level).astype(np.int64) - (codes == 0).astype(np.int64)
    return computed


def differing(block: Block, weights: NDArray[np.float64]) -> _Ints:
    """Returns for how many examples a contrast of the means over the seeds is not 0."""
    means: NDArray[np.float64] = block.values.sum(axis=1, dtype=np.float64)
    computed: NDArray[np.int64] = np.count_nonzero(np.abs(weights @ means) > 1e-9, axis=1)
    return computed


def _term(parts: Sequence[tuple[str, int]], levels: Mapping[str, list[str]]) -> Term:
    named = [value for axis, level in parts for value in (axis, levels[axis][level], levels[axis][0])]
    return Term(*named)


def _additive(
    metric: str,
    block: Block,
    rows: Sequence[Mapping[str, Any]],
    codes: Mapping[str, _Ints],
    levels: Mapping[str, list[str]],
    axes: Axes,
    margin: float | None,
) -> Iterator[Effect]:
    """Computes main effects as coefficients of a linear model without interactions, by least squares.

    What the model leaves unexplained beyond the noise of the means is a further variance, tau^2, of the settings (Knapp
    and Hartung 2003). Intervals are by Student's t on the residual degrees of freedom, at Bonferroni's level, so
    intervals and p values agree. An effect that the settings can't separate from others is left out.
    """
    terms = [[(axis, level)] for axis, texts in levels.items() for level in range(1, len(texts))]
    columns = [(codes[axis] == level).astype(np.float64) for ((axis, level),) in terms]
    varying = {axis: limits for axis, limits in axes.ranges.items() if len({row[axis] for row in rows}) > 1}
    columns += [np.array([share_of(limits, row[axis]) for row in rows]) for axis, limits in varying.items()]
    named = [_term(parts, levels) for parts in terms]
    named += [Term(axis, level_text(limits.high), level_text(limits.low)) for axis, limits in varying.items()]
    design = np.stack([np.ones(len(rows)), *columns], axis=1)
    inverse = np.linalg.pinv(design)
    df = len(rows) - int(np.linalg.matrix_rank(design))
    is_separate = np.isclose(inverse @ design, np.eye(len(inverse)), atol=1e-9).all(axis=1)[1:]
    if not df or not is_separate.any():
        return
    weights = inverse[1:][is_separate]
    if axes.follows_results:
        means = block.squares.means
        for term, weight in zip(compress(named, is_separate), weights, strict=True):
            of_term = unknown(np.array([weight @ means]), num_seeds=block.squares.num_seeds, margin=margin)
            yield Effect(metric, ADDITIVE, term, of_term.rows()[0], len(rows))
        return
    lack = _lack_of_fit(block, np.eye(len(rows)) - design @ inverse, df)
    estimates = estimate(
        block,
        [Weighted(weights)],
        StudentT(df, len(weights)),
        num_differing=differing(block, weights),
        margin=margin,
        more_variance=lack * (weights**2).sum(axis=1),
    )
    for term, row in zip(compress(named, is_separate), estimates.rows(), strict=True):
        yield Effect(metric, ADDITIVE, term, row, len(rows))


@dataclass(frozen=True)
class StudentT:
    """Student's t distribution for a family of contrasts, at Bonferroni's level."""

    df: int
    num_contrasts: int

    def critical(self, level: float) -> float:
        """See Reference."""
        return float(stats.t.isf((1 - level) / 2 / self.num_contrasts, self.df))

    def p_values(self, t: NDArray[np.float64]) -> NDArray[np.float64]:
        """See Reference."""
        p_values: NDArray[np.float64] = 2 * self.num_contrasts * stats.t.sf(t, self.df)
        return np.minimum(p_values, 1.0)


def _lack_of_fit(block: Block, rest: NDArray[np.float64], df: int) -> float:
    """Returns the variance of the settings' means around the model beyond their noise, 0 or more."""
    squares = block.squares
    size = squares.num_seeds * squares.num_examples
    noise = block.prior.scale * squares.residual + positive_part(squares.example - squares.residual)
    residual = float(squares.means @ rest @ squares.means) - float(np.trace(rest @ noise)) / size
    return max(residual / df, 0.0)


def level_text(level: Any) -> str:
    """Returns a level as JSON; equal numbers give equal text."""
    if isinstance(level, tuple | list):
        return json.dumps(list(level))
    if isinstance(level, int | float) and not isinstance(level, bool):
        return f"{level:.12g}"
    return json.dumps(level)
