"""What is in a storage: its runs and evaluations."""

import json
from typing import Any

from mnist_ray import tables
from mnist_ray.storage import MissingError, Storage, open_storage


def list_runs(storage_uri: str) -> list[dict[str, Any]]:
    """Returns one row a run: settings that tell runs apart, epochs done, best epoch, status.

    Raises:
      StorageError: the storage can't be read.
    """
    storage = open_storage(storage_uri)
    return [_run_row(storage, run) for run in storage.list_folders("runs")]


def _run_row(storage: Storage, run: str) -> dict[str, Any]:
    row: dict[str, Any] = {"run": run, "status": "damaged"}
    try:
        config = json.loads(storage.read_bytes(f"runs/{run}/config.json"))["config"]
    except (MissingError, ValueError, KeyError):
        return row
    finished = storage.exists(f"runs/{run}/best/checkpoint.json")
    history = _history(storage, run)
    best = min(history, key=lambda epoch: epoch["val_loss"]) if history else None
    return {
        "run": run,
        "status": "finished" if finished else "unfinished",
        **{name: config[name] for name in ("variant", "dataset", "seed")},
        "epochs": len(history),
        "best_epoch": best["epoch"] if best else None,
        "val_accuracy": best["val_accuracy"] if best else None,
        "val_loss": best["val_loss"] if best else None,
    }


def _history(storage: Storage, run: str) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = tables.read_parquet(storage.read_bytes(f"runs/{run}/history.parquet")).to_pylist()
    except MissingError:
        return []
    return rows


def list_evaluations(storage_uri: str) -> list[dict[str, Any]]:
    """Returns one row a committed evaluation."""
    storage = open_storage(storage_uri)
    rows = []
    for name in storage.list_folders("evaluations"):
        manifest = storage.read_manifest(f"evaluations/{name}")
        if manifest is not None:
            rows.append(
                {
                    "evaluation": name,
                    "dataset": manifest["config"]["dataset"],
                    "split": manifest["config"]["split"],
                    "runs": len(manifest["runs"]),
                    "examples": manifest["num_examples"],
                    "uri": storage.uri_of(f"evaluations/{name}"),
                }
            )
    return rows
