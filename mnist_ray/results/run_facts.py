"""Everything that a storage knows of one run; imports neither torch nor ray."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from mnist_ray.errors import CheckpointError, DataError
from mnist_ray.results.evaluation_folder import EvaluationFolder, committed_evaluations
from mnist_ray.results.grid_folder import GridFolder
from mnist_ray.results.inventory import run_row
from mnist_ray.results.kinds import RUN, not_there
from mnist_ray.results.paths import GRIDS, RUNS, run_path
from mnist_ray.results.run_documents import DamagedCheckpoint, read_checkpoint_document, read_run_document
from mnist_ray.results.run_progress import read_history
from mnist_ray.storage.manifest import REQUESTS_AT_ONCE
from mnist_ray.storage.storage import FileEntry, MissingError, Storage
from mnist_ray.text.escape import say_line

_OF_METRICS = ("run", "accuracy", "accuracy_low", "accuracy_high", "log_loss", "epoch")
_OF_DATA = ("class_names", "image_shape")
_OF_LINEAGE = ("lineage", "code_version", "stack_size")


def run_facts(storage: Storage, run: str) -> dict[str, Any]:
    """Returns a run's row of the table runs, and its data, epochs, checkpoints, lineage and evaluations.

    Raises:
      CheckpointError, DataError: no such run, or damaged.
      StorageError: the storage can't be read.
    """
    if run not in storage.list_folders(RUNS):
        raise CheckpointError(not_there(storage, RUN, run))
    files = storage.list_files(run_path(run))
    sizes = _sizes(files, run)
    row, document = run_row(storage, run, grid=_grid_of(storage, run)), _newest_document(storage, run, sizes)
    return {
        **row,
        "uri": storage.uri_of(run_path(run)),
        "bytes": sum(entry.size for entry in files),
        "train_data_sha256": read_run_document(storage, run)["data_sha256"],
        **{name: document.get(name) for name in (*_OF_DATA, *_OF_LINEAGE)},
        "checkpoints": [{"checkpoint": name, "bytes": size} for name, size in sizes.items()],
        "history": list(map(asdict, read_history(storage, run))),
        "evaluations": _evaluations(storage, run),
    }


def _sizes(files: Sequence[FileEntry], run: str) -> dict[str, int]:
    """Returns the bytes of each checkpoint, by its folder in the run's; best comes first."""
    sizes: Counter[str] = Counter()
    for entry in files:
        folder = entry.path.removeprefix(f"{run_path(run)}/").rpartition("/")[0]
        if folder:
            sizes[folder] += entry.size
    return dict(sizes)


def _newest_document(storage: Storage, run: str, checkpoints: Iterable[str]) -> dict[str, Any]:
    """Returns the best or else the newest checkpoint.json that is whole; empty if there is none."""
    for folder in sorted(checkpoints, key=lambda name: (name == "best", name), reverse=True):
        try:
            return read_checkpoint_document(storage, run, folder)
        except DamagedCheckpoint:
            # Being written, or its writer was killed.
            continue
    return {}


def _grid_of(storage: Storage, run: str) -> str:
    """Returns the grid that a run belongs to, "" if none; a damaged grid has no runs."""

    def has_run(grid: str) -> bool:
        try:
            document = GridFolder(storage, grid).document()
        except CheckpointError:
            return False
        return document is not None and run in document["runs"]

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        grids = storage.list_folders(GRIDS)
        return next((grid for grid, found in zip(grids, pool.map(has_run, grids), strict=True) if found), "")


def _evaluations(storage: Storage, run: str) -> list[dict[str, Any]]:
    def metrics(folder: EvaluationFolder) -> dict[str, Any] | None:
        try:
            rows: list[Mapping[str, Any]] = folder.table("metrics", columns=_OF_METRICS).to_pylist()
        except (DataError, MissingError) as error:
            say_line(f"without {error}")
            return None
        row = next(row for row in rows if row["run"] == run)
        values = {name: row[name] for name in _OF_METRICS if name != "run"}
        return {**folder.facts, "evaluated_at": folder.evaluated_at, **values}

    folders = [folder for folder in committed_evaluations(storage) if run in folder.runs]
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return [row for row in pool.map(metrics, folders) if row is not None]
