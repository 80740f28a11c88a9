"""Runs and their evaluations as trackers receive them, and the trackers' paths in a storage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.evaluation.metrics import Rates
from mnist_ray.results.history import EpochResult, best_epoch
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.results.run_progress import RunStatus
from mnist_ray.storage.storage import Storage

TENSORBOARD_FOLDER = "tensorboard"
STORE_FILE = "mlflow.db"
METRICS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate")
RATES = tuple(name for name in Rates.__dataclass_fields__ if name != "num_examples")
TEST = "test_"
# What tells runs apart: the kept epoch's figures, and those of the test split.
SUMMARY = ("best_epoch", *(f"best_{name}" for name in METRICS[:4]), *(f"{TEST}{name}" for name in RATES))


@dataclass(frozen=True)
class SeenRun:
    """A snapshot of a stored run.

    Attributes:
      document: its config.json.
      samples: some of its training images, PNG; None if they aren't known.
    """

    folder: RunFolder
    document: Mapping[str, Any]
    history: tuple[EpochResult, ...]
    status: RunStatus
    samples: bytes | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the run has its best checkpoint, and the snapshot all its epochs."""
        return self.status.is_done and self.folder.is_finished()

    def best_metrics(self) -> dict[str, float]:
        """Returns the figures of the epoch whose weights are kept."""
        best = self.history[best_epoch(self.history) - 1]
        return {"best_epoch": best.epoch, **{f"best_{name}": getattr(best, name) for name in METRICS[:4]}}


@dataclass(frozen=True)
class SeenEvaluation:
    """A run's part of a committed evaluation.

    Attributes:
      document: the run's config.json.
      name, uri: of the evaluation.
      page: URI of its page; None before it is written.
      is_of_run: whether the data is the test split of the run's own data set, so that its figures are the run's.
      dataset, split, data_sha256: the data and its fingerprint.
      epoch: epoch of the evaluated weights.
      metrics: metric -> value, for a run's own test split named test_accuracy and so on, else EVALUATION/accuracy.
      confusion: int64 [classes, classes], rows are true classes.
    """

    folder: RunFolder
    document: Mapping[str, Any]
    name: str
    uri: str
    page: str | None
    is_of_run: bool
    dataset: str
    split: str
    data_sha256: str
    epoch: int
    metrics: Mapping[str, float]
    confusion: NDArray[np.int64]
    class_names: Sequence[str]


def mlflow_store(storage: Storage) -> str:
    """Returns the URI of MLflow's own store in a local storage."""
    return f"sqlite:///{storage.uri_of(f'mlflow/{STORE_FILE}')}"
