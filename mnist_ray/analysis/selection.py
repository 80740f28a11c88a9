"""Honest selection: the setting that validation chooses, its test accuracy, and the optimism of choosing it."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.analysis.crossed import mean_squares
from mnist_ray.analysis.max_t import NOTHING
from mnist_ray.text.tables import print_text

# Levels of the estimated distribution of true means, and steps of the expectation-maximization algorithm.
_LEVELS, _STEPS = 100, 200


@dataclass(frozen=True)
class Selection:
    """The setting with the best mean validation accuracy over its seeds.

    Attributes:
      num_settings: number of candidates.
      val_accuracy, test_accuracy: means over its seeds.
      optimism: val_accuracy minus test_accuracy.
      selection_bias: see `selection_bias`, over the seeds that all settings have; None if it can't be estimated.
      counts_examples: whether it counts the noise of the validation examples, besides that of the seeds.
    """

    setting: str
    num_settings: int
    num_seeds: int
    val_accuracy: float
    test_accuracy: float
    optimism: float
    selection_bias: float | None
    counts_examples: bool

    @property
    def bias_words(self) -> str | None:
        """What the selection bias is, in words; None without one."""
        if self.selection_bias is None:
            return None
        spread = "seeds and of the validation examples" if self.counts_examples else "seeds"
        return (
            f"about {100 * self.selection_bias:.2f} points of the validation accuracy come from choosing the best of "
            f"{self.num_settings}, by the spread of the {spread}"
        )


def select(
    groups: Mapping[str, Mapping[int, Mapping[str, Any]]], correct: Mapping[str, NDArray[np.bool_]]
) -> Selection:
    """Chooses the highest mean best_val_accuracy, then the lowest mean best_val_loss, as the leaderboard does.

    Args:
      groups: label of a setting -> seed -> row of the metrics table, with best_val_accuracy and best_val_loss.
      correct: run -> its right and wrong answers, bool [validation examples], on the same examples for all; without
        one of the runs, the noise of the examples is not counted.
    """
    means = {
        label: [
            fmean(row[name] for row in rows.values()) for name in ("best_val_accuracy", "best_val_loss", "accuracy")
        ]
        for label, rows in groups.items()
    }
    chosen = min(means, key=lambda label: (-means[label][0], means[label][1], label))
    val_accuracy, _, test_accuracy = means[chosen]
    seeds = sorted(set.intersection(*(set(rows) for rows in groups.values())))
    runs = [[rows[seed] for seed in seeds] for rows in groups.values()]
    counts_examples = bool(seeds) and all(row["run"] in correct for of_setting in runs for row in of_setting)
    if counts_examples:
        values = np.array([[correct[row["run"]] for row in of_setting] for of_setting in runs])
    else:
        values = np.array([[[row["best_val_accuracy"]] for row in of_setting] for of_setting in runs])
    return Selection(
        setting=chosen,
        num_settings=len(groups),
        num_seeds=len(groups[chosen]),
        val_accuracy=val_accuracy,
        test_accuracy=test_accuracy,
        optimism=val_accuracy - test_accuracy,
        selection_bias=selection_bias(values) if len(groups) > 2 and len(seeds) > 1 else None,
        counts_examples=counts_examples,
    )


def selection_bias(values: NDArray[Any]) -> float:
    """Estimates how much the best mean of several settings is inflated by choosing it as the best.

    The settings' means vary by their true differences and by noise, from the seeds and from the examples, beyond what
    all settings have in common. The distribution of the true means that makes the observed ones most likely is
    estimated; the bias is what the best one exceeds the expectation of its true mean by. The noise of an accuracy a has
    a variance in proportion to a (1 - a).

    Args:
      values: [settings, seeds, examples], two seeds or more, higher is better: right and wrong answers, bool; or
        accuracies of runs, float, as if of one example, whose noise is then not counted.

    Source: Efron, "Tweedie's formula and selection bias", 2011; Jiang, Zhang, "General maximum likelihood empirical
      Bayes estimation of normal means", 2009.
    """
    squares = mean_squares(values)
    means = squares.means
    of_seeds, of_examples, residual = map(_between, (squares.seed, squares.example, squares.residual))
    noise = max(of_seeds, residual) + max(of_examples - residual, 0.0)
    noise /= squares.num_seeds * squares.num_examples
    if noise <= NOTHING:
        return 0.0
    return float(means.max() - _expected_best(means, noise))


def _between(covariance: NDArray[np.float64]) -> float:
    """Returns the mean variance of settings around the mean of all settings."""
    return float(np.trace(covariance) - covariance.mean() * len(covariance)) / (len(covariance) - 1)


def _expected_best(means: NDArray[np.float64], noise: float) -> float:
    """Returns the expected true mean of the highest of some means with noise of this variance."""
    levels = np.linspace(means.min(), means.max(), _LEVELS)
    variances = noise * np.maximum(levels * (1 - levels), NOTHING) / np.maximum(means * (1 - means), NOTHING).mean()
    logs = -((means[:, None] - levels) ** 2) / variances / 2 - np.log(variances) / 2
    likelihoods = np.exp(logs - logs.max(axis=1, keepdims=True))
    weights = np.ones(_LEVELS)
    for _ in range(_STEPS):
        shares = likelihoods * weights
        shares /= shares.sum(axis=1, keepdims=True)
        weights = shares.mean(axis=0)
    return float(shares[means.argmax()] @ levels)


def print_selection(selection: Selection) -> None:
    """Prints the selection in two or three sentences."""
    print_text(
        f"Chosen by validation from {selection.num_settings} settings: {selection.setting}; validation "
        f"accuracy {selection.val_accuracy:.4f}, test accuracy {selection.test_accuracy:.4f}, optimism "
        f"{100 * selection.optimism:+.2f} points."
    )
    if selection.bias_words is not None:
        print_text(f"{selection.bias_words.capitalize()}.")
    print_text("Choosing the best epochs on the same validation examples makes the validation accuracy optimistic too.")
