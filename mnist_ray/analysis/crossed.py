"""Mean squares of settings crossed with seeds and examples: how much of a mean is due to each."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class MeanSquares:
    """Means of k settings over the same seeds and examples, with their mean squares and products, float64 [k, k].

    A value is the setting's mean + a seed effect + an example effect + a residual. Each effect has a covariance over
    the settings, because the settings share the seeds and the examples.

    Attributes:
      means: float64 [k].
      seed: mean squares of the seeds, divisor num_seeds - 1.
      example: mean squares of the examples, divisor num_examples - 1.
      residual: mean squares of the residuals, divisor (num_seeds - 1) * (num_examples - 1).

    With one seed or one example, the mean squares that can't be computed are 0.
    """

    means: NDArray[np.float64]
    seed: NDArray[np.float64]
    example: NDArray[np.float64]
    residual: NDArray[np.float64]
    num_seeds: int
    num_examples: int


def mean_squares(values: NDArray[Any]) -> MeanSquares:
    """Computes the mean squares of bool or finite float values [settings, seeds, examples].

    The sums of bools are exact, so settings with equal counts get equal mean squares.

    Raises:
      ValueError: no seeds or no examples.

    Source: Cornfield, Tukey, "Average values of mean squares in factorials", 1956.
    """
    _, num_seeds, num_examples = values.shape
    if not num_seeds or not num_examples:
        raise ValueError(f"{num_seeds} seeds and {num_examples} examples: nothing to compare")
    sums = _exact_sums(values) if values.dtype == np.bool_ else _centred_sums(values.astype(np.float64))
    means, *squares = sums
    degrees = (num_seeds - 1, num_examples - 1, (num_seeds - 1) * (num_examples - 1))
    seed, example, residual = (
        square / degree if degree else np.zeros_like(square) for square, degree in zip(squares, degrees, strict=True)
    )
    return MeanSquares(means, seed, example, residual, num_seeds, num_examples)


def _exact_sums(values: NDArray[Any]) -> tuple[NDArray[np.float64], ...]:
    """Returns the means and the sums of squares and products of the seeds, the examples and the residuals."""
    num_settings, num_seeds, num_examples = values.shape
    of_seeds = values.sum(axis=2, dtype=np.int64)
    of_examples = values.sum(axis=1, dtype=np.int64)
    total = of_seeds.sum(axis=1)
    # Products of counts below 2**24 are exact in float32, and a matrix product in it is the fastest.
    both = np.zeros((num_settings, num_settings), dtype=np.int64)
    for seed in range(num_seeds):
        ones = values[:, seed].astype(np.float32)
        both += np.rint(ones @ ones.T).astype(np.int64)
    counts = of_examples.astype(np.float64)
    seeds, examples, square = of_seeds @ of_seeds.T, np.rint(counts @ counts.T).astype(np.int64), np.outer(total, total)
    size = num_seeds * num_examples
    return (
        total / size,
        (num_seeds * seeds - square) / size,
        (num_examples * examples - square) / size,
        (size * both - num_seeds * seeds - num_examples * examples + square) / size,
    )


def _centred_sums(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Returns the same as _exact_sums, up to rounding."""
    num_seeds, num_examples = values.shape[1:]
    means = values.mean(axis=(1, 2))
    of_seeds = values.mean(axis=2) - means[:, None]
    of_examples = values.mean(axis=1) - means[:, None]
    residual = np.zeros((len(values), len(values)))
    for seed in range(num_seeds):
        rest = values[:, seed] - means[:, None] - of_seeds[:, seed, None] - of_examples
        residual += rest @ rest.T
    return means, num_examples * of_seeds @ of_seeds.T, num_seeds * of_examples @ of_examples.T, residual
