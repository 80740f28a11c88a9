"""Makes tables from columns, and writes and reads them as Parquet files."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mnist_ray.errors import DataError, OtherVersionError
from mnist_ray.results import version2
from mnist_ray.results.columns import FLOAT32, INT64, NAME, SCHEMA_VERSION, STRING, Column, Table
from mnist_ray.results.schemas import TABLES

READ_VERSIONS = (version2.VERSION, SCHEMA_VERSION)
READS = " and ".join(map(str, READ_VERSIONS))
_ONE_VALUE = (str, datetime, type(None))
# For a table that is written in pieces.
ROWS_IN_PIECE = 1 << 20


def make_table(name: str, columns: Mapping[str, Any], *, code_version: str) -> pa.Table:
    """Makes an Arrow table from columns in any order.

    Args:
      name: a key of TABLES.
      columns: column name -> one value per row: a sequence, a 1-d array, or [rows, classes] for one value per class.
        A single str, time or None is the value of every row.
      code_version: version of the code that makes the rows.

    Raises:
      ValueError: a column is missing or unknown, has a wrong length, type or shape, or has a null where none is allowed
        (Arrow raises ValueErrors or TypeErrors).
    """
    schema = TABLES[name].schema(code_version=code_version)
    if columns.keys() != set(schema.names):
        missing = sorted(set(schema.names) - columns.keys())
        unknown = sorted(columns.keys() - set(schema.names))
        raise ValueError(f"table {name}: needs its columns exactly; missing {missing}, unknown {unknown}")
    num_rows = max(len(values) for values in columns.values() if not isinstance(values, _ONE_VALUE))
    arrays = [_array(columns[field.name], field, num_rows) for field in schema]
    table = pa.Table.from_arrays(arrays, schema=schema)
    table.validate()
    for field, column in zip(schema, table.columns, strict=True):
        num_nulls = 0 if field.nullable else column.null_count
        if _is_list(field.type):
            num_nulls += pc.list_flatten(column).null_count
        if num_nulls:
            raise ValueError(f"table {name}, column {field.name}: {num_nulls} nulls, where none is allowed")
    return table


def _array(values: Any, field: pa.Field, num_rows: int) -> pa.Array:
    if isinstance(values, _ONE_VALUE):
        values = pa.repeat(pa.scalar(values, STRING if field.type == NAME else field.type), num_rows)
    if isinstance(values, np.ndarray) and values.ndim == 2:
        offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
        return pa.ListArray.from_arrays(offsets, pa.array(values.reshape(-1), FLOAT32), type=field.type)
    if field.type == NAME:
        return pa.array(values, STRING).dictionary_encode()
    if field.type == INT64:
        # Arrow truncates Python floats to int64, but refuses to truncate when it casts an array.
        values = pa.array(values)
    return pa.array(values, field.type)


def to_parquet_bytes(table: pa.Table) -> bytes:
    """Writes a table as a Parquet file: zstd, a checksum on every page, equal bytes for equal content.

    Args:
      table: a result of `make_table`, or a slice or concatenation of results.
    """
    return pieces_to_parquet_bytes([table])


def pieces_to_parquet_bytes(pieces: Iterable[pa.Table]) -> bytes:
    """Writes a table from one or more pieces of rows, with one piece in memory at a time."""
    remaining = iter(pieces)
    first = next(remaining)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, first.schema, **_parquet_options(first.schema)) as writer:
        for piece in chain([first], remaining):
            writer.write_table(_canonical(piece))
    return bytes(sink.getvalue())


def _parquet_options(schema: pa.Schema) -> dict[str, Any]:
    # Floats are written plain: with dictionaries, an MNIST network's probabilities for the 10,000 test images take
    # 727 kB instead of 493 kB. BYTE_STREAM_SPLIT would take 463 kB, but Spark's vectorized reader rejected it for years
    # (SPARK-56894), and 6 % are not worth losing a reader. Like floats, example_index, path and row rarely repeat.
    plain_fields = {field.name for field in schema if _is_floating(field.type)} | {"example_index", "path", "row"}
    return {
        "compression": "zstd",
        "use_dictionary": [_leaf_path(field) for field in schema if field.name not in plain_fields],
        "write_page_checksum": True,
    }


def _canonical(table: pa.Table) -> pa.Table:
    """Returns the table with one chunk per column, and dictionaries of unique names in order of first appearance."""
    columns = [
        column.cast(STRING).combine_chunks().dictionary_encode() if column.type == NAME else column.combine_chunks()
        for column in table.columns
    ]
    return pa.Table.from_arrays(columns, schema=table.schema)


def _is_list(arrow_type: pa.DataType) -> bool:
    return bool(pa.types.is_list(arrow_type))


def _is_floating(arrow_type: pa.DataType) -> bool:
    return bool(pa.types.is_floating(arrow_type.value_type if _is_list(arrow_type) else arrow_type))


def _leaf_path(field: pa.Field) -> str:
    return f"{field.name}.list.element" if _is_list(field.type) else str(field.name)


def read_parquet(
    data: bytes | pa.NativeFile,
    *,
    source: str = "table",
    columns: Sequence[str] | None = None,
    facts: Mapping[str, str] | None = None,
) -> pa.Table:
    """Reads a table's Parquet file and verifies the checksum of every page.

    The checksums cover the values but not page headers and the footer: to trust these, compare the file's SHA-256 with
    the manifest's. Fills in columns that are newer than the file, and leaves out columns that this version lacks. A
    table of schema version 2 becomes one of this version.

    Args:
      data: the file's content, or an open file, whose storage errors are raised unchanged.
      source: name of the file, for the message.
      columns: columns to read; by default all that this version knows.
      facts: what every row of an older version's table has in columns that it lacks.

    Raises:
      DataError: not a whole Parquet file, a page that fails its checksum, or a table that this version can't read.
    """
    content = pa.py_buffer(data) if isinstance(data, bytes) else data.read_buffer()
    with _opened(content, source, columns, facts or {}) as (file, stored, completed):
        # Not pq.read_table: its threads may hold the bytes when Python exits, which aborts a process that loaded Ray.
        return completed(file.read(columns=stored, use_threads=False))


def read_batches(
    data: bytes, *, source: str, columns: Sequence[str], facts: Mapping[str, str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Reads a Parquet file as `read_parquet` does, in batches of rows."""
    with _opened(pa.py_buffer(data), source, columns, facts or {}) as (file, stored, completed):
        for batch in file.iter_batches(columns=stored, use_threads=False):
            yield from completed(pa.Table.from_batches([batch])).to_batches()


@contextlib.contextmanager
def _opened(
    content: pa.Buffer, source: str, columns: Sequence[str] | None, facts: Mapping[str, str]
) -> Iterator[tuple[pq.ParquetFile, list[str], Callable[[pa.Table], pa.Table]]]:
    """Yields a file, the columns to read, and the function that makes rows of this version from theirs."""
    try:
        with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as file:
            schema = file.schema_arrow
            table, is_old = _table_in(schema, source)
            _check_columns(
                version2.upgraded(schema.empty_table(), table, facts).schema if is_old else schema, table, source
            )
            assert columns is None or {*columns} <= {column.name for column in table.columns}, columns
            known = [column for column in table.columns if columns is None or column.name in columns]
            names = [column.name for column in known]

            def completed(rows: pa.Table) -> pa.Table:
                return _completed(version2.upgraded(rows, table, facts) if is_old else rows, known, source)

            stored = (
                version2.stored_columns(names, schema.names) if is_old else [*filter(schema.names.__contains__, names)]
            )
            yield file, stored, completed
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{source}: not a whole Parquet file ({reason}): copy it again, or make it again") from None


def _table_in(stored: pa.Schema, source: str) -> tuple[Table, bool]:
    """Returns the table that a file holds, and whether it is of schema version 2."""
    metadata = {key.decode(): value.decode() for key, value in (stored.metadata or {}).items()}
    version = metadata.get("schema_version", "none")
    if version not in map(str, READ_VERSIONS):
        raise _unreadable(source, f"has schema version {version}, this version of mnist-ray reads {READS}")
    table = TABLES.get(metadata.get("table", ""))
    if table is None:
        raise _unreadable(source, f"holds the table {metadata.get('table')!r}, which this version of mnist-ray lacks")
    return table, version == str(version2.VERSION)


def _check_columns(stored: pa.Schema, table: Table, source: str) -> None:
    for column in table.columns:
        place = stored.get_field_index(column.name)
        if place < 0 and column.is_required:
            raise _unreadable(source, f"lacks the column {column.name}, which this version of mnist-ray needs")
        if place >= 0 and stored.types[place] != column.type:
            kinds = f"{stored.types[place]}, this version of mnist-ray reads {column.type_name()}"
            raise _unreadable(source, f"its column {column.name} is {kinds}")


def _unreadable(source: str, reason: str) -> OtherVersionError:
    return OtherVersionError(f"{source}: {reason}: read it with the version that wrote it, or make it again")


def _completed(stored: pa.Table, columns: Sequence[Column], source: str) -> pa.Table:
    """Returns some columns in this version's order; fills a column that the file lacks with its `absent` value."""
    fields, arrays = [], []
    for column in columns:
        place = stored.schema.get_field_index(column.name)
        field = stored.schema.field(place) if place >= 0 else column.field()
        values = stored.column(place) if place >= 0 else pa.array([column.absent] * len(stored), field.type)
        if not column.nullable and values.null_count:
            raise _unreadable(source, f"its column {column.name} has nulls, which this version of mnist-ray can't read")
        fields.append(field)
        arrays.append(values)
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, stored.schema.metadata))
