"""Lists the runs, evaluations and grids of a storage."""

import json
from collections import Counter
from typing import Any

from mnist_ray.config.settings import TrainConfig
from mnist_ray.errors import CheckpointError, DataError
from mnist_ray.results.grid_folder import GridFolder
from mnist_ray.results.kinds import RUN, existing
from mnist_ray.results.paths import EVALUATIONS, GRIDS, evaluation_path, run_path
from mnist_ray.results.run_progress import read_progress
from mnist_ray.setting import settings_where
from mnist_ray.storage.storage import MissingError, Storage, open_storage

# Errors from reading a folder with a file that is missing, truncated or malformed.
_DAMAGED = (MissingError, CheckpointError, DataError, ValueError, KeyError, TypeError, RecursionError)


def list_runs(storage_uri: str) -> list[dict[str, Any]]:
    """Returns one row per run: settings that tell runs apart, epochs done, best epoch, status.

    Raises:
      StorageError: the storage can't be read.
    """
    storage = open_storage(storage_uri)
    return [_run_row(storage, run) for run in existing(storage, RUN)]


def _run_row(storage: Storage, run: str) -> dict[str, Any]:
    try:
        config = json.loads(storage.read_bytes(run_path(run, "config.json")))["config"]
        progress = read_progress(storage, run)
        return {
            "run": run,
            "status": progress.status,
            **{name: config[name] for name in settings_where(TrainConfig, lambda setting: setting.is_listed)},
            "epochs": progress.epochs_done,
            "best_epoch": progress.best_epoch,
            "val_accuracy": progress.best_val_accuracy,
            "val_loss": progress.best_val_loss,
        }
    except _DAMAGED:
        return {"run": run, "status": "damaged"}


def list_evaluations(storage_uri: str) -> list[dict[str, Any]]:
    """Returns one row per evaluation that is committed or has a damaged manifest.

    Raises:
      StorageError: the storage can't be read.
    """
    storage = open_storage(storage_uri)
    rows = [_evaluation_row(storage, name) for name in storage.list_folders(EVALUATIONS)]
    return [row for row in rows if row]


def _evaluation_row(storage: Storage, name: str) -> dict[str, Any] | None:
    try:
        manifest = storage.read_manifest(evaluation_path(name))
        return manifest and {
            "evaluation": name,
            "status": "committed",
            "dataset": manifest["config"]["dataset"],
            "split": manifest["config"]["split"],
            "runs": len(manifest["runs"]),
            "examples": manifest["num_examples"],
            "uri": storage.uri_of(evaluation_path(name)),
        }
    except _DAMAGED:
        return {"evaluation": name, "status": "damaged"}


def list_grids(storage_uri: str) -> list[dict[str, Any]]:
    """Returns one row per grid: its axes, its runs by status, and the run with the best validation accuracy.

    Raises:
      StorageError: the storage can't be read.
    """
    storage = open_storage(storage_uri)
    rows = []
    for name in storage.list_folders(GRIDS):
        folder = GridFolder(storage, name)
        document = folder.document()
        if document is None:
            continue
        runs = folder.read_runs()
        status = Counter(row["status"] for row in runs)
        scores = ((row["best_val_accuracy"], row["run"]) for row in runs if row["best_val_accuracy"] is not None)
        best_accuracy, best_run = max(scores, default=(None, None))
        rows.append(
            {
                "grid": name,
                "axes": " x ".join(f"{axis} ({len(levels)})" for axis, levels in document["settings"]["axes"].items()),
                # A growing grid may end before its last seed.
                "seeds": len({row["seed"] for row in runs}) or len(document["settings"]["seeds"]),
                "runs": len(document["runs"]),
                **{name: status[name] for name in ("finished", "stopped", "diverged")},
                "best_val_accuracy": best_accuracy,
                "best_run": best_run,
            }
        )
    return rows
