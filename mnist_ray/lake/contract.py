"""The tables as an Open Data Contract, https://bitol-io.github.io/open-data-contract-standard/v3.1.0/."""

import io
from typing import Any

import pyarrow as pa
from ruamel.yaml import YAML

import mnist_ray
from mnist_ray.results.columns import BINARY, BOOL, FLOAT32, FLOAT64, INT64, NAME, SCHEMA_VERSION, STRING, TIME, Column
from mnist_ray.results.schemas import EVALUATION_TABLES, REPORT_TABLES, TABLES

_PROJECT = "mnist-ray"
# Arrow type -> logical type of the standard, which has none for bytes, and type of Iceberg.
_TYPES = {
    BOOL: ("boolean", "boolean"),
    INT64: ("integer", "long"),
    FLOAT32: ("number", "float"),
    FLOAT64: ("number", "double"),
    STRING: ("string", "string"),
    NAME: ("string", "string"),
    BINARY: ("string", "binary"),
    TIME: ("timestamp", "timestamptz"),
}
# Columns that no two rows of a table share, beside `evaluation` where the table has it.
_KEYS = {
    "predictions": ("run", "example_index"),
    "metrics": ("run",),
    "per_class": ("run", "class"),
    "confusion": ("run", "label", "predicted_label"),
    "calibration": ("run", "confidence_low"),
    "learning_curves": ("run", "epoch"),
    "images": ("reason", "rank"),
    "lineage": ("run",),
    "history": ("run", "epoch"),
    "runs": ("run",),
    "grids": ("grid",),
    "comparisons": ("first", "second", "metric"),
}


def primary_key(table: str) -> list[str]:
    """Returns the columns that tell the rows of a table apart; none if other columns, with nulls, are needed."""
    key = _KEYS.get(table, ())
    return ["evaluation", *key] if key and "evaluation" in TABLES[table].names else list(key)


def contract() -> dict[str, Any]:
    """Returns the contract of all tables, as a document of the standard 3.1.0."""
    return {
        "apiVersion": "v3.1.0",
        "kind": "DataContract",
        "id": f"{_PROJECT}-tables",
        "name": f"Tables of {_PROJECT}",
        # The schemas' version; then what only adds to them.
        "version": f"{SCHEMA_VERSION}.0.0+{mnist_ray.__version__}",
        "status": "active",
        "description": {
            "purpose": "Predictions and metrics of image classifiers, their settings, and comparisons of settings.",
            "usage": "Join the tables of evaluations on evaluation and run: a run may be in several evaluations.",
            "limitations": "No column has nulls unless it is not required. Columns may be added without a new version.",
        },
        "schema": [_object(table) for table in TABLES],
    }


def contract_yaml() -> str:
    """Returns the contract as YAML."""
    text, writer = io.StringIO(), YAML(typ="safe", pure=True)
    writer.default_flow_style, writer.width = False, 120
    # In the order of the document above; ruamel.yaml's stub knows only its default.
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.dump(contract(), text)
    return text.getvalue()


def _object(table: str) -> dict[str, Any]:
    return {
        "name": table,
        "logicalType": "object",
        "physicalName": table,
        "physicalType": "table",
        "description": f"A row is {TABLES[table].row}.",
        "properties": [_property(table, column) for column in TABLES[table].columns],
    }


def _property(table: str, column: Column) -> dict[str, Any]:
    written: dict[str, Any] = {
        "name": column.name,
        **_types(column.type),
        "description": column.description,
        "required": column.is_required,
    }
    key = primary_key(table)
    if column.name in key:
        written |= {"primaryKey": True, "primaryKeyPosition": 1 + key.index(column.name)}
    if column.name == "evaluation" and table in EVALUATION_TABLES + REPORT_TABLES:
        written |= {"partitioned": True, "partitionKeyPosition": 1}
    if column.unit:
        written["customProperties"] = [{"property": "unit", "value": column.unit}]
    return written


def _types(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_list(kind):
        element = _types(kind.value_type)
        physical = f"list<{element['physicalType']}>"
        return {"logicalType": "array", "physicalType": physical, "items": {**element, "required": True}}
    logical, physical = _TYPES[kind]
    return {"logicalType": logical, "physicalType": physical}
