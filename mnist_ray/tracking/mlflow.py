"""Logs runs to MLflow: at MLFLOW_TRACKING_URI, or in <storage>/mlflow/mlflow.db, a SQLite file for `mlflow ui`."""

import contextlib
import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from mnist_ray.results.paths import grid_path
from mnist_ray.results.run_documents import config_in
from mnist_ray.storage.proxies import keep_off_proxies
from mnist_ray.storage.storage import Storage
from mnist_ray.tracking import pictures
from mnist_ray.tracking.logged import Record, claim_record, find_record, recorded_uri
from mnist_ray.tracking.mlflow_facts import dataset_input, origin_tags, setting_tags
from mnist_ray.tracking.mlflow_model import Models
from mnist_ray.tracking.seen_run import METRICS, STORE_FILE, SeenEvaluation, SeenRun, mlflow_store

# MLflow's experiment of the runs that belong to no grid.
EXPERIMENT = "mnist-ray"
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
    """The state of a run in MLflow.

    Attributes:
      epochs: those that MLflow has.
      has_best: whether it has the best epoch's metrics.
      has_ended: whether it has everything.
    """

    run_id: str
    epochs: set[int]
    has_best: bool
    has_ended: bool


class MLflow:
    """Writes to MLflow's tracking store: an MLflow run per run, in an experiment per grid, below one for the grid."""

    def __init__(self, storage: Storage, uri: str | None, grid: str | None, say: Callable[[str], None]) -> None:
        """Connects to a store.

        Args:
          uri: of a tracking server or a store; None for the storage's own store, made here if it doesn't exist.
          grid: that the runs belong to.
          say: shows a line.
        """
        # At INFO, these loggers report the creation of tables.
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self._storage, self._grid = storage, grid
        self._recorded_uri = uri and recorded_uri(uri)
        self._artifacts: str | None = None
        if not uri:
            uri, folder = mlflow_store(storage), Path(storage.uri_of("mlflow"))
            make_store(folder)
            self._artifacts = (folder / "artifacts").as_uri()
        keep_off_proxies(uri)
        self._client = MlflowClient(tracking_uri=uri)
        self._models = Models(self._client, say)
        self._logged: dict[str, _Logged] = {}
        self._parent_status: str | None = None

    def write(self, seen: SeenRun) -> None:
        """Writes the epochs that MLflow lacks, and the files and the network of a done run."""
        if seen.folder.run not in self._logged:
            self._logged[seen.folder.run] = self._open(seen)
        logged = self._logged[seen.folder.run]
        if logged.has_ended:
            return
        missing = [row for row in seen.history if row.epoch not in logged.epochs]
        for start in range(0, len(missing), _EPOCHS_AT_ONCE):
            self._log_epochs(logged, missing[start : start + _EPOCHS_AT_ONCE])
        if seen.status.is_done:
            self._end(logged, seen)

    def write_evaluation(self, record: Record, seen: SeenEvaluation) -> None:
        """Writes the metrics of an evaluation and its confusion matrix, once, and where its page is."""
        run = self._active(record["run_id"])
        if run is None:
            return
        run_id, known = run.info.run_id, run.data.tags
        tags = {f"evaluation.{seen.name}": seen.page or seen.uri}
        metrics: list[Metric] = []
        if tags.keys() - known:
            self._client.log_inputs(run_id, [dataset_input(seen.dataset, seen.data_sha256, context=seen.split)])
            with self._artifact(run_id, f"evaluation/{seen.name}", "confusion.png") as path:
                path.write_bytes(pictures.confusion(seen.confusion, seen.class_names))
            model_id = self._models.model_id(run)
            metrics = self._metrics(seen.metrics, seen.epoch, model_id)
            tags |= {"evaluation": seen.name} if seen.is_of_run else {}
        if seen.page and seen.is_of_run and (known | tags).get("evaluation") == seen.name:
            tags["report"] = seen.page
        # The tags come last: without them, the next command writes the metrics.
        self._client.log_batch(run_id, metrics=metrics)
        self._client.log_batch(run_id, tags=[RunTag(*tag) for tag in tags.items()])

    def write_page(self, record: Record, evaluation: str, uri: str, page: bytes) -> None:
        """Writes the page of an evaluation, for a grid or for a single run."""
        run = self._active(record["run_id"])
        if run is not None:
            with self._artifact(run.info.run_id, f"evaluation/{evaluation}", "report.html") as path:
                path.write_bytes(page)
            self._client.set_tag(run.info.run_id, f"evaluation.{evaluation}", uri)

    def close(self) -> None:
        """Marks unfinished runs as killed; the next command that writes them marks them as running."""
        unfinished = [logged.run_id for logged in self._logged.values() if not logged.has_ended]
        for run_id in unfinished:
            self._client.set_terminated(run_id, "KILLED")
        if self._grid and self._logged:
            self._mark_parent("KILLED" if unfinished else "FINISHED")
        self._models.close()

    @cached_property
    def _experiment(self) -> str:
        name = self._grid or EXPERIMENT
        known = self._client.get_experiment_by_name(name)
        if known:
            return str(known.experiment_id)
        return str(self._client.create_experiment(name, artifact_location=self._artifacts))

    @cached_property
    def _parent(self) -> Run:
        assert self._grid
        return self._run_at(grid_path(self._grid), (), self._grid, {"grid": self._grid})

    def _mark_parent(self, status: str) -> None:
        """Changes the status of the grid's MLflow run, if it is another."""
        info = self._parent.info
        if status != (self._parent_status or info.status):
            change = self._client.update_run if status == "RUNNING" else self._client.set_terminated
            change(info.run_id, status)
        self._parent_status = status

    def _open(self, seen: SeenRun) -> _Logged:
        """Returns the state of a run in MLflow, after writing what is known at its start."""
        document, folder = seen.document, seen.folder
        content = {name: document[name] for name in ("config_hash", "data_sha256")}
        tags = content | setting_tags(config_in(document, f"run {folder.run!r}: config.json"))
        if self._grid:
            tags |= {"grid": self._grid, MLFLOW_PARENT_RUN_ID: self._parent.info.run_id}
        run = self._run_at(folder.path(), content.values(), folder.run, tags)
        run_id = run.info.run_id
        if run.info.status in _MLFLOW_STATUS.values():
            self._models.log(run, seen)
            return _Logged(run_id, set(), has_best=True, has_ended=True)
        if self._grid:
            self._mark_parent("RUNNING")
        if run.info.status != "RUNNING":
            self._client.update_run(run_id, status="RUNNING")
        steps = [{row.step for row in self._client.get_metric_history(run_id, name)} for name in METRICS]
        config = document["config"]
        params = [Param(name, value if isinstance(value, str) else json.dumps(value)) for name, value in config.items()]
        self._client.log_batch(run_id, params=params, tags=[RunTag(*tag) for tag in tags.items()])
        self._client.log_inputs(run_id, [dataset_input(config["dataset"], document["data_sha256"], context="training")])
        return _Logged(run_id, set.intersection(*steps), "best_epoch" in run.data.metrics, has_ended=False)

    def _run_at(self, folder: str, content: Iterable[str], name: str, tags: Mapping[str, str]) -> Run:
        """Returns the MLflow run of a folder in the storage; makes it if there is none, only one for all processes.

        Args:
          content: what makes it another run although it has the same folder.
        """
        record = find_record(self._storage, folder, "mlflow", self._recorded_uri)
        if record and (run := self._active(record["run_id"])):
            return run
        identity = hashlib.sha256("\n".join((self._storage.uri_of(folder), *content)).encode()).hexdigest()
        known = self._client.search_runs([self._experiment], f"tags.`{_ID_TAG}` = '{identity}'", max_results=1)
        first = {_ID_TAG: identity, "storage": self._storage.uri, **origin_tags(), **tags}
        run = known[0] if known else self._client.create_run(self._experiment, run_name=name, tags=first)
        mine = {"tracker": "mlflow", "tracking_uri": self._recorded_uri, "run_id": run.info.run_id}
        first_record = claim_record(self._storage, folder, mine, replace=record is not None)
        if first_record == mine:
            return run
        if not known:
            self._client.delete_run(run.info.run_id)
        return self._client.get_run(first_record["run_id"])

    def _active(self, run_id: str) -> Run | None:
        """Returns an MLflow run, None if somebody has deleted it."""
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return run if run.info.lifecycle_stage == "active" else None

    def _log_epochs(self, logged: _Logged, rows: list[Any]) -> None:
        metrics = [metric for row in rows for metric in self._metrics(_epoch_metrics(row), row.epoch)]
        self._client.log_batch(logged.run_id, metrics=metrics)
        logged.epochs |= {row.epoch for row in rows}

    def _metrics(self, values: Mapping[str, float], step: int, model_id: str | None = None) -> list[Metric]:
        now = int(time.time() * 1000)
        return [Metric(name, value, now, step, model_id=model_id) for name, value in values.items()]

    def _end(self, logged: _Logged, seen: SeenRun) -> None:
        """Writes the run's files, then marks its end: without the mark, the next command writes them again."""
        names = ["config.json", "history.parquet"]
        self._client.set_tag(logged.run_id, "status", seen.status.status)
        if seen.status.reason:
            self._client.set_tag(logged.run_id, "reason", seen.status.reason)
        if seen.is_finished:
            names += ["best/model.safetensors", "best/checkpoint.json"]
            document = seen.folder.best().document
            self._client.set_tag(logged.run_id, "code_version", document["code_version"])
            self._client.set_tag(logged.run_id, "best_epoch", document["epoch"])
            if not logged.has_best:
                self._client.log_batch(logged.run_id, metrics=self._metrics(seen.best_metrics(), document["epoch"]))
                logged.has_best = True
        with tempfile.TemporaryDirectory(prefix="mnist-ray-mlflow-") as folder:
            for name in names:
                path = seen.folder.path(*name.split("/"))
                if seen.folder.storage.exists(path):
                    copy = Path(folder, name)
                    copy.parent.mkdir(exist_ok=True)
                    copy.write_bytes(seen.folder.storage.read_bytes(path))
            self._client.log_artifacts(logged.run_id, folder)
        self._models.log(self._client.get_run(logged.run_id), seen)
        self._client.set_terminated(logged.run_id, _MLFLOW_STATUS[seen.status.status])
        logged.has_ended = True

    @contextlib.contextmanager
    def _artifact(self, run_id: str, folder: str, name: str) -> Iterator[Path]:
        """Yields a local file to write, then uploads it."""
        with tempfile.TemporaryDirectory(prefix="mnist-ray-mlflow-") as temporary:
            path = Path(temporary, name)
            yield path
            self._client.log_artifact(run_id, str(path), folder)


def _epoch_metrics(row: Any) -> dict[str, float]:
    return {name: getattr(row, name) for name in METRICS}
