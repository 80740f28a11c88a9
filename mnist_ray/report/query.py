"""Runs SQL over the tables of a committed evaluation with DuckDB; imports neither torch nor ray.

Small tables are read whole and their SHA-256 checked. The predictions, and the confusion table of many classes, stay in
the storage: a statement loads only the columns and row groups that it needs, with page checksums verified.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from mnist_ray.errors import ConfigError, OtherVersionError
from mnist_ray.results import parquet
from mnist_ray.results.evaluation_folder import EvaluationFolder
from mnist_ray.results.grid_folder import GridFolder
from mnist_ray.results.paths import report_path
from mnist_ray.storage.manifest import REQUESTS_AT_ONCE
from mnist_ray.storage.storage import MissingError, Storage
from mnist_ray.text.escape import say_line

_ROWS_AT_ONCE = 10_000
# How long to keep interrupting a statement.
_INTERRUPTS_S = 0.5
# Stored outside the evaluation, and replaced as a whole by each `mnist-ray report`.
_REPORT_TABLES = ("effects", "comparisons")


@dataclass(frozen=True)
class Answer:
    """The result of a statement.

    Attributes:
      columns: names, in order; may repeat.
      rows: values in the order of columns; can be read once, inside the `with` of query.
    """

    columns: tuple[str, ...]
    rows: Iterator[tuple[Any, ...]]


@contextlib.contextmanager
def query_evaluation(folder: EvaluationFolder, sql: str) -> Iterator[Answer]:
    """Runs a statement on a committed evaluation's tables; it can't read or write any other file.

    The views are the evaluation's tables, effects and comparisons if reported, and runs if a grid was evaluated.

    Raises:
      ConfigError: DuckDB is not installed, or refuses the statement.
      DataError: a file differs from what was committed.
      StorageError: the storage can't be read.
    """
    duckdb = _duckdb()
    # Nothing is spilled to disk: a statement that runs out of memory ends with a message.
    with contextlib.closing(_Connection(duckdb.connect(":memory:", config={"temp_directory": ""}))) as connection:
        with _errors(folder):
            for name, content in _views(folder):
                connection.duckdb.register(name, content)
            connection.duckdb.execute("SET enable_external_access = false")
            connection.duckdb.execute("SET lock_configuration = true")
            result = connection.call(lambda: connection.duckdb.execute(sql))
        # For a text without a statement, older versions return the connection, newer versions None.
        if result is None or result.description is None:
            raise ConfigError("SQL: there is no statement; try 'SELECT run, accuracy FROM metrics'")

        def rows() -> Iterator[tuple[Any, ...]]:
            fetched = None
            while fetched != []:
                with _errors(folder):
                    fetched = connection.call(lambda: result.fetchmany(_ROWS_AT_ONCE))
                yield from fetched

        yield Answer(tuple(column[0] for column in result.description), rows())


class _Connection:
    """A DuckDB connection whose calls end at a signal.

    DuckDB blocks the calling thread until the statement ends, and Python runs signal handlers only in the main thread,
    so each call has its own thread.
    """

    def __init__(self, connection: Any) -> None:
        self.duckdb = connection
        self._calls: list[Future[Any]] = []

    def call(self, function: Callable[[], Any]) -> Any:
        """Returns the result of a DuckDB call; a signal interrupts the call, or gives it up if it doesn't respond."""
        pool = ThreadPoolExecutor(1)
        call = pool.submit(function)
        pool.shutdown(wait=False)
        self._calls = [call]
        try:
            return call.result()
        finally:
            # Repeated: an interrupt before the statement begins is lost. A sort, for example, ignores all.
            given_up = time.monotonic() + _INTERRUPTS_S
            while not call.done() and time.monotonic() < given_up:
                self.duckdb.interrupt()
                wait([call], timeout=0.05)

    def close(self) -> None:
        """Closes the connection, unless a call was given up: closing would wait for the call."""
        if all(call.done() for call in self._calls):
            self.duckdb.close()


def _duckdb() -> Any:
    try:
        import duckdb
    except ImportError:
        raise ConfigError("query: needs DuckDB, which is not installed: pip install 'mnist-ray[sql]'") from None
    return duckdb


def _views(folder: EvaluationFolder) -> Iterator[tuple[str, pa.Table | ds.Dataset]]:
    """Yields name and content of each view; large tables are read on demand."""
    storage, files = folder.storage, folder.files()
    for table in files:
        if table in _large_tables(folder):
            yield table, _dataset(storage, folder.stored_paths(table))
        else:
            yield table, folder.table(table)
    others = {name: report_path(folder.name, f"{name}.parquet") for name in _REPORT_TABLES}
    if folder.grid is not None:
        others["runs"] = GridFolder(storage, folder.grid).path("runs.parquet")
    for table, path in others.items():
        try:
            yield table, parquet.read_parquet(storage.read_bytes(path), source=path)
        except MissingError:
            pass
        except OtherVersionError as error:
            if table not in _REPORT_TABLES:
                raise
            say_line(f"query: without {table}: {error}, by mnist-ray report {folder.name}")


def _large_tables(folder: EvaluationFolder) -> list[str]:
    num_cells = len(folder.runs) * len(folder.class_names) ** 2
    return ["predictions", *(["confusion"] if num_cells > parquet.ROWS_IN_PIECE else [])]


def _dataset(storage: Storage, paths: Sequence[str]) -> ds.Dataset:
    options = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    file_format = ds.ParquetFileFormat(default_fragment_scan_options=options)
    if storage.is_local:
        # Paths, not open files: there may be more parts than a process can hold open.
        return ds.dataset([storage.uri_of(path) for path in paths], format=file_format)
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        fragments = [file_format.make_fragment(file) for file in pool.map(storage.open_input, paths)]
    return ds.FileSystemDataset(fragments, fragments[0].physical_schema, file_format)


@contextlib.contextmanager
def _errors(folder: EvaluationFolder) -> Iterator[None]:
    """Turns DuckDB's errors into one line, and separates damaged or unreachable files from mistakes in the SQL."""
    duckdb = _duckdb()
    try:
        yield
    except (duckdb.InvalidInputException, duckdb.IOException, pa.ArrowInvalid, OSError) as error:
        files = folder.files()
        for name in [name for table in _large_tables(folder) for name in files[table]]:
            folder.storage.read_committed(folder.path, name)
        raise ConfigError(_sql_message(error)) from error
    except duckdb.Error as error:
        raise ConfigError(_sql_message(error)) from error


def _sql_message(error: Exception) -> str:
    # After an empty line, DuckDB repeats the statement with a mark under the error.
    return "SQL: " + " ".join(str(error).partition("\n\nLINE ")[0].split())
