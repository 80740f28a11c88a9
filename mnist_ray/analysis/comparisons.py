"""Compares two settings: paired intervals over seeds and test examples, McNemar's test, a verdict.

Everything is paired: two settings are compared on their common seeds and on the same examples.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from mnist_ray.analysis.effects import CONFIDENCE, holm

RESOLUTION = 0.001
MOST_SEEDS = 9_999
_SMALLEST_P = 1e-50
_OPPOSITES = {"better": "worse", "worse": "better"}


@dataclass(frozen=True, eq=False)
class Scores:
    """Results of one setting's runs on the examples.

    Attributes:
      seeds: one per run, without duplicates.
      correct: bool [seeds, examples].
      loss: float32 [seeds, examples], nats.
    """

    label: str
    seeds: tuple[int, ...]
    correct: NDArray[np.bool_]
    loss: NDArray[np.float32]


@dataclass(frozen=True)
class Interval:
    """A mean difference with its 95 % interval over seeds and examples.

    Attributes:
      difference: the mean.
      low, high: ends of the interval; None if the differences do not show their uncertainty: all are equal and not
        zero, or one is not finite.
      p_value: two-sided, of no difference; None likewise.
      seed_error: standard error from the seeds, including the residual; None with one seed.
      example_error: standard error from the examples.
    """

    difference: float
    low: float | None
    high: float | None
    p_value: float | None
    seed_error: float | None
    example_error: float


@dataclass(frozen=True)
class Comparison:
    """One row of the comparisons table: the first setting against the second.

    Attributes:
      first, second: labels of the settings.
      num_seeds, num_examples: common seeds and examples.
      accuracy, log_loss: means of the first over seeds and examples; subtract the difference to get the second's.
      accuracy_difference, log_loss_difference: first minus second.
      p_adjusted: p_value of accuracy_difference after Holm's correction; None if p_value is None.
      first_right, second_right: examples that this setting predicts correctly with more seeds.
      mcnemar_p, mcnemar_p_adjusted: p value of McNemar's exact test on these, and after Holm's correction.
      num_seeds_needed, verdict: see `seeds_needed` and `judge`.
    """

    first: str
    second: str
    num_seeds: int
    num_examples: int
    accuracy: float
    log_loss: float
    accuracy_difference: Interval
    log_loss_difference: Interval
    p_adjusted: float | None
    first_right: int
    second_right: int
    mcnemar_p: float
    mcnemar_p_adjusted: float
    num_seeds_needed: int | None
    verdict: str

    @property
    def is_decided(self) -> bool:
        """Whether the verdict is better or worse."""
        return self.verdict in _OPPOSITES

    def reversed(self) -> "Comparison":
        """Returns the second against the first."""
        return replace(
            self,
            first=self.second,
            second=self.first,
            accuracy=self.accuracy - self.accuracy_difference.difference,
            log_loss=self.log_loss - self.log_loss_difference.difference,
            accuracy_difference=_negative(self.accuracy_difference),
            log_loss_difference=_negative(self.log_loss_difference),
            first_right=self.second_right,
            second_right=self.first_right,
            verdict=_OPPOSITES.get(self.verdict, self.verdict),
        )


def _negative(given: Interval) -> Interval:
    # 0.0 - x, not -x, which prints zero as -0.00.
    low, high = (None if end is None else 0.0 - end for end in (given.high, given.low))
    return replace(given, difference=0.0 - given.difference, low=low, high=high)


def compare(settings: Sequence[Scores]) -> list[Comparison]:
    """Compares each setting with every earlier one and judges the pairs; leaves out pairs without a common seed.

    Args:
      settings: all with the same examples, in the same order.
    """
    return judge(
        [
            _compared(first, second)
            for second, first in combinations(settings, 2)
            if not set(first.seeds).isdisjoint(second.seeds)
        ]
    )


def judge(pairs: Sequence[Comparison]) -> list[Comparison]:
    """Returns the pairs with p values corrected over all pairs, and with the resulting verdicts.

    The verdict is 'better' or 'worse' if two tests of no difference agree on the direction, each below 0.05 after
    Holm's correction: the t test of the interval of `paired_interval`, which covers other seeds but assumes a normal
    distribution, and McNemar's exact test, which ignores other seeds but stays valid if a handful of examples decides.
    The 95 % interval then excludes zero. A pair with one seed, which says nothing about other seeds, or without a p
    value is 'unresolved'. Any other pair is a 'tie': not shown to be equal, but not told apart.

    Reference: Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    adjusted = holm([pair.accuracy_difference.p_value for pair in pairs])
    exact = holm([pair.mcnemar_p for pair in pairs])
    return [_judged(*row) for row in zip(pairs, adjusted, exact, strict=True)]


def _compared(first: Scores, second: Scores) -> Comparison:
    seeds = sorted(set(first.seeds) & set(second.seeds))
    rows, others = ([given.seeds.index(seed) for seed in seeds] for given in (first, second))
    right = first.correct[rows].astype(np.int8) - second.correct[others].astype(np.int8)
    accuracy = paired_interval(right)
    wins = right.sum(axis=0, dtype=np.int64)
    first_right, second_right = int((wins > 0).sum()), int((wins < 0).sum())
    return Comparison(
        first=first.label,
        second=second.label,
        num_seeds=len(seeds),
        num_examples=right.shape[1],
        accuracy=float(first.correct[rows].mean()),
        log_loss=float(first.loss[rows].mean(dtype=np.float64)),
        accuracy_difference=accuracy,
        log_loss_difference=paired_interval(first.loss[rows].astype(np.float64) - second.loss[others]),
        p_adjusted=1.0,
        first_right=first_right,
        second_right=second_right,
        mcnemar_p=mcnemar(first_right, second_right),
        mcnemar_p_adjusted=1.0,
        num_seeds_needed=seeds_needed(accuracy, num_seeds=len(seeds), num_examples=right.shape[1]),
        verdict="tie",
    )


def _judged(pair: Comparison, p_adjusted: float | None, mcnemar_p: float | None) -> Comparison:
    assert mcnemar_p is not None
    judged = replace(pair, p_adjusted=p_adjusted, mcnemar_p_adjusted=mcnemar_p)
    if p_adjusted is None or pair.num_seeds == 1:
        return replace(judged, verdict="unresolved")
    signs = np.sign(pair.accuracy_difference.difference), np.sign(pair.first_right - pair.second_right)
    sure = max(p_adjusted, mcnemar_p) < 1 - CONFIDENCE and signs[0] == signs[1]
    return replace(judged, verdict="tie" if not sure else "better" if signs[0] > 0 else "worse")


def paired_interval(differences: NDArray[np.generic]) -> Interval:
    """Returns the mean of paired differences with a 95 % interval that covers other seeds and other examples.

    A difference is the mean + a seed effect + an example effect + a residual, all random (seeds and examples are
    crossed). The variance of the mean is estimated in two independent parts, v_seed = variance of the seeds' means /
    seeds, which includes the residual, and v_example = (MS_example - MS_residual) / (seeds * examples), at least 0; the
    quantile is the mean of their t quantiles, weighted by these parts. In 6,000 simulated draws of each of 18 mixes of
    the three, from seeds only to examples only, the interval covered the truth in 94.2 to 97.8 % with 2 seeds, 94.8 to
    97.2 % with 3, 95.0 to 96.5 % with 5 and 94.8 to 95.8 % with 10. Satterthwaite's degrees of freedom gave 92.2 % in
    the worst mix with 3 seeds. A percentile bootstrap over a few seeds ignores the t distribution, and resampling seeds
    and examples together counts the residual three times (Owen).

    With one seed, the interval covers only other examples. All-zero differences give an interval of width 0 and p = 1.

    Args:
      differences: number [seeds, examples].

    Raises:
      ValueError: no seeds or no examples.

    Reference: Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007, for the variance of crossed data;
      Cochran and Cox, "Experimental Designs", 1950, for the weighted quantile.
    """
    num_seeds, num_examples = differences.shape
    if not differences.size:
        raise ValueError(f"differences of {num_seeds} seeds and {num_examples} examples: no interval without any")
    values = differences.astype(np.float64)
    no_error = 0.0 if num_seeds > 1 else None
    if not values.any():
        return Interval(0.0, 0.0, 0.0, 1.0, no_error, 0.0)
    # Not the variance, which rounding of the mean can make positive for equal numbers.
    if not np.ptp(values) > 0 or not np.isfinite(values).all():
        return Interval(float(values.mean()), None, None, None, no_error, 0.0)
    mean = float(values.mean())
    seed, example = _variances(values)
    degrees = (max(num_seeds - 1, 1), max(num_examples - 1, 1))
    error = (seed + example) ** 0.5
    half = _quantile(1 - CONFIDENCE, seed, example, degrees) * error
    p_value = _p_value(abs(mean) / error, seed, example, degrees)
    return Interval(mean, mean - half, mean + half, p_value, seed**0.5 if num_seeds > 1 else None, example**0.5)


def _variances(values: NDArray[np.float64]) -> tuple[float, float]:
    """Returns the seed part and the example part of the variance of the mean."""
    num_seeds, num_examples = values.shape
    of_seeds, of_examples = values.mean(axis=1), values.mean(axis=0)
    if num_examples == 1:
        return float(of_seeds.var(ddof=1)) / num_seeds if num_seeds > 1 else 0.0, 0.0
    if num_seeds == 1:
        return 0.0, float(of_examples.var(ddof=1)) / num_examples
    residuals = values - of_seeds[:, None] - of_examples + values.mean()
    residual = float((residuals**2).sum()) / ((num_seeds - 1) * (num_examples - 1)) / (num_seeds * num_examples)
    # Few seeds on few examples may have equal accuracies by chance. The residual alone spreads the seeds' means, so
    # the variance is at least the 5 % quantile of what the residual gives.
    least = float(stats.chi2.ppf(0.05, num_seeds - 1)) / (num_seeds - 1) * residual
    seed = max(float(of_seeds.var(ddof=1)) / num_seeds, least)
    return seed, max(float(of_examples.var(ddof=1)) / num_examples - residual, 0.0)


def _quantile(p_value: float, seed: float, example: float, degrees: tuple[int, int]) -> float:
    # Not stats.t.isf, which takes a hundred times as long for a single number.
    of_seeds, of_examples = (-float(special.stdtrit(number, p_value / 2)) for number in degrees)
    return (of_seeds * seed + of_examples * example) / (seed + example)


def _p_value(statistic: float, seed: float, example: float, degrees: tuple[int, int]) -> float:
    """Returns the p value whose quantile is the statistic, by bisection of its logarithm; at least 1e-50."""
    low, high = math.log(_SMALLEST_P), 0.0
    for _ in range(60):
        middle = (low + high) / 2
        if _quantile(math.exp(middle), seed, example, degrees) > statistic:
            low = middle
        else:
            high = middle
    return math.exp(high)


def mcnemar(first_right: int, second_right: int) -> float:
    """Returns the two-sided p value of McNemar's exact test.

    With several seeds, an example counts once, for the setting that is right with more of them. Tests per seed share
    their examples, so they can't be combined as independent tests; majority predictions are an ensemble's and may be
    equal for settings of different accuracy. With one seed, this is the usual McNemar test.

    Args:
      first_right: examples on which the first is right and the second is not.
      second_right: the reverse.

    Reference: McNemar, "Note on the sampling error of the difference between correlated proportions", 1947.
    """
    count = first_right + second_right
    # Equals scipy.stats.binomtest, which takes ten times as long: a minute for the pairs of 160 settings.
    return min(1.0, float(2 * stats.binom.cdf(min(first_right, second_right), count, 0.5)))


def seeds_needed(interval: Interval, *, num_seeds: int, num_examples: int) -> int | None:
    """Returns the number of seeds for an interval half width of 0.1 points of accuracy or less.

    Returns:
      2 or more; None if 9,999 seeds are not enough, or with one seed.
    """
    if interval.seed_error is None:
        return None
    counts = np.arange(2, MOST_SEEDS + 1)
    seed = interval.seed_error**2 * num_seeds / counts
    total = seed + interval.example_error**2
    if total[0] == 0:
        return 2
    of_seeds = stats.t.ppf((1 + CONFIDENCE) / 2, counts - 1)
    of_examples = stats.t.ppf((1 + CONFIDENCE) / 2, max(num_examples - 1, 1))
    half = (of_seeds * seed + of_examples * interval.example_error**2) / np.sqrt(total)
    enough = counts[half <= RESOLUTION]
    return int(enough[0]) if len(enough) else None


def half_width_of_examples(interval: Interval, num_examples: int) -> float:
    """Returns the half width that remains with any number of seeds."""
    return float(stats.t.ppf((1 + CONFIDENCE) / 2, max(num_examples - 1, 1))) * interval.example_error


def tie_groups(labels: Sequence[str], pairs: Sequence[Comparison]) -> dict[str, int]:
    """Returns the group of each setting: the rank of its leader, for example 1, 1, 3.

    The first setting leads group 1. A setting joins the best leader that it is not told apart from (a tie, or
    unresolved), or leads a new group. Settings of one group are not told apart from its leader, but may be told apart
    from each other.

    Args:
      labels: the settings, the best first.
      pairs: of these settings; a setting never joins a leader that it was not compared with.
    """
    tied = {frozenset((pair.first, pair.second)) for pair in pairs if not pair.is_decided}
    groups: dict[str, int] = {}
    leaders: list[str] = []
    for place, label in enumerate(labels, start=1):
        leader = next((leader for leader in leaders if frozenset((leader, label)) in tied), None)
        groups[label] = place if leader is None else groups[leader]
        leaders += [label] if leader is None else []
    return groups
