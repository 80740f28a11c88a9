"""Joint inference on contrasts of settings: moderated standard errors, and the distribution of the largest t value.

The seeds are few, so the seed variance of one contrast is a poor estimate. It is drawn towards a common value, by an
amount that the data show (Smyth 2004). All contrasts of a family are judged by the largest |t| that they would give by
chance (Hothorn, Bretz, Westfall 2008), simulated from the same model with the same estimates.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import special

from mnist_ray.analysis.crossed import MeanSquares

CONFIDENCE = 0.95
# Smaller mean squares and differences are rounding errors.
NOTHING = 1e-12
_CHUNK = 500


@dataclass(frozen=True)
class Prior:
    """The seed variance that the settings have in common, in units of what the residuals alone would give.

    Attributes:
      scale: the common ratio, 1 or more.
      scale_df: degrees of freedom of scale.
      df: weight of scale against a contrast's own ratio, in degrees of freedom; infinite if the settings don't differ.
    """

    scale: float
    scale_df: float
    df: float

    def moderate(
        self, scale: NDArray[Any] | float, own: NDArray[Any], seed_df: int, least: NDArray[Any]
    ) -> NDArray[Any]:
        """Returns own ratios drawn towards a common scale, all in the unit of `least`, their lower limit."""
        common = scale * least
        drawn = common if np.isinf(self.df) else (self.df * common + seed_df * own) / (self.df + seed_df)
        computed: NDArray[Any] = np.maximum(drawn, least)
        return computed


def prior_of(squares: MeanSquares) -> Prior:
    """Estimates the prior from the spread of the settings' seed variances.

    Source: Smyth, "Linear models and empirical Bayes methods for assessing differential expression in microarray
      experiments", 2004; Box, "Some theorems on quadratic forms", 1954, for the degrees of freedom.
    """
    count, seed_df = len(squares.means), squares.num_seeds - 1
    centring = np.eye(count) - 1 / count
    residual, seed = centring @ squares.residual @ centring, centring @ squares.seed @ centring
    trace = float(np.trace(residual))
    if trace <= NOTHING or not seed_df:
        return Prior(1.0, float((count - 1) * seed_df), np.inf)
    scale = max(float(np.trace(seed)) / trace, 1.0)
    scale_df = seed_df * trace**2 / float((residual**2).sum())
    if count == 2:
        return Prior(scale, scale_df, np.inf)
    of_seeds, of_residuals = np.diag(seed), np.diag(residual)
    used = (of_seeds > NOTHING) & (of_residuals > NOTHING)
    df = np.inf
    if used.sum() > 2:
        spread = float(np.log(of_seeds[used] / of_residuals[used]).var(ddof=1))
        excess = spread - float(special.polygamma(1, seed_df / 2))
        df = 2 * trigamma_inverse(excess) if excess > 0 else np.inf
    return Prior(scale, scale_df, min(df, max(2.0 * seed_df, scale_df / 2)))


def trigamma_inverse(value: float) -> float:
    """Returns the y with trigamma(y) = value, by Newton's method on 1 / trigamma (Smyth 2004, appendix)."""
    y = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(special.polygamma(1, y))
        step = trigamma * (1 - trigamma / value) / float(special.polygamma(2, y))
        y += step
        if -step / y < 1e-8:
            break
    return y


class Contrasts(Protocol):
    """Differences of settings' values."""

    def of(self, values: NDArray[Any]) -> NDArray[Any]:
        """Returns the contrasts [m, ...] of values [settings, ...]."""

    def variances(self, covariance: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns c'Ac for each contrast c, float64 [m]."""

    @property
    def squared_norms(self) -> NDArray[np.float64] | float:
        """c'c for each contrast, float64 [m] or the same for all."""

    @property
    def bounds(self) -> NDArray[np.float64] | float:
        """The largest contrasts of values between 0 and 1, float64 [m] or the same for all."""


@dataclass(frozen=True, eq=False)
class Weighted:
    """Contrasts by weights [m, settings]."""

    weights: NDArray[np.float64]

    def of(self, values: NDArray[Any]) -> NDArray[Any]:
        """See Contrasts."""
        contrasts: NDArray[Any] = np.tensordot(self.weights.astype(values.dtype), values, axes=1)
        return contrasts

    def variances(self, covariance: NDArray[np.float64]) -> NDArray[np.float64]:
        """See Contrasts."""
        computed: NDArray[np.float64] = ((self.weights @ covariance) * self.weights).sum(axis=1)
        return computed

    @property
    def squared_norms(self) -> NDArray[np.float64]:
        """See Contrasts."""
        computed: NDArray[np.float64] = (self.weights**2).sum(axis=1)
        return computed

    @property
    def bounds(self) -> NDArray[np.float64]:
        """See Contrasts."""
        computed: NDArray[np.float64] = np.abs(self.weights).sum(axis=1) / 2
        return computed


@dataclass(frozen=True, eq=False)
class Pairs:
    """Differences of some settings from one setting; a slice takes no copy of the values."""

    firsts: slice | NDArray[np.int64]
    second: int

    def of(self, values: NDArray[Any]) -> NDArray[Any]:
        """See Contrasts."""
        computed: NDArray[Any] = values[self.firsts] - values[self.second]
        return computed

    def variances(self, covariance: NDArray[np.float64]) -> NDArray[np.float64]:
        """See Contrasts."""
        diagonal = np.diag(covariance)
        both = diagonal[self.firsts] + diagonal[self.second] - 2 * covariance[self.firsts, self.second]
        computed: NDArray[np.float64] = np.maximum(both, 0.0)
        return computed

    @property
    def squared_norms(self) -> float:
        """See Contrasts."""
        return 2.0

    @property
    def bounds(self) -> float:
        """See Contrasts."""
        return 1.0


@dataclass(frozen=True, eq=False)
class Variances:
    """Variances of contrasts' means, float64 [m].

    Attributes:
      unit: what the residuals alone give.
      seed: unit, or more by the seeds' effects; moderated.
      example: from the examples.
    """

    unit: NDArray[np.float64]
    seed: NDArray[np.float64]
    example: NDArray[np.float64]


def variances(squares: MeanSquares, prior: Prior, contrasts: Contrasts, *, are_counts: bool) -> Variances:
    """Returns the variances of contrasts' means.

    Args:
      are_counts: whether the values are right or wrong answers: then one example more or less that could differ is
        counted in, so contrasts without a difference don't look certain.
    """
    num_seeds, num_examples = squares.num_seeds, squares.num_examples
    residual = _positive(contrasts.variances(squares.residual))
    unit = residual / (num_seeds * num_examples)
    own = np.where(residual > 0, contrasts.variances(squares.seed) / (num_seeds * num_examples), unit)
    examples = _positive(contrasts.variances(squares.example) - residual) / (num_seeds * num_examples)
    least = contrasts.squared_norms / 2 / num_examples**2 if are_counts else 0.0
    return Variances(unit, prior.moderate(prior.scale, own, num_seeds - 1, unit), examples + least)


def _positive(squares: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(squares > NOTHING, squares, 0.0)


class Reference(Protocol):
    """The distribution of a family's |t| if there is no difference."""

    def critical(self, level: float) -> float:
        """Returns the |t| above which a contrast is told from 0, jointly with the others."""

    def p_values(self, t: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns p values, adjusted for the whole family, of |t| [m]."""


@dataclass(frozen=True, eq=False)
class Chance:
    """What the largest t value of a family is by chance.

    Attributes:
      largest: |t| of each simulated draw, ascending, float32 [draws].
      best: quantile of (the best other setting - this setting) / its standard error, float64 [settings], if all were
        equal; empty unless the family is all pairs.
    """

    largest: NDArray[np.float32]
    best: NDArray[np.float64]

    def critical(self, level: float) -> float:
        """See Reference; at least the normal distribution's."""
        return max(float(np.quantile(self.largest, level)), float(special.ndtri((1 + level) / 2)))

    def p_values(self, t: NDArray[np.float64]) -> NDArray[np.float64]:
        """See Reference; at least the normal distribution's."""
        above = len(self.largest) - np.searchsorted(self.largest, t.astype(np.float32), "left")
        computed: NDArray[np.float64] = np.maximum((1 + above) / (1 + len(self.largest)), 2 * special.ndtr(-t))
        return computed


def chance(
    squares: MeanSquares, prior: Prior, family: Sequence[Contrasts], *, are_counts: bool, level: float = CONFIDENCE
) -> Chance:
    """Simulates equal settings with the given covariances and returns the largest |t| of a family.

    Args:
      family: contrasts in blocks that fit into memory together with 500 draws; all pairs as one block of Pairs a
        setting, in order, with a slice of the later settings, see `all_pairs`.
      are_counts: see `variances`.
      level: of Chance.best.
    """
    parts = [variances(squares, prior, contrasts, are_counts=are_counts) for contrasts in family]
    num_settings, num_contrasts = len(squares.means), sum(len(part.unit) for part in parts)
    count = 2_000 if num_settings > 200 else 4_000 if num_contrasts > 5_000 else 20_000
    best = np.zeros((num_settings, count), dtype=np.float32) if _is_all_pairs(family, num_settings) else None
    largest = np.zeros(count, dtype=np.float32)
    for at, means, deviations, scale in _draws(squares, prior, count):
        for contrasts, part in zip(family, parts, strict=True):
            unit, example = (value.astype(np.float32)[:, None] for value in (part.unit, part.example))
            seed: NDArray[Any] = unit
            if squares.num_seeds > 1:
                spread: Any = sum(contrasts.of(deviation) ** 2 for deviation in deviations)
                # Without residuals, what is left of the deviations is rounding.
                own = spread * ((unit > 0) / np.float32(squares.num_seeds * (squares.num_seeds - 1)))
                seed = prior.moderate(scale, own, squares.num_seeds - 1, unit)
            variance = seed + example
            t = contrasts.of(means) / np.sqrt(np.where(variance > 0, variance, 1))
            largest[at] = np.maximum(largest[at], np.abs(t).max(axis=0))
            if best is not None and isinstance(contrasts, Pairs):
                np.maximum(best[contrasts.second, at], t.max(axis=0), out=best[contrasts.second, at])
                np.maximum(best[contrasts.firsts, at], -t, out=best[contrasts.firsts, at])
    quantiles = np.zeros(0) if best is None else np.quantile(best, level, axis=1).astype(np.float64)
    return Chance(np.sort(largest), quantiles)


def all_pairs(num_settings: int) -> list[Contrasts]:
    """Returns the differences of the later settings from each setting."""
    return [Pairs(slice(second + 1, num_settings), second) for second in range(num_settings - 1)]


def _is_all_pairs(family: Sequence[Contrasts], num_settings: int) -> bool:
    given, expected = (
        [(each.firsts, each.second) for each in contrasts if isinstance(each, Pairs)]
        for contrasts in (family, all_pairs(num_settings))
    )
    return given == expected


def _draws(
    squares: MeanSquares, prior: Prior, count: int
) -> Iterator[tuple[slice, NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]]:
    """Yields draws of equal settings: their slice, means [k, n], deviations of seeds [S, k, n], common scales [n]."""
    generator = np.random.default_rng(0)
    num_settings, num_seeds, num_examples = len(squares.means), squares.num_seeds, squares.num_examples
    of_seeds = _root(squares.residual / num_examples)
    of_examples = _root((squares.example - squares.residual) / (num_seeds * num_examples))
    firsts = _first_copies(squares.residual)
    centring = np.eye(num_settings) - 1 / num_settings
    trace = max(float(np.trace(centring @ squares.residual @ centring)), NOTHING)
    for start in range(0, count, _CHUNK):
        size = min(_CHUNK, count - start)
        of_seed = of_seeds @ generator.standard_normal((num_seeds, num_settings, size))
        of_seed *= np.sqrt(_inflation(generator, prior, num_settings, size)[firsts])
        means = of_seed.mean(axis=0)
        deviations = of_seed - means
        scale = np.ones(size)
        if num_seeds > 1:
            centred = deviations - deviations.mean(axis=1, keepdims=True)
            scale = np.maximum(num_examples * (centred**2).sum(axis=(0, 1)) / (num_seeds - 1) / trace, 1.0)
        means = means + of_examples @ generator.standard_normal((num_settings, size))
        yield (
            slice(start, start + size),
            means.astype(np.float32),
            deviations.astype(np.float32),
            scale.astype(np.float32),
        )


def _first_copies(residual: NDArray[np.float64]) -> NDArray[np.int64]:
    """Returns the first setting with the same residuals as each: copies have the same seed variance, too."""
    diagonal = np.diag(residual)
    computed: NDArray[np.int64] = (diagonal[:, None] + diagonal - 2 * residual <= NOTHING).argmax(axis=1)
    return computed


def _inflation(generator: np.random.Generator, prior: Prior, num_settings: int, size: int) -> NDArray[np.float64]:
    """Returns by how much each setting's seed variance exceeds the residuals', drawn from the prior [k, draws]."""
    if not prior.scale_df:
        return np.ones((num_settings, size))
    of_settings = np.ones((num_settings, size))
    if np.isfinite(prior.df):
        of_settings = np.minimum(prior.df / generator.chisquare(prior.df, (num_settings, size)), 100)
    scale = prior.scale * np.minimum(prior.scale_df / generator.chisquare(prior.scale_df, size), 1e4)
    return 1 + np.maximum(scale - 1, 0) * of_settings


def _root(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    values, vectors = _eigen(covariance)
    return vectors * np.sqrt(values)


def positive_part(covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns a symmetric matrix with its negative eigenvalues set to 0."""
    values, vectors = _eigen(covariance)
    return vectors * values @ vectors.T


def _eigen(covariance: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    return np.maximum(values, 0.0), vectors
