"""The data set of an evaluation and those that its runs were trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mnist_ray.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from mnist_ray.checkpoints import Checkpoint

_NAMES_SAID = 3


def common_dataset(checkpoints: Sequence[Checkpoint]) -> str:
    """Returns the data set that runs were trained on.

    Raises:
      ConfigError: they were trained on several.
    """
    found = _by_dataset(checkpoints)
    if len(found) > 1:
        several = "; ".join(f"{dataset}: {_words(runs)}" for dataset, runs in found.items())
        raise ConfigError(f"dataset: the runs were trained on several ({several}); choose one with --dataset NAME")
    return next(iter(found))


def trained_on(
    checkpoints: Sequence[Checkpoint], dataset: str, class_names: tuple[str, ...]
) -> tuple[list[Checkpoint], str | None]:
    """Returns the runs that were trained on a data set, or, where none was, those that have its classes.

    Returns:
      These, and which others are left out, in words; None if none is.

    Raises:
      CheckpointError: there are none of either.
    """
    own = [checkpoint for checkpoint in checkpoints if _is_same(checkpoint.config.dataset, dataset)]
    chosen = own or [
        checkpoint for checkpoint in checkpoints if tuple(checkpoint.document["class_names"]) == class_names
    ]
    if not chosen:
        several = "; ".join(f"{name}: {_words(runs)}" for name, runs in _by_dataset(checkpoints).items())
        raise CheckpointError(
            f"dataset={dataset!r}: no finished run was trained on it or has its {len(class_names)} classes; the runs "
            f"were trained on other data ({several})"
        )
    rest = _by_dataset([checkpoint for checkpoint in checkpoints if checkpoint not in chosen])
    if not rest:
        return chosen, None
    why = "trained on other data" if own else "with other classes"
    several = "; ".join(f"{name}: {_words(runs)}" for name, runs in rest.items())
    return chosen, f"left out: {sum(map(len, rest.values()))} of {len(checkpoints)} runs, {why} ({several})"


def trained_elsewhere(train_datasets: Sequence[str], dataset: str) -> str | None:
    """Returns which runs were trained on another data set than they are evaluated on, in words; None if none was.

    Args:
      train_datasets: one a run.
      dataset: the one of the evaluation.
    """
    others = [name for name in train_datasets if not _is_same(name, dataset)]
    if not others:
        return None
    if len(others) < len(train_datasets):
        who = f"{len(others)} of {len(train_datasets)} runs {'was' if len(others) == 1 else 'were'}"
    else:
        who = "the run was" if len(others) == 1 else "the runs were"
    return f"{who} trained on {', '.join(sorted(set(others)))}"


def _is_same(dataset: str, other: str) -> bool:
    return dataset.rstrip("/") == other.rstrip("/")


def _by_dataset(checkpoints: Sequence[Checkpoint]) -> dict[str, list[str]]:
    """Returns the names of runs by the data set that they were trained on."""
    found: dict[str, list[str]] = {}
    for checkpoint in sorted(checkpoints, key=lambda checkpoint: (checkpoint.config.dataset, checkpoint.run)):
        found.setdefault(checkpoint.config.dataset, []).append(checkpoint.run)
    return found


def _words(runs: Sequence[str]) -> str:
    more = f" and {len(runs) - _NAMES_SAID} more" if len(runs) > _NAMES_SAID else ""
    return ", ".join(runs[:_NAMES_SAID]) + more
