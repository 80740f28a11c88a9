"""Runs SQL over the tables of a storage's committed evaluations with DuckDB; imports neither torch nor ray.

Only tables that the statement names are read. Small ones are read whole and their SHA-256 checked. The predictions, and
the confusion table of many classes, stay in the storage: a statement loads only the columns and row groups that it
needs, with page checksums verified.
"""

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

from mnist_ray.errors import ConfigError, OtherVersionError
from mnist_ray.results import parquet
from mnist_ray.results.columns import SCHEMA_VERSION
from mnist_ray.results.evaluation_folder import EvaluationFolder
from mnist_ray.results.inventory import grids_table, runs_table
from mnist_ray.results.schemas import EVALUATION_TABLES, REPORT_TABLES, TABLES
from mnist_ray.storage.manifest import REQUESTS_AT_ONCE
from mnist_ray.storage.storage import Storage
from mnist_ray.text.escape import say_line

_ROWS_AT_ONCE = 10_000
_NO_STATEMENT = "SQL: there is no statement; try 'SELECT run, accuracy FROM metrics'"
# How long to keep interrupting a statement.
_INTERRUPTS_S = 0.5


@dataclass(frozen=True)
class Answer:
    """The result of a statement.

    Attributes:
      columns: names, in order; may repeat.
      rows: values in the order of columns; can be read once, inside the `with` of query_evaluations.
    """

    columns: tuple[str, ...]
    rows: Iterator[tuple[Any, ...]]


@contextlib.contextmanager
def query_evaluations(storage: Storage, folders: Sequence[EvaluationFolder], sql: str) -> Iterator[Answer]:
    """Runs a statement on the tables of committed evaluations; it can't read or write any other file.

    The views are the evaluations' tables, effects and comparisons where reported, and the storage's runs and grids.

    Raises:
      ConfigError: DuckDB is not installed, or refuses the statement.
      DataError: a file differs from what was committed.
      StorageError: the storage can't be read.
    """
    with _connected(storage, folders, sql) as connection:
        with _errors(folders):
            result = connection.call(lambda: connection.duckdb.execute(sql))
        # For a text without a statement, older versions return the connection, newer versions None.
        if result is None or result.description is None:
            raise ConfigError(_NO_STATEMENT)

        def rows() -> Iterator[tuple[Any, ...]]:
            fetched = None
            while fetched != []:
                with _errors(folders):
                    fetched = connection.call(lambda: result.fetchmany(_ROWS_AT_ONCE))
                yield from fetched

        yield Answer(tuple(column[0] for column in result.description), rows())


def query_table(storage: Storage, folders: Sequence[EvaluationFolder], sql: str) -> pa.Table:
    """Returns all rows of a statement as one table; see query_evaluations."""
    with _connected(storage, folders, sql) as connection, _errors(folders):
        result = connection.call(lambda: connection.duckdb.sql(sql))
        if result is None:
            raise ConfigError(_NO_STATEMENT)
        return connection.call(result.to_arrow_table)


@contextlib.contextmanager
def _connected(storage: Storage, folders: Sequence[EvaluationFolder], sql: str) -> Iterator["_Connection"]:
    """Yields a connection with the views that a statement needs, and with access to nothing else."""
    duckdb = _duckdb()
    views = {name: view for name, view in _views(storage, folders).items() if re.search(rf"\b{name}\b", sql, re.I)}
    # Statements such as SHOW TABLES name none.
    views = views or _views(storage, folders)
    # Nothing is spilled to disk: a statement that runs out of memory ends with a message.
    with contextlib.closing(_Connection(duckdb.connect(":memory:", config={"temp_directory": ""}))) as connection:
        with _errors(folders):
            for name, view in views.items():
                _create_view(connection.duckdb, name, view())
            connection.duckdb.execute("SET enable_external_access = false")
            connection.duckdb.execute("SET lock_configuration = true")
        yield connection


@dataclass(frozen=True)
class _Part:
    """Rows of a view, in memory or in the storage, and the values of columns that they may lack."""

    content: pa.Table | ds.Dataset
    facts: Mapping[str, str] = field(default_factory=dict)


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


def _views(storage: Storage, folders: Sequence[EvaluationFolder]) -> dict[str, Callable[[], list[_Part]]]:
    """Returns each view's name, and what reads its parts; large ones are read when the statement needs them."""

    def of_storage(name: str, read: Callable[[Storage], tuple[pa.Table, list[str]]]) -> list[_Part]:
        table, left_out = read(storage)
        for line in left_out:
            say_line(f"query: {name} without {line}")
        return [_Part(table)]

    return {
        **{table: partial(_evaluated, folders, table) for table in EVALUATION_TABLES},
        **{table: partial(_reported, folders, table) for table in REPORT_TABLES},
        "runs": partial(of_storage, "runs", runs_table),
        "grids": partial(of_storage, "grids", grids_table),
    }


def _evaluated(folders: Sequence[EvaluationFolder], table: str) -> list[_Part]:
    large = [folder for folder in folders if _is_large(folder, table)]
    small = [folder for folder in folders if folder not in large]
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        read = [rows for rows in pool.map(lambda folder: folder.table(table), small) if len(rows) or not large]
    # Those of an older version lack columns, which the union adds.
    old = [folder for folder in large if folder.schema_version != SCHEMA_VERSION]
    new = [path for folder in large if folder not in old for path in folder.stored_paths(table)]
    datasets = [_Part(_dataset(folder.storage, folder.stored_paths(table)), folder.facts) for folder in old]
    if new:
        datasets.append(_Part(_dataset(large[0].storage, new)))
    return [*([_Part(_joined(table, read))] if read or not datasets else []), *datasets]


def _reported(folders: Sequence[EvaluationFolder], table: str) -> list[_Part]:
    """Returns a table of the reports; nothing if no evaluation has it."""

    def read(folder: EvaluationFolder) -> pa.Table | None:
        try:
            return folder.reported(table)
        except OtherVersionError as error:
            say_line(f"query: without {table}: {error}, by mnist-ray report {folder.name}")
            return None

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        read_tables = [rows for rows in pool.map(read, folders) if rows is not None]
    return [_Part(_joined(table, read_tables))] if read_tables else []


def _joined(table: str, tables: Sequence[pa.Table]) -> pa.Table:
    # Files of other code versions differ in their metadata.
    schema = TABLES[table].schema(code_version="")
    return pa.concat_tables([rows.cast(schema) for rows in tables]) if tables else schema.empty_table()


def _create_view(connection: Any, name: str, parts: Sequence[_Part]) -> None:
    """Makes a view of the rows of all parts; none if there are no parts."""
    if len(parts) == 1 and not parts[0].facts:
        connection.register(name, parts[0].content)
        return
    selects = []
    for number, part in enumerate(parts):
        connection.register(f"_{name}_{number}", part.content)
        known = {*TABLES[name].names} - {*part.content.schema.names}
        facts = {fact: value.replace("'", "''") for fact, value in part.facts.items() if fact in known}
        constants = "".join(f"'{value}' AS {fact}, " for fact, value in facts.items())
        selects.append(f"SELECT {constants}* FROM _{name}_{number}")
    if selects:
        # Lists of a fixed size become lists of any size, because the first part has such.
        empty = f"_{name}_columns"
        connection.register(empty, TABLES[name].schema(code_version="").empty_table())
        connection.execute(f"CREATE VIEW {name} AS {' UNION ALL BY NAME '.join([f'FROM {empty}', *selects])}")


def _is_large(folder: EvaluationFolder, table: str) -> bool:
    num_cells = len(folder.runs) * len(folder.class_names) ** 2
    return table == "predictions" or (table == "confusion" and num_cells > parquet.ROWS_IN_PIECE)


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
def _errors(folders: Sequence[EvaluationFolder]) -> Iterator[None]:
    """Turns DuckDB's errors into one line, and separates damaged or unreachable files from mistakes in the SQL."""
    duckdb = _duckdb()
    try:
        yield
    except (duckdb.InvalidInputException, duckdb.IOException, pa.ArrowInvalid, OSError) as error:
        for folder in folders:
            files = folder.files()
            for name in [name for table in EVALUATION_TABLES if _is_large(folder, table) for name in files[table]]:
                folder.storage.read_committed(folder.path, name)
        raise ConfigError(_sql_message(error)) from error
    except duckdb.Error as error:
        raise ConfigError(_sql_message(error)) from error


def _sql_message(error: Exception) -> str:
    # After an empty line, DuckDB repeats the statement with a mark under the error.
    message = "SQL: " + " ".join(str(error).partition("\n\nLINE ")[0].split())
    not_there = [table for table in REPORT_TABLES if f"Table with name {table} does not exist" in message]
    return f"{message}; mnist-ray report EVALUATION stores {not_there[0]}" if not_there else message
