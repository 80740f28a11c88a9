"""Delta tables in a local storage, whose folders have the evaluations' files as second names (hard links).

A Delta table names files below its own folder: most readers find no others, and VACUUM deletes those there that the
table doesn't name. So each table has a folder of its own. A second name takes no space, copies nothing, and deleting it
leaves the evaluation as it is.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mnist_ray.errors import ConfigError, ConflictError, StorageError
from mnist_ray.lake.tables import Files, lake_folder, lake_schema
from mnist_ray.results.paths import evaluation_path
from mnist_ray.results.schemas import TABLES
from mnist_ray.storage.storage import Storage

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from deltalake.transaction import AddAction


class DeltaLake:
    """One Delta table for each table of an evaluation: <storage>/lake/delta/<table>/<evaluation>/part-0.parquet."""

    def __init__(self, storage: Storage) -> None:
        try:
            import deltalake  # noqa: F401
        except ImportError:
            raise ConfigError(
                "publish: needs deltalake, which is not installed: pip install 'mnist-ray[lake]'"
            ) from None
        if not storage.is_local:
            raise ConfigError(
                f"storage={storage.uri!r}: Delta tables name files below their own folder, so they need a local "
                "storage; `--to iceberg --catalog NAME` takes this one"
            )
        self._storage = storage
        self.where = lake_folder(storage, "delta")

    def exists(self) -> bool:
        return os.path.exists(self.where)

    def _root(self, table: str) -> str:
        return os.path.join(self.where, table)

    def _open(self, table: str) -> "DeltaTable | None":
        from deltalake import DeltaTable

        return DeltaTable(self._root(table)) if DeltaTable.is_deltatable(self._root(table)) else None

    def files(self, table: str) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        with self._errors():
            delta = self._open(table)
            for path, size in _named(delta) if delta else []:
                evaluation, _, part = path.partition("/")
                found.setdefault(evaluation, {})[evaluation_path(evaluation, table, part)] = size
        return found

    def add(self, table: str, evaluation: str, files: Files) -> None:
        from deltalake import Schema
        from deltalake.transaction import create_table_with_add_actions

        schema = Schema.from_arrow(lake_schema(table, "comment"))
        with self._errors():
            actions = [self._linked(table, evaluation, path) for path in files]
            delta = self._open(table)
            if delta is None:
                description = f"A row is {TABLES[table].row}."
                create_table_with_add_actions(
                    self._root(table), schema, actions, name=table, description=description, **_once()
                )
                return
            known = {field.name for field in delta.schema().fields}
            if new := [field for field in schema.fields if field.name not in known]:
                delta.alter.add_columns(new)
            delta.create_write_transaction([*actions], "append", delta.schema(), **_once())

    def remove(self, table: str, evaluation: str) -> None:
        from deltalake.transaction import RemoveAction

        with self._errors():
            delta = self._open(table)
            if delta is None:
                return
            now = int(time.time() * 1000)
            actions: list[AddAction | RemoveAction] = [
                RemoveAction(path, data_change=True, deletion_timestamp=now, size=size, partition_values={})
                for path, size in _named(delta)
                if path.partition("/")[0] == evaluation
            ]
            delta.create_write_transaction(actions, "append", delta.schema(), **_once())
            # A killed removal may have deleted it.
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(os.path.join(self._root(table), evaluation))

    def _linked(self, table: str, evaluation: str, path: str) -> "AddAction":
        """Gives a file a second name in the table's folder and returns what the table's log says of it."""
        import pyarrow.parquet as pq
        from deltalake.transaction import AddAction

        source = self._storage.uri_of(path)
        target = os.path.join(self._root(table), evaluation, os.path.basename(path))
        os.makedirs(os.path.dirname(target), exist_ok=True)
        # A killed publication leaves links to files that may have been deleted since.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target)
        os.link(source, target)
        status = os.stat(target)
        stats = {
            "numRecords": pq.read_metadata(target).num_rows,
            "minValues": {"evaluation": evaluation},
            "maxValues": {"evaluation": evaluation},
            "nullCount": {"evaluation": 0},
        }
        name = f"{evaluation}/{os.path.basename(path)}"
        return AddAction(name, status.st_size, {}, status.st_mtime_ns // 1_000_000, True, json.dumps(stats))

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        from deltalake.exceptions import CommitFailedError, DeltaError

        try:
            yield
        except CommitFailedError as error:
            raise ConflictError(
                f"{self.where}: another program has changed the tables meanwhile; run the same command again"
            ) from error
        except (DeltaError, OSError) as error:
            raise StorageError(f"{self.where}: {' '.join(str(error).split())[:300]}") from error


def _named(delta: "DeltaTable") -> Iterator[tuple[str, int]]:
    import pyarrow as pa

    actions = pa.table(delta.get_add_actions(flatten=True))
    yield from zip(actions["path"].to_pylist(), actions["size_bytes"].to_pylist(), strict=True)


def _once() -> dict[str, Any]:
    """Options of a commit that fails, rather than adding the same files again, after another program's."""
    from deltalake.transaction import CommitProperties

    return {"commit_properties": CommitProperties(max_commit_retries=0)}
