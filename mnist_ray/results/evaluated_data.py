"""Compares the data set of an evaluation with the training data sets of its runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import TYPE_CHECKING

from mnist_ray.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from mnist_ray.data.image_shape import ImageShape
    from mnist_ray.results.checkpoint_folder import Checkpoint

_NAMES_SAID = 3


def common_dataset(checkpoints: Sequence[Checkpoint]) -> str:
    """Returns the one data set that all runs were trained on.

    Raises:
      ConfigError: they were trained on several.
    """
    datasets = {checkpoint.config.dataset for checkpoint in checkpoints}
    if len(datasets) > 1:
        raise ConfigError(
            f"dataset: the runs were trained on several ({_listed(checkpoints)}); choose one with --dataset NAME"
        )
    return datasets.pop()


def trained_on(
    checkpoints: Sequence[Checkpoint], dataset: str, class_names: tuple[str, ...], image_shape: ImageShape | None
) -> tuple[list[Checkpoint], str | None]:
    """Selects the runs that were trained on a data set or, if there are none, the runs with its classes.

    Args:
      image_shape: of a data set by name, whose images stay as they are; None for the user's own.

    Returns:
      The selected runs, and a message about the runs that are left out; None if none is.

    Raises:
      CheckpointError: no run qualifies.
    """
    is_chosen = [_is_same(checkpoint.config.dataset, dataset) for checkpoint in checkpoints]
    why = "trained on other data"
    if not any(is_chosen):
        is_chosen = [
            checkpoint.class_names == class_names and image_shape in (None, checkpoint.image_shape)
            for checkpoint in checkpoints
        ]
        why = "with other classes or images"
    if not any(is_chosen):
        raise CheckpointError(
            f"dataset={dataset!r}: no finished run was trained on it or has its {len(class_names)} classes; the runs "
            f"were trained on other data ({_listed(checkpoints)})"
        )
    rest = [checkpoint for checkpoint, chosen in zip(checkpoints, is_chosen, strict=True) if not chosen]
    left_out = f"left out: {len(rest)} of {len(checkpoints)} runs, {why} ({_listed(rest)})"
    return list(compress(checkpoints, is_chosen)), left_out if rest else None


def trained_elsewhere(train_datasets: Sequence[str], dataset: str) -> str | None:
    """Returns a message about runs that were trained on another data set; None if there are none.

    Args:
      train_datasets: one per run.
      dataset: the evaluated data set.
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


def _listed(checkpoints: Sequence[Checkpoint]) -> str:
    """Returns the training data sets, each with its first runs: 'digits: a, b; mnist: c'."""
    runs: dict[str, list[str]] = {}
    for checkpoint in sorted(checkpoints, key=lambda checkpoint: (checkpoint.config.dataset, checkpoint.run)):
        runs.setdefault(checkpoint.config.dataset, []).append(checkpoint.run)
    return "; ".join(f"{dataset}: {_words(names)}" for dataset, names in runs.items())


def _words(runs: Sequence[str]) -> str:
    more = f" and {len(runs) - _NAMES_SAID} more" if len(runs) > _NAMES_SAID else ""
    return ", ".join(runs[:_NAMES_SAID]) + more
