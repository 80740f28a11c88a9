"""Honest selection: the setting that validation chooses, its test accuracy, and the optimism of choosing it."""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.text.escape import printable

_RESAMPLES = 2_000


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

    Resamples seeds with replacement, the same for all settings, and chooses the best resampled mean each time. The bias
    is the excess of that mean over the chosen setting's mean in the sample, averaged over 2,000 resamples with a fixed
    seed. The resampled deviations are widened by sqrt(n / (n - 1)), which resampling n seeds loses. The estimate covers
    only the noise of the seeds, not of the validation examples.

    Args:
      values: float64 [settings, seeds], higher is better.

    Returns:
      0 or more; None with fewer than two seeds, or with one setting.

    Reference: Tibshirani and Tibshirani, "A bias correction for the minimum error rate in cross-validation", 2009;
      Cawley and Talbot, "On over-fitting in model selection", JMLR 2010.
    """
    num_settings, num_seeds = values.shape
    if num_settings < 2 or num_seeds < 2:
        return None
    weights = np.random.default_rng(0).multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=_RESAMPLES)
    means = values.mean(axis=1)
    deviations = (weights @ values.T / num_seeds - means) * (num_seeds / (num_seeds - 1)) ** 0.5
    chosen = (means + deviations).argmax(axis=1)
    return float(deviations[np.arange(_RESAMPLES), chosen].mean())


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
            f"of {selection.num_settings} (bootstrap over seeds)."
        )
    print("Choosing the best epochs on the same validation examples makes the validation accuracy optimistic too.")
