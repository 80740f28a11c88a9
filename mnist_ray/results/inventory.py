"""All runs and grids of a storage; imports neither torch nor ray."""

import json
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import pyarrow as pa

from mnist_ray.errors import CheckpointError, DataError
from mnist_ray.results import parquet
from mnist_ray.results.code_version import code_version
from mnist_ray.results.columns import settings_row
from mnist_ray.results.grid_folder import GridFolder
from mnist_ray.results.kinds import GRID, RUN, Kind
from mnist_ray.results.paths import GRIDS, run_path
from mnist_ray.results.run_documents import config_in, read_run_document
from mnist_ray.results.run_progress import read_progress, time_of
from mnist_ray.results.schemas import TABLES
from mnist_ray.results.setting_words import setting_words
from mnist_ray.storage.manifest import REQUESTS_AT_ONCE
from mnist_ray.storage.storage import Storage

_T = TypeVar("_T")


@dataclass(frozen=True)
class Inventory:
    """All runs and grids that are in a storage now.

    Attributes:
      runs: rows of the table runs, and `begun_at`, in the order of their names.
      grids: rows of the table grids, with JSON values instead of texts, `begun_at` and the names of the `runs`.
      damaged_runs, damaged_grids: name -> why it can't be read.
      run_bytes, grid_bytes: name -> size of its folder.
    """

    runs: list[dict[str, Any]]
    grids: list[dict[str, Any]]
    damaged_runs: dict[str, str]
    damaged_grids: dict[str, str]
    run_bytes: dict[str, int]
    grid_bytes: dict[str, int]


def read_inventory(storage: Storage) -> Inventory:
    """Lists each kind of folder once, and reads the documents of all runs and grids.

    Raises:
      StorageError: the storage can't be read.
    """
    run_bytes, grid_bytes = folder_sizes(storage, RUN), folder_sizes(storage, GRID)
    documents, damaged_grids = _read_each(lambda grid: GridFolder(storage, grid).document(), grid_bytes)
    begun = {grid: document for grid, document in documents.items() if document is not None}
    grid_of = {run: grid for grid, document in begun.items() for run in document["runs"]}
    runs, damaged_runs = _read_each(lambda run: run_row(storage, run, grid=grid_of.get(run, "")), run_bytes)
    grids = [_grid_row(storage, document, runs, damaged_runs) for document in begun.values()]
    return Inventory(list(runs.values()), grids, damaged_runs, damaged_grids, run_bytes, grid_bytes)


def folder_sizes(storage: Storage, kind: Kind) -> dict[str, int]:
    """Returns the name and the bytes of each result of a kind, from one listing; half deleted ones are left out.

    Raises:
      StorageError: the storage can't be listed.
    """
    sizes: Counter[str] = Counter()
    marked = set()
    for entry in storage.iter_files(kind.folder):
        name, slash, rest = entry.path.removeprefix(f"{kind.folder}/").partition("/")
        if slash and not name.startswith("_"):
            sizes[name] += entry.size
            marked |= {name} if rest == kind.mark else set()
    return {name: sizes[name] for name in sorted(marked)}


def grid_documents(storage: Storage) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Returns grid -> grid.json, and what was left out because it is damaged.

    Raises:
      StorageError: the storage can't be read.
    """
    documents, damaged = _read_each(lambda grid: GridFolder(storage, grid).document(), storage.list_folders(GRIDS))
    return {grid: document for grid, document in documents.items() if document is not None}, [*damaged.values()]


def run_row(storage: Storage, run: str, *, grid: str) -> dict[str, Any]:
    """Returns a run as a row of the table runs, and when it was begun.

    Raises:
      CheckpointError, DataError: no such run, or damaged.
    """
    document = read_run_document(storage, run)
    settings = settings_row(config_in(document, f"run {run!r}: config.json"))
    progress = asdict(read_progress(storage, run))
    has_best = progress["status"] in ("finished", "stopped")
    return {
        **settings,
        **progress,
        "grid": grid,
        "setting": setting_words(settings),
        "checkpoint": run_path(run, "best") if has_best else None,
        "begun_at": time_of(document.get("begun_at")),
    }


def runs_table(storage: Storage) -> tuple[pa.Table, list[str]]:
    """Returns the table runs with every run that has begun, and what was left out because it is damaged.

    Raises:
      StorageError: the storage can't be read.
    """
    found = read_inventory(storage)
    return _table("runs", found.runs), [*found.damaged_grids.values(), *found.damaged_runs.values()]


def grids_table(storage: Storage) -> tuple[pa.Table, list[str]]:
    """Returns the table grids, and what was left out because it is damaged; counts the runs that are there now.

    Raises:
      StorageError: the storage can't be read.
    """
    found = read_inventory(storage)
    rows = [{**row, "axes": json.dumps(row["axes"]), "fixed": json.dumps(row["fixed"])} for row in found.grids]
    return _table("grids", rows), [*found.damaged_grids.values(), *found.damaged_runs.values()]


def _read_each(read: Callable[[str], _T], names: Iterable[str]) -> tuple[dict[str, _T], dict[str, str]]:
    """Returns name -> what was read, and name -> why it is damaged."""
    found, damaged = {}, {}
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        reading = {name: pool.submit(read, name) for name in names}
    for name, result in reading.items():
        try:
            found[name] = result.result()
        except (CheckpointError, DataError) as error:
            damaged[name] = str(error)
    return found, damaged


def _grid_row(
    storage: Storage, document: Mapping[str, Any], runs: Mapping[str, Mapping[str, Any]], damaged: Container[str]
) -> dict[str, Any]:
    settings, names = document["settings"], document["runs"]
    there = [runs[run] for run in names if run in runs]
    gone = [run for run in names if run not in runs and run not in damaged]
    status = Counter(run["status"] for run in there)
    counts = {
        **{f"num_{name}": status[name] for name in ("finished", "stopped", "diverged")},
        "num_missing": len({*gone} & _begun(storage, document["grid"])) if gone else 0,
        "num_damaged": sum(run in damaged for run in names),
    }
    return {
        "grid": document["grid"],
        "axes": {**settings["axes"], **settings["ranges"]},
        "fixed": settings["fixed"],
        "seeds": settings["seeds"],
        "search": (document["search"] or {}).get("kind", "grid"),
        "runs": names,
        "num_runs": len(names),
        **counts,
        "num_unfinished": len(names) - sum(counts.values()),
        **{time: max((run[time] for run in there if run[time]), default=None) for time in ("begun_at", "trained_at")},
    }


def _begun(storage: Storage, grid: str) -> set[str]:
    """Returns the runs that a grid's own table has seen begun; none if the table is damaged."""
    try:
        return {
            row["run"]
            for row in GridFolder(storage, grid).read_runs()
            if row["epochs_done"] or row["status"] != "unfinished"
        }
    except DataError:
        return set()


def _table(name: str, rows: list[dict[str, Any]]) -> pa.Table:
    columns = {column: [row[column] for row in rows] for column in TABLES[name].names}
    return parquet.make_table(name, columns, code_version=code_version())
