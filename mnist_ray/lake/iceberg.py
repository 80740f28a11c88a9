"""Iceberg tables that name the files of evaluations where they lie (`add_files`), partitioned by evaluation."""

import contextlib
import logging
import os
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mnist_ray.errors import ConfigError, ConflictError, DataError, StorageError
from mnist_ray.lake.tables import Files, lake_folder, lake_schema
from mnist_ray.results.schemas import TABLES
from mnist_ray.storage.storage import Storage

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import DataScan, Table, Transaction

NAMESPACE = "mnist_ray"
_CATALOG_FILE = "catalog.db"
_STORAGE = "mnist-ray.storage"
_EVALUATION = "mnist-ray.evaluation"
# A transaction that was prepared before another's would add the same files again if it were repeated.
_PROPERTIES = {"commit.retry.num-retries": "0"}


class IcebergLake:
    """One Iceberg table for each table of an evaluation.

    The tables of a local storage are in its own SQL catalog, unless a catalog of ~/.pyiceberg.yaml is named.
    """

    def __init__(self, storage: Storage, *, catalog: str | None = None, namespace: str = NAMESPACE) -> None:
        try:
            import pyiceberg  # noqa: F401
        except ImportError:
            raise ConfigError(
                "publish: needs pyiceberg, which is not installed: pip install 'mnist-ray[lake]'"
            ) from None
        if catalog is None and not storage.is_local:
            raise ConfigError(
                f"storage={storage.uri!r}: only a local storage has a catalog of its own; "
                "name one of ~/.pyiceberg.yaml: --catalog NAME"
            )
        self._storage, self._name, self._namespace = storage, catalog, namespace
        self.where = f"catalog {catalog}" if catalog else os.path.join(lake_folder(storage, "iceberg"), _CATALOG_FILE)
        # It says of each column of names that Iceberg has no dictionary type.
        logging.getLogger("pyiceberg.io.pyarrow").setLevel(logging.ERROR)

    def exists(self) -> bool:
        return self._name is not None or os.path.exists(self.where)

    @cached_property
    def _catalog(self) -> "Catalog":
        from pyiceberg.catalog import load_catalog
        from pyiceberg.catalog.sql import SqlCatalog
        from pyiceberg.exceptions import NotInstalledError

        if self._name is None:
            folder = os.path.dirname(self.where)
            os.makedirs(folder, exist_ok=True)
            catalog: Catalog = SqlCatalog("mnist_ray", uri=f"sqlite:///{self.where}", warehouse=folder)
        else:
            try:
                catalog = load_catalog(self._name)
            except (ValueError, NotInstalledError) as error:
                raise ConfigError(f"--catalog {self._name!r}: {_line(error)}") from error
        catalog.create_namespace_if_not_exists(self._namespace)
        return catalog

    def _table(self, table: str) -> "Table | None":
        from pyiceberg.exceptions import NoSuchTableError

        try:
            found = self._catalog.load_table((self._namespace, table))
        except NoSuchTableError:
            return None
        owner = found.properties.get(_STORAGE)
        if owner != self._storage.uri:
            raise ConflictError(
                f"{self.where}: {self._namespace}.{table} holds the evaluations of {owner}; "
                f"--namespace NAME makes other tables for {self._storage.uri}"
            )
        return found

    def files(self, table: str) -> dict[str, dict[str, int]]:
        with self._errors():
            found = self._table(table)
            return _files(found.scan(), self._storage.uri_of("")) if found else {}

    def add(self, table: str, evaluation: str, files: Files) -> None:
        uris = [self._storage.uri_of(path) for path in files]
        with self._errors(), self._change(table) as change:
            change.add_files(uris, snapshot_properties={_EVALUATION: evaluation})

    def remove(self, table: str, evaluation: str) -> None:
        from pyiceberg.expressions import EqualTo

        with self._errors():
            found = self._table(table)
            if found is None:
                return
            tasks = found.scan(row_filter=EqualTo(term="evaluation", value=evaluation)).plan_files()
            # Not by Table.delete, which reads the files.
            with found.transaction() as change, change.update_snapshot({_EVALUATION: evaluation}).overwrite() as less:
                for task in tasks:
                    less.delete_data_file(task.file)

    @contextlib.contextmanager
    def _change(self, table: str) -> "Iterator[Transaction]":
        """Yields a transaction on a table with all columns; the table appears with the first one."""
        schema = lake_schema(table, "doc")
        found = self._table(table)
        if found is None:
            properties = {**_PROPERTIES, _STORAGE: self._storage.uri, "comment": f"A row is {TABLES[table].row}."}
            with self._catalog.create_table_transaction(
                (self._namespace, table), schema, properties=properties
            ) as change:
                with change.update_spec() as partitions:
                    partitions.add_identity("evaluation")
                yield change
            return
        if set(schema.names) - set(found.schema().column_names):
            with found.update_schema() as columns:
                columns.union_by_name(schema)
        with found.transaction() as change:
            yield change

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turns errors of the catalog into one line; its files and servers can fail in the ways of any library."""
        from pyiceberg.exceptions import CommitFailedException, RESTError, TableAlreadyExistsError
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (CommitFailedException, TableAlreadyExistsError) as error:
            raise ConflictError(
                f"{self.where}: another program has changed the tables meanwhile; run the same command again"
            ) from error
        except FileNotFoundError as error:
            raise StorageError(
                f"{self.where}: names a file that is not there ({_line(error)}); if the storage was moved, delete the "
                "lake's folder, which has none of the evaluations' files, and publish again"
            ) from error
        except (SQLAlchemyError, RESTError, OSError) as error:
            raise StorageError(f"{self.where}: {_line(error)}") from error
        except ValueError as error:
            raise DataError(f"{self.where}: {_line(error)}") from error


def _files(scan: "DataScan", root: str) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for task in scan.plan_files():
        path = task.file.file_path.removeprefix(f"{root.rstrip('/')}/")
        found.setdefault(task.file.partition[0], {})[path] = task.file.file_size_in_bytes
    return found


def _line(error: Any) -> str:
    return " ".join(str(error).split())[:300]
