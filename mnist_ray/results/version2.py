"""Turns stored tables of schema version 2 into those of this version: nothing is lost, only times are unknown."""

from collections.abc import Iterable, Mapping

import pyarrow as pa
import pyarrow.compute as pc

from mnist_ray.results.columns import FLOAT32, FLOAT32S, SETTING_COLUMNS, STRING, Table
from mnist_ray.results.setting_words import setting_words

VERSION = 2


def stored_columns(wanted: Iterable[str], stored: Iterable[str]) -> list[str]:
    """Returns the stored columns from which `upgraded` makes the wanted columns of this version."""
    names = {*wanted}
    if "dataset_id" in names:
        names |= {"data_sha256"}
    if "setting" in names:
        names |= {*SETTING_COLUMNS}
    return [name for name in stored if name in names]


def upgraded(stored: pa.Table, table: Table, facts: Mapping[str, str]) -> pa.Table:
    """Returns rows of this version.

    Args:
      stored: some or all columns of a stored table.
      table: the table that it is.
      facts: column -> value in every row, for columns that are not stored; others are ignored.
    """
    columns = dict(zip(stored.column_names, stored.columns, strict=True))
    kind = columns["probabilities"].type if "probabilities" in columns else None
    if kind and pa.types.is_fixed_size_list(kind) and kind.value_type == FLOAT32:
        columns["probabilities"] = columns["probabilities"].cast(FLOAT32S)
    if "data_sha256" in columns:
        columns["dataset_id"] = columns.pop("data_sha256").cast(STRING).dictionary_encode()
    if "grid" in columns:
        columns["grid"] = pc.fill_null(columns["grid"].cast(STRING), "").dictionary_encode()
    known = {column.name for column in table.columns}
    for name in facts.keys() & (known - columns.keys()):
        columns[name] = pa.repeat(pa.scalar(facts[name], STRING), len(stored)).dictionary_encode()
    # Without the settings, for instance in lineage, there are no words.
    if "setting" in known and "setting" not in columns and "variant" in columns:
        rows = stored.select([name for name in SETTING_COLUMNS if name in columns]).to_pylist()
        columns["setting"] = pa.array(list(map(setting_words, rows)), STRING).dictionary_encode()
    return pa.table(columns).replace_schema_metadata(stored.schema.metadata)
