"""Defines columns and tables, and the columns of a run's settings; no I/O."""

import json
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

import pyarrow as pa

from mnist_ray.config.own_settings import OwnSettings, argument_of, setting_named
from mnist_ray.config.settings import TrainConfig
from mnist_ray.setting import setting_of

# Increases when a stored table could be misread; not for a column that older readers ignore and newer ones fill in.
SCHEMA_VERSION = 3

BOOL, INT64, FLOAT32, FLOAT64, STRING = pa.bool_(), pa.int64(), pa.float32(), pa.float64(), pa.string()
BINARY = pa.binary()
NAME = pa.dictionary(pa.int32(), pa.string())
TIME = pa.timestamp("us", tz="UTC")


def list_of(element: pa.DataType) -> pa.DataType:
    """Returns a list type of any length with non-null elements."""
    # Parquet names the child `element`; with Arrow's default, `item`, a schema would not read back equal.
    return pa.list_(pa.field("element", element, nullable=False))


# Of any length: tables of data sets with different numbers of classes are read together.
FLOAT32S = list_of(FLOAT32)


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
      name: its name.
      type: Arrow type.
      unit: unit of the values; empty if there is none.
      description: meaning of a value.
      nullable: whether a value may be missing.
      absent: value in every row of a stored table without the column; None for null, if allowed.
    """

    name: str
    type: pa.DataType
    unit: str
    description: str
    nullable: bool = False
    absent: Any = None

    @property
    def is_required(self) -> bool:
        """Whether a stored table must have the column."""
        return not self.nullable and self.absent is None

    def field(self) -> pa.Field:
        """Returns the column as an Arrow field, with unit and description as metadata."""
        metadata = {"description": self.description, "unit": self.unit}
        return pa.field(self.name, self.type, self.nullable, metadata)

    def type_name(self) -> str:
        """Returns the type in words."""
        return _TYPE_NAMES[self.type]


_TYPE_NAMES = {
    BOOL: "bool",
    INT64: "int64",
    FLOAT32: "float32",
    FLOAT64: "float64",
    STRING: "string",
    BINARY: "binary",
    NAME: "string (dictionary)",
    TIME: "timestamp (UTC, microseconds)",
    list_of(INT64): "list of int64",
    FLOAT32S: "list of float32",
}


@dataclass(frozen=True)
class Table:
    """A table: its name, the meaning of a row, and its columns in order."""

    name: str
    row: str
    columns: tuple[Column, ...]

    @property
    def names(self) -> list[str]:
        """Names of its columns."""
        return [column.name for column in self.columns]

    def schema(self, *, code_version: str) -> pa.Schema:
        """Returns the Arrow schema, with table name, schema version and code version (of the writer) as metadata."""
        metadata = {"table": self.name, "schema_version": str(SCHEMA_VERSION), "code_version": code_version}
        return pa.schema([column.field() for column in self.columns], metadata)

    def markdown(self) -> str:
        """Returns the table's documentation, in Markdown."""
        rows = "\n".join(
            f"| {column.name} | {column.type_name()} | {column.unit} | {column.description}"
            f"{'; may be null' if column.nullable else ''} |"
            for column in self.columns
        )
        return f"""## {self.name}

A row is {self.row}.

| column | type | unit | meaning |
| --- | --- | --- | --- |
{rows}
"""


def _setting_type(annotation: Any) -> tuple[pa.DataType, bool]:
    """Returns the Arrow type of a setting and whether it can be None."""
    if get_origin(annotation) in (Union, types.UnionType):
        (given,) = [kind for kind in get_args(annotation) if kind is not types.NoneType]
        return _setting_type(given)[0], True
    if get_origin(annotation) is Literal:
        return STRING, False
    if get_origin(annotation) is tuple:
        return list_of(_setting_type(get_args(annotation)[0])[0]), False
    return {bool: BOOL, int: INT64, float: FLOAT64, str: STRING, OwnSettings: STRING}[annotation], False


def column_of(setting: str) -> str:
    """Returns the name of a setting's column."""
    return setting_of(TrainConfig, setting).column or setting


def setting_columns(kind: type[TrainConfig] = TrainConfig) -> tuple[Column, ...]:
    """Returns the columns of a config's settings, in the order of its fields."""
    return tuple(_setting_column(kind, setting) for setting in kind.model_fields)


def _setting_column(kind: type[TrainConfig], setting: str) -> Column:
    field, facts = kind.model_fields[setting], setting_of(kind, setting)
    arrow_type, nullable = _setting_type(field.annotation)
    description = f"setting {setting}: {field.description}"
    absent = _stored(field.default) if facts.is_later else None
    return Column(facts.column or setting, arrow_type, "", description, nullable, absent)


def config_columns(configs: Sequence[TrainConfig]) -> dict[str, list[Any]]:
    """Returns the settings of runs as columns: column name -> one value per run."""
    return {
        column_of(name): [_stored(getattr(config, name)) for config in configs] for name in TrainConfig.model_fields
    }


def settings_row(config: TrainConfig) -> dict[str, Any]:
    """Returns the settings of a run as a row: column name -> value."""
    return {name: column[0] for name, column in config_columns([config]).items()}


def _stored(value: Any) -> Any:
    return value.text() if isinstance(value, OwnSettings) else value


def setting_in(row: Mapping[str, Any], setting: str) -> Any:
    """Returns a setting in a row of a table; model_settings.width is an argument of the user's own network.

    An argument that the row's network doesn't get is None: its function may have a default for it.
    """
    value, argument = row[column_of(setting_named(setting))], argument_of(setting)
    return json.loads(value).get(argument) if argument else value


def with_own_settings(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns rows with a column for each argument of the user's own networks, such as model_settings.width."""
    rows = list(rows)
    names = sorted({f"model_settings.{argument}" for row in rows for argument in json.loads(row["model_settings"])})
    return [{**row, **{name: setting_in(row, name) for name in names}} for row in rows]


# Runs that differ only in the seed repeat one setting.
SETTING_COLUMNS = tuple(column_of(setting) for setting in TrainConfig.model_fields if setting != "seed")
