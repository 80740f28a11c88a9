"""A run as trackers receive it, and their paths in a storage."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mnist_ray.results.history import EpochResult
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.results.run_progress import RunStatus
from mnist_ray.storage.storage import Storage

TENSORBOARD_FOLDER = "tensorboard"
STORE_FILE = "mlflow.db"
METRICS = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate")


@dataclass(frozen=True)
class SeenRun:
    """A snapshot of a stored run; document is its config.json."""

    folder: RunFolder
    document: Mapping[str, Any]
    history: tuple[EpochResult, ...]
    status: RunStatus


def mlflow_store(storage: Storage) -> str:
    """Returns the URI of MLflow's own store in a local storage."""
    return f"sqlite:///{storage.uri_of(f'mlflow/{STORE_FILE}')}"
