"""Logs committed evaluations to where their runs were logged during training."""

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mnist_ray.errors import ConfigError, StorageError
from mnist_ray.results.evaluation_folder import EvaluationFolder, open_evaluation
from mnist_ray.results.paths import PAGE, grid_path, report_path, run_path
from mnist_ray.results.run_documents import read_run_document
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.storage.manifest import REQUESTS_AT_ONCE
from mnist_ray.storage.storage import Storage, open_storage
from mnist_ray.tracking.logged import Record, find_record, read_records, recorded_uri
from mnist_ray.tracking.seen_run import RATES, TEST, SeenEvaluation, mlflow_store
from mnist_ray.tracking.trackers import Tracker, opener, reason_of, say_named

# Of one tracker: its name, and the tracking URI if it has one.
_Place = tuple[str, str | None]


def log_evaluation(storage_uri: str, evaluation: str) -> None:
    """Writes an evaluation's metrics, confusion matrices and page to the trackers of its runs.

    A tracker that fails costs one line: the evaluation is committed, and the same command logs what is missing.
    """
    folder = open_evaluation(open_storage(storage_uri), evaluation)
    places: dict[_Place, list[tuple[str, Record]]] = defaultdict(list)
    try:
        for run, records in _records(folder):
            for record in records:
                places[record["tracker"], record.get("tracking_uri")].append((run, record))
    except Exception as error:
        _say_failed(evaluation, "trackers", error)
    for place, logged in places.items():
        try:
            _log_to(place, folder, logged)
        # No exception of a tracker may harm the evaluation.
        except Exception as error:
            _say_failed(evaluation, place[0], error)


def _say_failed(evaluation: str, name: str, error: Exception) -> None:
    say_named(
        f"{name}: evaluation {evaluation} is committed without it, the same command logs what is missing: "
        f"{reason_of(error)}"
    )


def _records(folder: EvaluationFolder) -> Iterator[tuple[str, list[Record]]]:
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        yield from zip(
            folder.runs, pool.map(lambda run: read_records(folder.storage, run_path(run)), folder.runs), strict=True
        )


def _log_to(place: _Place, folder: EvaluationFolder, logged: Sequence[tuple[str, Record]]) -> None:
    tracker, storage = _open(place, folder.storage), folder.storage
    page_path = report_path(folder.name, PAGE)
    page = storage.uri_of(page_path) if storage.exists(page_path) else None
    seen_runs = _seen(folder, [run for run, _ in logged], page)
    for (_, record), seen in zip(logged, seen_runs, strict=True):
        tracker.write_evaluation(record, seen)
    of_grid = find_record(storage, grid_path(folder.grid), *place) if folder.grid else None
    owner = of_grid or (logged[0][1] if len(folder.runs) == 1 else None)
    if page and owner:
        tracker.write_page(owner, folder.name, page, storage.read_bytes(page_path))


def _open(place: _Place, storage: Storage) -> Tracker:
    name, uri = place
    if uri is not None:
        given = os.environ.get("MLFLOW_TRACKING_URI")
        if given and recorded_uri(given) == uri:
            # With the user and password that the record lacks.
            uri = given
        elif "***" in uri:
            raise ConfigError(f"set MLFLOW_TRACKING_URI to {uri}, as for training")
    database = (uri or mlflow_store(storage)).partition("sqlite:///")[2]
    if name == "mlflow" and database and not Path(database).exists():
        # MLflow would make an empty one.
        raise StorageError(f"{database} is gone")
    return opener(name, storage, uri=uri, grid=None, say=say_named)()


def _seen(folder: EvaluationFolder, runs: Sequence[str], page: str | None) -> Iterator[SeenEvaluation]:
    rows = {row["run"]: row for row in folder.rows("metrics")}
    counts = _confusion(folder, runs)
    for run in runs:
        document = read_run_document(folder.storage, run)
        is_of_run = folder.split == "test" and document["config"]["dataset"] == folder.dataset
        prefix = TEST if is_of_run else f"{folder.name}/"
        yield SeenEvaluation(
            folder=RunFolder(folder.storage, run), document=document, name=folder.name, uri=folder.uri, page=page,
            is_of_run=is_of_run, dataset=folder.dataset, split=folder.split, data_sha256=folder.manifest["data_sha256"],
            epoch=rows[run]["epoch"], metrics={f"{prefix}{name}": rows[run][name] for name in RATES},
            confusion=counts[run], class_names=folder.class_names,
        )  # fmt: skip


def _confusion(folder: EvaluationFolder, runs: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns run -> int64 [classes, classes]."""
    num_classes = len(folder.class_names)
    counts = {run: np.zeros((num_classes, num_classes), dtype=np.int64) for run in runs}
    table = folder.table("confusion", columns=["run", "label", "predicted_label", "count"])
    names = table["run"].to_numpy()
    cells = [table[name].to_numpy() for name in ("label", "predicted_label", "count")]
    for run in runs:
        label, predicted, count = (column[names == run] for column in cells)
        counts[run][label, predicted] = count
    return counts
