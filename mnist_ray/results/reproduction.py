"""Compares two trainings of one run: whether they are equal, how far apart they are, and what explains it."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mnist_ray.results.checkpoint_folder import Checkpoint
from mnist_ray.results.history import timeless

# Recorded libraries that can change the last bits of the weights.
_LIBRARIES = ("numpy", "torch", "torchvision")
_CLOSE_STANDARD_ERRORS = 3.0

Result = Literal["equal", "close", "different"]


@dataclass(frozen=True)
class Change:
    """A difference between the circumstances of two trainings."""

    what: str
    then: Any
    now: Any


@dataclass(frozen=True)
class Reproduction:
    """Result of training a run again.

    Attributes:
      run: its name.
      weights_equal: whether the best checkpoints have the same bits.
      history_equal: whether all epochs have the same numbers, except for their seconds.
      num_epochs, num_epochs_again: epochs trained then and now.
      best_epoch, best_epoch_again: epochs whose weights are compared.
      weight_difference: the largest of any weight.
      val_loss_difference, val_accuracy_difference: the largest of any common epoch.
      best_val_accuracy_difference: difference of the best epochs, now minus then.
      noise: bound for trainings that differ only in rounding: three standard errors of best_val_accuracy_difference
        over validation examples.
      changes: changed circumstances that can change the last bits.
    """

    run: str
    weights_equal: bool
    history_equal: bool
    num_epochs: int
    num_epochs_again: int
    best_epoch: int
    best_epoch_again: int
    weight_difference: float
    val_loss_difference: float
    val_accuracy_difference: float
    best_val_accuracy_difference: float
    noise: float
    changes: tuple[Change, ...]

    @property
    def result(self) -> Result:
        """The verdict.

        equal: bit for bit. close: not equal, but versions, hardware or the number of workers changed, and the
        accuracies are within the noise. different: neither, so a promise is broken or something else has changed.
        """
        if self.weights_equal and self.history_equal:
            return "equal"
        return "close" if self.changes and abs(self.best_val_accuracy_difference) <= self.noise else "different"

    def as_dict(self) -> dict[str, Any]:
        """Returns the result and the fields by name, as JSON values."""
        return {"result": self.result, **asdict(self)}


def compare_trainings(then: Checkpoint, now: Checkpoint, *, num_validation: int) -> Reproduction:
    """Compares a run's best checkpoint and history with those of the same run trained again.

    Args:
      then: the original training.
      now: the repeated training.
      num_validation: number of validation examples.
    """
    pairs = list(zip(then.history, now.history, strict=False))
    best_then, best_now = (float(each.document["metrics"]["val_accuracy"]) for each in (then, now))
    variance = (best_then * (1 - best_then) + best_now * (1 - best_now)) / num_validation
    return Reproduction(
        run=then.run,
        weights_equal=_same_bits(then.model, now.model),
        history_equal=timeless(then.history) == timeless(now.history),
        num_epochs=len(then.history),
        num_epochs_again=len(now.history),
        best_epoch=int(then.document["epoch"]),
        best_epoch_again=int(now.document["epoch"]),
        weight_difference=max(_largest_difference(value, now.model[name]) for name, value in then.model.items()),
        val_loss_difference=max(abs(old.val_loss - new.val_loss) for old, new in pairs),
        val_accuracy_difference=max(abs(old.val_accuracy - new.val_accuracy) for old, new in pairs),
        best_val_accuracy_difference=best_now - best_then,
        noise=_CLOSE_STANDARD_ERRORS * math.sqrt(variance),
        changes=changes(then.document, now.document),
    )


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[Change, ...]:
    """Returns the differences between two checkpoint.json that can change the last bits."""
    old, new = _circumstances(then), _circumstances(now)
    return tuple(Change(name, old[name], value) for name, value in new.items() if old[name] != value)


def _circumstances(document: Mapping[str, Any]) -> dict[str, Any]:
    lineage = document["lineage"]
    # A library that wasn't installed is missing.
    libraries = {name: lineage["libraries"].get(name) for name in _LIBRARIES}
    others = {name: lineage[name] for name in ("python", "cpu", "gpu", "os", "num_workers")}
    # On a CPU a run has the same bits in a stack of any size.
    stack = {"stack_size": document["stack_size"] if lineage["gpu"] else None}
    return {"code": document["code_version"], **libraries, **others, **stack}


def _same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def _largest_difference(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).abs().max())
