"""What the two kinds of lake share: the tables, their schemas, and which files of an evaluation they hold."""

import os
from collections.abc import Mapping
from typing import Protocol

import pyarrow as pa

from mnist_ray.results.paths import LAKE
from mnist_ray.results.schemas import EVALUATION_TABLES, TABLES
from mnist_ray.storage.storage import Storage

# In the order in which an evaluation's rows appear. No transaction spans tables, but an evaluation in metrics is in
# all others.
LAKE_TABLES = (*(table for table in EVALUATION_TABLES if table != "metrics"), "metrics")

# Path relative to the storage -> size in bytes.
Files = Mapping[str, int]


class Lake(Protocol):
    """Tables of a catalog or folder; the changes of one call are one transaction, of one table."""

    where: str

    def exists(self) -> bool:
        """Tells whether there may be tables, without making anything."""

    def files(self, table: str) -> dict[str, dict[str, int]]:
        """Returns evaluation -> its files in the table, as the lake has them now."""

    def add(self, table: str, evaluation: str, files: Files) -> None:
        """Adds the files of an evaluation that the table doesn't have; makes the table or its new columns first."""

    def remove(self, table: str, evaluation: str) -> None:
        """Removes the files of an evaluation from the table, unread: they may be gone."""


def lake_folder(storage: Storage, kind: str) -> str:
    """Returns the folder of a local storage's lake."""
    return os.path.join(storage.uri, LAKE, kind)


def lake_schema(table: str, comment: str) -> pa.Schema:
    """Returns the schema of a lake's table: plain strings, and optional columns where an older file may lack them.

    Args:
      comment: key of the fields' metadata that the lake takes a column's description from.
    """
    fields = []
    for column in TABLES[table].columns:
        plain = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        description = f"{column.description}; unit: {column.unit}" if column.unit else column.description
        fields.append(pa.field(column.name, plain, not column.is_required, {comment: description}))
    return pa.schema(fields)
