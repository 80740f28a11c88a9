"""Makes a lake hold what a storage's committed evaluations hold."""

from collections.abc import Iterator
from typing import NamedTuple

from mnist_ray.errors import DataError
from mnist_ray.lake.tables import LAKE_TABLES, Files, Lake
from mnist_ray.results.columns import SCHEMA_VERSION
from mnist_ray.results.evaluation_folder import EvaluationFolder, committed_evaluations
from mnist_ray.storage.manifest import files_of
from mnist_ray.storage.storage import MissingError, Storage
from mnist_ray.text.escape import say_line


class Change(NamedTuple):
    """What became of an evaluation in the lake: added, replaced, removed or kept."""

    evaluation: str
    what: str


def publish(storage: Storage, lake: Lake) -> Iterator[Change]:
    """Yields each evaluation when the lake's tables have it, or no longer have it.

    What is missing is read from the lake itself, so a publication that was killed goes on, and doubles nothing.

    Raises:
      ConflictError: another publication is under way, or the lake belongs to another storage.
      DataError: a file differs from what was committed.
      StorageError: the storage or the lake can't be read or written.
    """
    wanted = {folder.name: folder for folder in committed_evaluations(storage) if _is_current(folder)}
    if not wanted and not lake.exists():
        return
    files = {name: {table: _files(folder, table) for table in LAKE_TABLES} for name, folder in wanted.items()}
    there = {table: lake.files(table) for table in LAKE_TABLES}
    outdated = {
        evaluation
        for table, evaluations in there.items()
        for evaluation, known in evaluations.items()
        if evaluation not in wanted or known != files[evaluation][table]
    }
    for evaluation in sorted(outdated):
        for table in reversed(LAKE_TABLES):
            if there[table].pop(evaluation, None):
                lake.remove(table, evaluation)
        if evaluation not in wanted:
            yield Change(evaluation, "removed")
    for evaluation, folder in wanted.items():
        missing = [table for table in LAKE_TABLES if evaluation not in there[table]]
        for table in missing:
            _check_sizes(folder, files[evaluation][table])
        for table in missing:
            lake.add(table, evaluation, files[evaluation][table])
        yield Change(evaluation, "replaced" if evaluation in outdated else "added" if missing else "kept")


def _is_current(folder: EvaluationFolder) -> bool:
    if folder.schema_version == SCHEMA_VERSION:
        return True
    again = f"--grid {folder.grid}" if folder.grid else f"--run {' --run '.join(folder.runs)}"
    say_line(
        f"without evaluation {folder.name!r}: its tables have schema version {folder.schema_version}; "
        f"`mnist-ray evaluate {again}` makes it again"
    )
    return False


def _files(folder: EvaluationFolder, table: str) -> dict[str, int]:
    sizes = {f"{folder.path}/{file.stored_name}": file.size for file in files_of(folder.manifest)}
    return {path: sizes[path] for path in folder.stored_paths(table)}


def _check_sizes(folder: EvaluationFolder, files: Files) -> None:
    for path, size in files.items():
        try:
            is_whole = folder.storage.entry(path).size == size
        except MissingError:
            is_whole = False
        if not is_whole:
            uri = folder.storage.uri_of(path)
            raise DataError(f"{uri}: not the content that was committed; delete the folder and make it again")
