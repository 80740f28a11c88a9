"""The epochs of a run; does not import torch, so listing runs is fast."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mnist_ray.config.settings import TrainConfig


@dataclass(frozen=True)
class EpochResult:
    """One row of a run's history; losses are mean cross-entropies in nats, accuracies fractions.

    The training loss is the minimized loss (with dropout, augmentation and label smoothing), averaged over the epoch's
    steps while the weights changed.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    examples: int
    epoch_seconds: float


def best_epoch(history: Sequence[EpochResult]) -> int:
    """Returns the epoch (from 1) with the lowest validation loss; the first in a tie."""
    return min(history, key=lambda row: row.val_loss).epoch


def is_finished(config: TrainConfig, history: Sequence[EpochResult]) -> bool:
    """Tells whether a run has trained all its epochs, or has not improved for as many epochs as its patience."""
    if len(history) >= config.epochs:
        return True
    patience = config.early_stopping_patience
    return bool(history) and patience is not None and len(history) - best_epoch(history) >= patience


def timeless(history: Sequence[EpochResult]) -> list[dict[str, Any]]:
    """Returns the epochs as column name -> value, without their seconds, which are not part of a run's result."""
    return [{name: value for name, value in asdict(row).items() if name != "epoch_seconds"} for row in history]
