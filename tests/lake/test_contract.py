"""The contract of the tables is one of the standard, and true of the tables."""

import json
from importlib.resources import files
from typing import Any

import jsonschema
import pytest
from ruamel.yaml import YAML

from mnist_ray.cli.main import run_command
from mnist_ray.lake.contract import primary_key
from mnist_ray.results.schemas import EVALUATION_TABLES, TABLES
from tests.support.published import commit_evaluation, rows_in_files
from tests.support.sample_tables import ALL


@pytest.fixture
def contract(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert run_command(["tables", "--contract"]) == 0
    return YAML(typ="safe").load(capsys.readouterr().out)


def test_the_contract_is_valid_under_the_standards_own_schema(contract: dict[str, Any]) -> None:
    schema = json.loads(files("open_data_contract_standard").joinpath("schema.json").read_text())
    assert "v3.1.0" in schema["properties"]["apiVersion"]["enum"]
    jsonschema.Draft201909Validator(schema).validate(contract)
    assert (contract["apiVersion"], contract["kind"], contract["status"]) == ("v3.1.0", "DataContract", "active")
    assert contract["version"].startswith("3.0.0")


def test_the_contract_has_all_tables_and_columns_with_their_types_and_units(contract: dict[str, Any]) -> None:
    assert [table["name"] for table in contract["schema"]] == list(TABLES)
    for table in contract["schema"]:
        columns = TABLES[table["name"]].columns
        assert [column["name"] for column in table["properties"]] == [column.name for column in columns]
        assert [column["description"] for column in table["properties"]] == [column.description for column in columns]
    (predictions,) = (table for table in contract["schema"] if table["name"] == "predictions")
    by_name = {column["name"]: column for column in predictions["properties"]}
    assert predictions["description"] == "A row is a run × an example."
    assert by_name["probabilities"] == {
        "name": "probabilities",
        "logicalType": "array",
        "physicalType": "list<float>",
        "items": {"logicalType": "number", "physicalType": "float", "required": True},
        "description": "probability of each class, in the order of label",
        "required": True,
        "customProperties": [{"property": "unit", "value": "probability"}],
    }
    assert by_name["evaluation"]["partitioned"] is True
    keys = {name: column["primaryKeyPosition"] for name, column in by_name.items() if "primaryKey" in column}
    assert keys == {"evaluation": 1, "run": 2, "example_index": 3}


def test_no_two_rows_share_a_primary_key(tmp_path: Any) -> None:
    for name in ("first", "second"):
        commit_evaluation(str(tmp_path), name)
    tables = {**ALL, **{table: rows_in_files(str(tmp_path), table) for table in EVALUATION_TABLES}}
    for table, rows in tables.items():
        key = primary_key(table)
        for length in range(1, len(key) + 1):
            keys = rows.select(key[:length]).to_pylist()
            is_unique = len({tuple(row.values()) for row in keys}) == len(keys)
            # Fewer columns are no key, where there are rows enough to show it.
            assert is_unique or length < len(key), table
            if table in ("predictions", "confusion", "calibration", "per_class") and length < len(key):
                assert not is_unique, table


def test_tables_lists_the_tables_with_their_rows_and_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["tables"]) == 0
    text = capsys.readouterr().out
    for table in TABLES.values():
        assert table.name in text
        assert table.row in text
        assert all(name in text for name in table.names)
