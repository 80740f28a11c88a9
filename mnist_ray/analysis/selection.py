"""Honest selection: the setting that validation chooses, its test accuracy, and the optimism of choosing it."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.text.escape import printable


@dataclass(frozen=True)
class Selection:
    """The setting with the best mean validation accuracy over its seeds.

    Attributes:
      num_settings: number of candidates.
      val_accuracy, test_accuracy: means over its seeds.
      optimism: val_accuracy minus test_accuracy.
      selection_bias: see `selection_bias`, over the seeds that all settings have; None if it can't be estimated.
    """

    setting: str
    num_settings: int
    num_seeds: int
    val_accuracy: float
    test_accuracy: float
    optimism: float
    selection_bias: float | None


def select(groups: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> Selection:
    """Chooses the highest mean best_val_accuracy, then the lowest mean best_val_loss, as the leaderboard does.

    Args:
      groups: label of a setting -> seed -> row of the metrics table, with the run's best_val_accuracy, best_val_loss.
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
    values = np.array([[rows[seed]["best_val_accuracy"] for seed in seeds] for rows in groups.values()])
    return Selection(
        setting=chosen,
        num_settings=len(groups),
        num_seeds=len(groups[chosen]),
        val_accuracy=val_accuracy,
        test_accuracy=test_accuracy,
        optimism=val_accuracy - test_accuracy,
        selection_bias=selection_bias(values),
    )


def selection_bias(values: NDArray[np.float64]) -> float | None:
    """Estimates how much the best mean of several settings is inflated by choosing it as the best.

    The settings' means vary by their true differences and by noise. The noise of a mean comes from the seeds, beyond
    what all settings have in common; the rest of the means' variance is true. A setting's expected true value lies
    between its mean and the mean of all, the nearer to the latter the larger the share of the noise, and the bias is
    what the best one loses. The noise of the validation examples, which all settings share, is not counted.

    Args:
      values: float64 [settings, seeds], higher is better.

    Returns:
      0 or more; None with fewer than two seeds or three settings.

    Source: Efron, Morris, "Stein's estimation rule and its competitors: an empirical Bayes approach", 1973; Efron,
      "Tweedie's formula and selection bias", 2011.
    """
    num_settings, num_seeds = values.shape
    if num_settings < 3 or num_seeds < 2:
        return None
    means = values.mean(axis=1)
    residuals = values - means[:, None] - values.mean(axis=0) + values.mean()
    noise = float((residuals**2).sum()) / ((num_settings - 1) * (num_seeds - 1)) / num_seeds
    spread = float(means.var(ddof=1))
    share = min(noise / spread, 1.0) if spread > 0 else 1.0
    return share * float(means.max() - means.mean())


def print_selection(selection: Selection) -> None:
    """Prints the selection in two or three lines."""
    print(
        f"Chosen by validation from {selection.num_settings} settings: {printable(selection.setting)}; validation "
        f"accuracy {selection.val_accuracy:.4f}, test accuracy {selection.test_accuracy:.4f}, optimism "
        f"{100 * selection.optimism:+.2f} points."
    )
    if selection.selection_bias is not None:
        print(
            f"About {100 * selection.selection_bias:.2f} points of the validation accuracy come from choosing the best "
            f"of {selection.num_settings}, by the spread of the seeds."
        )
    print("Choosing the best epochs on the same validation examples makes the validation accuracy optimistic too.")
