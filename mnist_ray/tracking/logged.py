"""Records where a run or a grid is logged: one small file for each tracker, beside what it describes.

<storage>/runs/<run>/logged/tensorboard.json    tracker, folder (in the storage)
                            mlflow.json         tracker, tracking_uri (null: MLflow's own store in the storage), run_id
                            mlflow-<hash>.json  the same for another store or a server; the hash is of its URI
<storage>/grids/<grid>/logged/mlflow*.json      the same, for the MLflow run above those of the grid

The first record stays, so that of several processes that log the same run all write to one place.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from mnist_ray.errors import DataError
from mnist_ray.results.paths import LOGGED
from mnist_ray.results.run_documents import json_bytes
from mnist_ray.storage.storage import Storage, without_secrets

TrackerName = Literal["tensorboard", "mlflow"]
TRACKERS: tuple[TrackerName, ...] = get_args(TrackerName)
# Tracker -> keys of its records.
_KEYS: Mapping[str, Sequence[str]] = {
    "tensorboard": ("tracker", "folder"),
    "mlflow": ("tracker", "tracking_uri", "run_id"),
}
Record = Mapping[str, Any]


def read_records(storage: Storage, folder: str) -> list[Record]:
    """Returns the records of a run's or a grid's folder.

    Raises:
      DataError: one is damaged.
      StorageError: the storage can't be read.
    """
    return [_read(storage, entry.path) for entry in storage.list_files(f"{folder}/{LOGGED}")]


def find_record(storage: Storage, folder: str, tracker: str, tracking_uri: str | None = None) -> Record | None:
    """Returns the record of one tracker at a tracking URI, None if there is none; see read_records."""
    path = _path(folder, {"tracker": tracker, "tracking_uri": tracking_uri})
    return _read(storage, path) if storage.exists(path) else None


def claim_record(storage: Storage, folder: str, record: Record, *, replace: bool = False) -> Record:
    """Writes a record unless there is one for its tracker and tracking URI; returns the one that counts."""
    path = _path(folder, record)
    if replace:
        storage.write_bytes(path, json_bytes(record))
    elif not storage.create_bytes(path, json_bytes(record)):
        return _read(storage, path)
    return record


def recorded_uri(uri: str) -> str:
    """Returns a tracking URI as records hold it: the same in every working folder, and without secrets."""
    if uri.startswith("sqlite:///"):
        return without_secrets(f"sqlite:///{os.path.abspath(uri.removeprefix('sqlite:///'))}")
    is_path = ":" not in uri and not uri.startswith(("databricks", "uc"))
    return os.path.abspath(uri) if is_path else without_secrets(uri)


def _path(folder: str, record: Record) -> str:
    uri = record.get("tracking_uri")
    suffix = f"-{hashlib.sha256(uri.encode()).hexdigest()[:8]}" if uri else ""
    return f"{folder}/{LOGGED}/{record['tracker']}{suffix}.json"


def _read(storage: Storage, path: str) -> Record:
    try:
        record = json.loads(storage.read_bytes(path))
        return {key: record[key] for key in _KEYS[record["tracker"]]}
    except (ValueError, TypeError, KeyError, RecursionError):
        raise DataError(f"{storage.uri_of(path)} is damaged; delete it") from None
