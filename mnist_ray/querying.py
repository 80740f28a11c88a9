"""SQL over the tables of a committed evaluation, by DuckDB; neither torch nor ray is imported here.

The small tables are read whole, their SHA-256 checked. The predictions stay where they are: a statement reads the
columns and row groups that it needs, page checksums verified, so memory holds what the statement needs of them.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from mnist_ray import tables
from mnist_ray.errors import CheckpointError, ConfigError
from mnist_ray.grid_folder import GridFolder
from mnist_ray.storage import MissingError, Storage, open_storage

_ROWS_AT_ONCE = 10_000
_REQUESTS_AT_ONCE = 16
# Beside the evaluation, and replaced whole whenever `mnist-ray report` makes them again.
_REPORT_TABLES = ("effects", "comparisons")
_PART = re.compile(r"(?P<table>[a-z_]+?)(-\d+)?\.parquet")


@dataclass(frozen=True)
class Answer:
    """What a statement returns.

    Attributes:
      columns: names, in order; one can stand twice.
      rows: values in the order of columns; can be read once, inside the `with` of query.
    """

    columns: tuple[str, ...]
    rows: Iterator[tuple[Any, ...]]


@contextlib.contextmanager
def query(storage_uri: str, evaluation: str, sql: str) -> Iterator[Answer]:
    """Runs a statement on a committed evaluation's tables; it can't reach any other file, to read or to write.

    The views are those of the evaluation (predictions, metrics, per_class, confusion, calibration); effects and
    comparisons if they were reported; runs if the evaluation is of a grid.

    Args:
      storage_uri: where the evaluation is.
      evaluation: its name.
      sql: DuckDB's SQL.

    Raises:
      ConfigError: DuckDB is not installed, or refuses the statement.
      CheckpointError: no such evaluation.
      DataError: a file isn't what was committed.
      StorageError: the storage can't be read.
    """
    duckdb = _duckdb()
    storage = open_storage(storage_uri)
    manifest = storage.read_manifest(_folder(evaluation))
    if manifest is None:
        raise CheckpointError(f"evaluation {evaluation!r}: not in {storage.uri}; `mnist-ray evaluations` lists what is")
    # Nothing is spilled to the disk: a statement that needs more memory than there is ends with a message.
    with duckdb.connect(":memory:", config={"temp_directory": ""}) as connection:
        with _errors(storage, evaluation, manifest):
            for name, content in _views(storage, evaluation, manifest):
                connection.register(name, content)
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            result = connection.execute(sql)
        # Older versions return the connection, newer ones None, for a text without a statement.
        if result is None or result.description is None:
            raise ConfigError("SQL: there is no statement; try 'SELECT * FROM metrics'")

        def rows() -> Iterator[tuple[Any, ...]]:
            fetched = None
            while fetched != []:
                with _errors(storage, evaluation, manifest):
                    fetched = result.fetchmany(_ROWS_AT_ONCE)
                yield from fetched

        yield Answer(tuple(column[0] for column in result.description), rows())


def table_files(manifest: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns the names of a committed evaluation's files by table, the parts of one in order."""
    found: dict[str, list[str]] = {}
    for file in manifest["files"]:
        if part := _PART.fullmatch(file["name"]):
            found.setdefault(part["table"], []).append(file["name"])
    return {table: sorted(names) for table, names in found.items()}


def _duckdb() -> Any:
    try:
        import duckdb
    except ImportError:
        raise ConfigError("query: needs DuckDB, which is not installed: pip install 'mnist-ray[sql]'") from None
    return duckdb


def _folder(evaluation: str) -> str:
    return f"evaluations/{evaluation}"


def _views(
    storage: Storage, evaluation: str, manifest: Mapping[str, Any]
) -> Iterator[tuple[str, pa.Table | ds.Dataset]]:
    """Yields name and content of each view; the content of predictions is read when a statement asks for it."""
    folder, files = _folder(evaluation), table_files(manifest)
    for table, names in files.items():
        if table == "predictions":
            yield table, _dataset(storage, _stored_paths(folder, manifest, names))
        else:
            parts = [tables.read_parquet(storage.read_committed(folder, name), source=name) for name in names]
            yield table, pa.concat_tables(parts)
    grid = manifest["config"].get("grid")
    beside = {name: f"reports/{evaluation}/{name}.parquet" for name in _REPORT_TABLES if name not in files}
    if grid is not None:
        beside["runs"] = GridFolder(storage, grid).path("runs.parquet")
    for table, path in beside.items():
        with contextlib.suppress(MissingError):
            yield table, tables.read_parquet(storage.read_bytes(path), source=path)


def _stored_paths(folder: str, manifest: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    stored = {file["name"]: file["stored_name"] for file in manifest["files"]}
    return [f"{folder}/{stored[name]}" for name in names]


def _dataset(storage: Storage, paths: Sequence[str]) -> ds.Dataset:
    options = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    file_format = ds.ParquetFileFormat(default_fragment_scan_options=options)
    if storage.is_local:
        # By path, not open: there may be more parts than a process may hold open.
        return ds.dataset([storage.uri_of(path) for path in paths], format=file_format)
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        fragments = [file_format.make_fragment(file) for file in pool.map(storage.open_input, paths)]
    return ds.FileSystemDataset(fragments, fragments[0].physical_schema, file_format)


@contextlib.contextmanager
def _errors(storage: Storage, evaluation: str, manifest: Mapping[str, Any]) -> Iterator[None]:
    """Turns DuckDB's errors into one line, and tells a damaged or unreachable file from a mistake in the SQL."""
    duckdb = _duckdb()
    try:
        yield
    except (duckdb.InvalidInputException, duckdb.IOException, pa.ArrowInvalid, OSError) as error:
        for name in table_files(manifest).get("predictions", ()):
            storage.read_committed(_folder(evaluation), name)
        raise ConfigError(_sql_message(error)) from error
    except duckdb.Error as error:
        raise ConfigError(_sql_message(error)) from error


def _sql_message(error: Exception) -> str:
    # Behind an empty line DuckDB repeats the statement, with a mark under the place.
    return "SQL: " + " ".join(str(error).partition("\n\nLINE ")[0].split())
