"""Estimated differences with joint intervals, and the word that follows from each interval."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.analysis.crossed import MeanSquares, mean_squares
from mnist_ray.analysis.max_t import (
    CONFIDENCE,
    NOTHING,
    Chance,
    Contrasts,
    Prior,
    Reference,
    chance,
    prior_of,
    variances,
)

MARGIN = 0.005
# Fewer differing examples may all be on one side by chance: 2 * 0.5**6 < 0.05.
LEAST_DIFFERING = 6
MOST_SEEDS = 9_999
BETTER, WORSE, EQUIVALENT, UNRESOLVED = "better", "worse", "equivalent", "unresolved"
_Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Block:
    """One metric of settings that share their seeds and examples.

    Attributes:
      places: int64 [k], which settings these are.
      values: bool (right or wrong) or float (losses) [k, seeds, examples].
    """

    places: NDArray[np.int64]
    values: NDArray[Any]
    squares: MeanSquares
    prior: Prior

    @property
    def is_accuracy(self) -> bool:
        """Whether the values are right or wrong answers."""
        return self.values.dtype == np.bool_

    def chance(self, family: Sequence[Contrasts], *, level: float = CONFIDENCE) -> Chance:
        """Returns what the largest t value of a family is by chance."""
        return chance(self.squares, self.prior, family, are_counts=self.is_accuracy, level=level)


def make_block(places: NDArray[np.int64], values: NDArray[Any]) -> Block:
    """Makes a block; args as in Block."""
    squares = mean_squares(values)
    return Block(places, values, squares, prior_of(squares))


@dataclass(frozen=True)
class Estimate:
    """A difference with its joint 95 % interval; accuracies are fractions, log losses nats.

    Attributes:
      difference: the mean difference.
      low, high: its interval; None if the data don't show their uncertainty: a loss is not finite, or all differences
        are equal and not 0. With one seed it covers other examples only.
      p_value: of no difference, adjusted for the family; None likewise, and with one seed.
      seed_variance: of the mean, from the seeds; None with one seed.
      example_variance: of the mean, from the examples.
      num_seeds: seeds that were averaged.
      num_seeds_needed: for an interval half width of the margin; None if no number of seeds is enough for these
        examples, with one seed and without a margin.
      verdict: better, worse, equivalent or unresolved; see `Estimates.verdicts`.
      margin: differences up to it don't matter; None for log loss.
    """

    difference: float
    low: float | None
    high: float | None
    p_value: float | None
    seed_variance: float | None
    example_variance: float | None
    num_seeds: int
    num_seeds_needed: int | None
    verdict: str
    margin: float | None

    @property
    def is_decided(self) -> bool:
        """Whether the verdict is better or worse."""
        return self.verdict in (BETTER, WORSE)

    @property
    def is_small(self) -> bool:
        """Whether the whole interval lies within the margin."""
        if self.low is None or self.high is None or self.margin is None:
            return False
        return max(-self.low, self.high) <= self.margin

    @property
    def differs_on_few(self) -> bool:
        """Whether only the number of examples that differ leaves it unresolved."""
        excludes_0 = self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)
        return self.verdict == UNRESOLVED and excludes_0 and self.num_seeds > 1

    @property
    def verdict_words(self) -> str:
        """The verdict; also if its difference is small, or if too few examples differ for another one."""
        if self.differs_on_few:
            return f"{UNRESOLVED}: fewer than {LEAST_DIFFERING} examples differ"
        return f"{self.verdict} by less than the margin" if self.is_decided and self.is_small else self.verdict

    def reversed(self) -> "Estimate":
        """Returns the opposite difference."""
        # 0.0 - x, not -x, which prints zero as -0.00.
        low, high = (None if end is None else 0.0 - end for end in (self.high, self.low))
        verdict = {BETTER: WORSE, WORSE: BETTER}.get(self.verdict, self.verdict)
        return replace(self, difference=0.0 - self.difference, low=low, high=high, verdict=verdict)


def seeds_to_decide(estimate: Estimate) -> int | None:
    """Returns the number of seeds that would give an unresolved difference a word if it stays as it is.

    Then the interval excludes 0, or lies within the margin.

    Returns:
      None if no number of seeds is enough for these examples, or nothing is known.
    """
    if estimate.low is None or estimate.high is None or estimate.seed_variance is None or not estimate.margin:
        return None
    example = estimate.example_variance or 0.0
    difference, error = abs(estimate.difference), math.sqrt(estimate.seed_variance + example)
    if not error:
        return None
    critical = (estimate.high - estimate.low) / 2 / error
    room = (max(difference, estimate.margin - difference) / critical) ** 2 - example
    if room <= 0:
        return None
    needed = max(math.ceil(estimate.seed_variance * estimate.num_seeds / room - 1e-9), estimate.num_seeds + 1)
    return needed if needed <= MOST_SEEDS else None


@dataclass(frozen=True, eq=False)
class Estimates:
    """Estimates of a family in columns [m]; NaN stands for None. See Estimate.

    Attributes:
      critical: half width of an interval in standard errors.
      num_differing: examples whose mean over the seeds differs.
      margin: None for log loss, which is better if it is lower.
    """

    difference: _Floats
    low: _Floats
    high: _Floats
    p_value: _Floats
    seed_variance: _Floats
    example_variance: _Floats
    num_seeds: NDArray[np.int64]
    num_differing: NDArray[np.int64]
    critical: float
    margin: float | None

    def __len__(self) -> int:
        return len(self.difference)

    def verdicts(self) -> NDArray[np.str_]:
        """Returns the verdict of each estimate.

        better, worse: the interval excludes 0, there are two seeds or more, and at least 6 examples differ;
        equivalent: the interval lies within the margin, and there are two seeds or more; otherwise unresolved.
        """
        several = self.num_seeds > 1
        told = several & (self.num_differing >= LEAST_DIFFERING) & ((self.low > 0) | (self.high < 0))
        is_gain = (self.difference > 0) == (self.margin is not None)
        small = several & (np.maximum(-self.low, self.high) <= (self.margin or -1.0))
        return np.select([told & is_gain, told, small], [BETTER, WORSE, EQUIVALENT], UNRESOLVED)

    def seeds_needed(self) -> _Floats:
        """Returns the number of seeds for a half width of the margin, 2 or more; NaN if no number is enough."""
        if self.margin is None:
            return np.full(len(self), np.nan)
        room = (self.margin / self.critical) ** 2 - self.example_variance
        with np.errstate(divide="ignore", invalid="ignore"):
            needed = np.maximum(np.ceil(self.seed_variance * self.num_seeds / room - 1e-9), 2)
        return np.where((room > 0) & (needed <= MOST_SEEDS), needed, np.nan)

    def rows(self, places: Sequence[int] | NDArray[np.int64] | None = None) -> list[Estimate]:
        """Returns some of the estimates, or all."""
        chosen = np.arange(len(self)) if places is None else np.asarray(places, dtype=np.int64)
        floats = (self.difference, self.low, self.high, self.p_value, self.seed_variance, self.example_variance)
        columns = [
            column[chosen].tolist() for column in (*floats, self.num_seeds, self.seeds_needed(), self.verdicts())
        ]
        return [_estimate(*row, margin=self.margin) for row in zip(*columns, strict=True)]

    def columns(self) -> dict[str, object]:
        """Returns the columns of Estimate by name, None for NaN."""
        return {
            "difference": self.difference,
            **{name: masked(getattr(self, name)) for name in ("low", "high", "p_value", "seed_variance")},
            "example_variance": masked(self.example_variance),
            "num_seeds": self.num_seeds,
            "num_seeds_needed": _masked_integers(self.seeds_needed()),
            "verdict": self.verdicts(),
            "margin": masked(np.full(len(self), np.nan if self.margin is None else self.margin)),
        }


def _masked_integers(values: _Floats) -> "np.ma.MaskedArray[tuple[int], np.dtype[np.int64]]":
    return np.ma.array(np.nan_to_num(values).astype(np.int64), mask=np.isnan(values))


def masked(values: _Floats) -> "np.ma.MaskedArray[tuple[int], np.dtype[np.float64]]":
    """Returns an array whose NaNs are masked, so Parquet gets nulls."""
    return np.ma.masked_invalid(values)


def estimate(
    block: Block,
    family: Sequence[Contrasts],
    reference: Reference,
    *,
    num_differing: NDArray[np.int64],
    margin: float | None,
    level: float = CONFIDENCE,
    more_variance: NDArray[np.float64] | float = 0.0,
) -> Estimates:
    """Estimates the contrasts of a family.

    Args:
      reference: of this family.
      num_differing: see Estimates, [m].
      margin: see Estimate.
      level: joint confidence of the intervals.
      more_variance: of the contrasts, [m], besides that of the seeds and the examples; counted as the examples'.
    """
    parts = [variances(block.squares, block.prior, each, are_counts=block.is_accuracy) for each in family]
    seed, example = (np.concatenate([getattr(part, name) for part in parts]) for name in ("seed", "example"))
    example = example + more_variance
    difference = np.concatenate([each.of(block.squares.means) for each in family])
    has_seeds = block.squares.num_seeds > 1
    error = np.sqrt(seed + example)
    # All differences are equal and not 0, or a loss is not finite: nothing says how sure they are.
    is_known = np.isfinite(difference) & ((error > 0) | (np.abs(difference) <= NOTHING))
    t = np.abs(difference) / np.where(error > 0, error, 1)
    critical = reference.critical(level)
    limits = [np.broadcast_to(each.bounds, len(part.unit)) for each, part in zip(family, parts, strict=True)]
    limit = np.concatenate(limits) if block.is_accuracy else np.inf
    return Estimates(
        difference=difference,
        low=np.where(is_known, np.maximum(difference - critical * error, -limit), np.nan),
        high=np.where(is_known, np.minimum(difference + critical * error, limit), np.nan),
        p_value=np.where(is_known & has_seeds, reference.p_values(t), np.nan),
        seed_variance=seed if has_seeds else np.full(len(seed), np.nan),
        example_variance=example,
        num_seeds=np.full(len(seed), block.squares.num_seeds),
        num_differing=num_differing,
        critical=critical,
        margin=margin,
    )


def unknown(differences: NDArray[np.float64], *, num_seeds: int, margin: float | None) -> Estimates:
    """Returns differences that nothing is known about."""
    count = len(differences)
    nothing = np.full(count, np.nan)
    counts = np.full(count, num_seeds), np.zeros(count, dtype=np.int64)
    return Estimates(differences, nothing, nothing, nothing, nothing, nothing, *counts, np.inf, margin)


def placed(parts: Sequence[tuple[NDArray[np.int64], Estimates]], *, margin: float | None) -> Estimates:
    """Puts estimates of one family together, each part at its places."""
    if not parts:
        none, no_counts = np.zeros(0), np.zeros(0, dtype=np.int64)
        return Estimates(none, none, none, none, none, none, no_counts, no_counts, np.inf, margin)
    order = np.argsort(np.concatenate([places for places, _ in parts]))
    columns: dict[str, Any] = {
        field.name: np.concatenate([getattr(part, field.name) for _, part in parts])[order]
        for field in fields(Estimates)
        if field.name not in ("critical", "margin")
    }
    columns |= {"critical": min(part.critical for _, part in parts), "margin": margin}
    return Estimates(**columns)


def _estimate(
    difference: float,
    low: float,
    high: float,
    p_value: float,
    seed_variance: float,
    example_variance: float,
    num_seeds: int,
    needed: float,
    verdict: str,
    *,
    margin: float | None,
) -> Estimate:
    low_, high_, p_value_, seed, example = (
        None if math.isnan(value) else value for value in (low, high, p_value, seed_variance, example_variance)
    )
    num_needed = None if math.isnan(needed) else int(needed)
    return Estimate(difference, low_, high_, p_value_, seed, example, num_seeds, num_needed, verdict, margin)
