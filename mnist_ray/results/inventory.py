"""All runs and grids of a storage as tables; imports neither torch nor ray."""

import json
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from mnist_ray.errors import CheckpointError, DataError
from mnist_ray.results import parquet
from mnist_ray.results.code_version import code_version
from mnist_ray.results.columns import settings_row
from mnist_ray.results.grid_folder import GridFolder
from mnist_ray.results.kinds import RUN, existing
from mnist_ray.results.paths import GRIDS, run_path
from mnist_ray.results.run_documents import config_in, read_run_document
from mnist_ray.results.run_progress import read_progress
from mnist_ray.results.schemas import TABLES
from mnist_ray.results.setting_words import setting_words
from mnist_ray.storage.manifest import REQUESTS_AT_ONCE
from mnist_ray.storage.storage import Storage


def runs_table(storage: Storage) -> tuple[pa.Table, list[str]]:
    """Returns the table runs with every run that has begun, and what was left out because it is damaged.

    Raises:
      StorageError: the storage can't be read.
    """
    documents, left_out = grid_documents(storage)
    grid_of = {run: grid for grid, document in documents.items() for run in document["runs"]}

    def row(run: str) -> dict[str, Any] | str:
        try:
            settings = settings_row(config_in(read_run_document(storage, run), f"run {run!r}: config.json"))
            progress = asdict(read_progress(storage, run))
        except (CheckpointError, DataError) as error:
            return str(error)
        has_best = progress["status"] in ("finished", "stopped")
        checkpoint = run_path(run, "best") if has_best else None
        facts = {"grid": grid_of.get(run, ""), "setting": setting_words(settings), "checkpoint": checkpoint}
        return {**settings, **progress, **facts}

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        rows = list(pool.map(row, existing(storage, RUN)))
    left_out += [line for line in rows if isinstance(line, str)]
    return _table("runs", [line for line in rows if not isinstance(line, str)]), left_out


def grids_table(storage: Storage) -> tuple[pa.Table, list[str]]:
    """Returns the table grids, and what was left out because it is damaged; counts the runs that are there now.

    Raises:
      StorageError: the storage can't be read.
    """
    runs, left_out = runs_table(storage)
    by_name = {row["run"]: row for row in runs.select(["run", "status", "trained_at"]).to_pylist()}
    documents, _ = grid_documents(storage)
    return _table("grids", [_grid_row(document, by_name) for document in documents.values()]), left_out


def grid_documents(storage: Storage) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Returns grid -> grid.json, and what was left out because it is damaged.

    Raises:
      StorageError: the storage can't be read.
    """
    documents, damaged = {}, []
    for grid in storage.list_folders(GRIDS):
        try:
            document = GridFolder(storage, grid).document()
        except CheckpointError as error:
            damaged.append(str(error))
            continue
        if document is not None:
            documents[grid] = document
    return documents, damaged


def _grid_row(document: Mapping[str, Any], runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    settings = document["settings"]
    there = [runs[run] for run in document["runs"] if run in runs]
    status = Counter(run["status"] for run in there)
    counts = {f"num_{name}": status[name] for name in ("finished", "stopped", "diverged")}
    return {
        "grid": document["grid"],
        "axes": json.dumps({**settings["axes"], **settings["ranges"]}),
        "fixed": json.dumps(settings["fixed"]),
        "seeds": settings["seeds"],
        "search": (document["search"] or {}).get("kind", "grid"),
        "num_runs": len(document["runs"]),
        **counts,
        "num_unfinished": len(document["runs"]) - sum(counts.values()),
        "trained_at": max((run["trained_at"] for run in there if run["trained_at"]), default=None),
    }


def _table(name: str, rows: list[dict[str, Any]]) -> pa.Table:
    columns = {column: [row[column] for row in rows] for column in TABLES[name].names}
    return parquet.make_table(name, columns, code_version=code_version())
