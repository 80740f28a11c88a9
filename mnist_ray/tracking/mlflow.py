"""Logs runs to MLflow: at MLFLOW_TRACKING_URI, or in <storage>/mlflow/mlflow.db, a SQLite file for `mlflow ui`."""

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from mnist_ray.storage.proxies import keep_off_proxies
from mnist_ray.storage.storage import Storage
from mnist_ray.tracking.seen_run import METRICS, STORE_FILE, SeenRun, mlflow_store

_ID_TAG = "mnist_ray.id"
# MLflow accepts 1000 metrics per request.
_EPOCHS_AT_ONCE = 1000 // len(METRICS)
_MLFLOW_STATUS = {"finished": "FINISHED", "stopped": "FINISHED", "diverged": "FAILED"}


def make_store(folder: Path) -> None:
    """Creates MLflow's own store atomically, unless it exists.

    MLflow creates its tables in many steps, so a killed or a concurrent creator would leave an unusable store.
    """
    store = folder / STORE_FILE
    if store.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as temporary:
        made = Path(temporary, STORE_FILE)
        MlflowClient(tracking_uri=f"sqlite:///{made}").search_experiments()
        with contextlib.suppress(FileExistsError):
            os.link(made, store)


@dataclass
class _Logged:
    """The state of a run in MLflow."""

    run_id: str
    epochs: set[int]
    has_ended: bool


class MLflow:
    """Writes to MLflow's tracking store: one experiment, with one MLflow run per run."""

    def __init__(self, storage: Storage, experiment: str) -> None:
        # At INFO, these loggers report the creation of tables.
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        uri, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
        if not uri:
            uri, folder = mlflow_store(storage), Path(storage.uri_of("mlflow"))
            make_store(folder)
            artifacts = (folder / "artifacts").as_uri()
        keep_off_proxies(uri)
        self._client = MlflowClient(tracking_uri=uri)
        known = self._client.get_experiment_by_name(experiment)
        self._experiment = (
            known.experiment_id if known else self._client.create_experiment(experiment, artifact_location=artifacts)
        )
        self._logged: dict[str, _Logged] = {}

    def write(self, seen: SeenRun) -> None:
        """Writes the epochs that MLflow lacks, and the files of a done run."""
        if seen.folder.run not in self._logged:
            self._logged[seen.folder.run] = self._find(seen) or self._create(seen)
        logged = self._logged[seen.folder.run]
        if logged.has_ended:
            return
        missing = [row for row in seen.history if row.epoch not in logged.epochs]
        for start in range(0, len(missing), _EPOCHS_AT_ONCE):
            self._log_epochs(logged, missing[start : start + _EPOCHS_AT_ONCE])
        if seen.status.is_done:
            self._end(logged, seen)

    def close(self) -> None:
        """Marks unfinished runs as killed; the next command that writes them marks them as running."""
        for logged in self._logged.values():
            if not logged.has_ended:
                self._client.set_terminated(logged.run_id, "KILLED")

    def _find(self, seen: SeenRun) -> _Logged | None:
        """Returns the state that an earlier command left of this run."""
        runs = self._client.search_runs(
            [self._experiment], filter_string=f"tags.`{_ID_TAG}` = '{_id(seen)}'", max_results=1
        )
        if not runs:
            return None
        run_id = runs[0].info.run_id
        if runs[0].info.status in _MLFLOW_STATUS.values():
            return _Logged(run_id, set(), has_ended=True)
        self._client.update_run(run_id, status="RUNNING")
        steps = [{row.step for row in self._client.get_metric_history(run_id, name)} for name in METRICS]
        self._log_settings(run_id, seen)
        return _Logged(run_id, set.intersection(*steps), has_ended=False)

    def _create(self, seen: SeenRun) -> _Logged:
        document, folder = seen.document, seen.folder
        tags = {
            _ID_TAG: _id(seen),
            "storage": folder.storage.uri,
            "config_hash": document["config_hash"],
            "data_sha256": document["data_sha256"],
        }
        created = self._client.create_run(self._experiment, run_name=folder.run, tags=tags)
        self._log_settings(created.info.run_id, seen)
        return _Logged(created.info.run_id, set(), has_ended=False)

    def _log_settings(self, run_id: str, seen: SeenRun) -> None:
        config = seen.document["config"].items()
        params = [Param(name, value if isinstance(value, str) else json.dumps(value)) for name, value in config]
        self._client.log_batch(run_id, params=params)

    def _log_epochs(self, logged: _Logged, rows: list[Any]) -> None:
        now = int(time.time() * 1000)
        metrics = [Metric(name, getattr(row, name), now, row.epoch) for row in rows for name in METRICS]
        self._client.log_batch(logged.run_id, metrics=metrics)
        logged.epochs |= {row.epoch for row in rows}

    def _end(self, logged: _Logged, seen: SeenRun) -> None:
        """Writes the run's files, then marks its end: without the mark, the next command writes them again."""
        names = ["config.json", "history.parquet"]
        self._client.set_tag(logged.run_id, "status", seen.status.status)
        if seen.status.reason:
            self._client.set_tag(logged.run_id, "reason", seen.status.reason)
        if seen.folder.is_finished():
            names += ["best/model.safetensors", "best/checkpoint.json"]
            document = seen.folder.best().document
            self._client.set_tag(logged.run_id, "code_version", document["code_version"])
            self._client.set_tag(logged.run_id, "best_epoch", document["epoch"])
        with tempfile.TemporaryDirectory(prefix="mnist-ray-mlflow-") as folder:
            for name in names:
                path = seen.folder.path(*name.split("/"))
                if seen.folder.storage.exists(path):
                    copy = Path(folder, name)
                    copy.parent.mkdir(exist_ok=True)
                    copy.write_bytes(seen.folder.storage.read_bytes(path))
            self._client.log_artifacts(logged.run_id, folder)
        self._client.set_terminated(logged.run_id, _MLFLOW_STATUS[seen.status.status])
        logged.has_ended = True


def _id(seen: SeenRun) -> str:
    """Returns a run's unique ID, a hash of its URI, config and data."""
    uri = seen.folder.storage.uri_of(seen.folder.path())
    text = "\n".join((uri, seen.document["config_hash"], seen.document["data_sha256"]))
    return hashlib.sha256(text.encode()).hexdigest()
