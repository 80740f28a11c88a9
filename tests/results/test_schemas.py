import dataclasses
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from mnist_ray.config.settings import TrainConfig
from mnist_ray.evaluation import metrics
from mnist_ray.results import schemas
from mnist_ray.results.columns import config_columns
from tests.support.sample_tables import ALL, CONFIGS


@pytest.mark.parametrize("name", schemas.TABLES)
def test_every_column_is_described_once_in_the_schema(name):
    schema = schemas.TABLES[name].schema(code_version="0.1.0+src.12")
    assert len(set(schema.names)) == len(schema.names)
    assert schema.metadata == {b"table": name.encode(), b"schema_version": b"3", b"code_version": b"0.1.0+src.12"}
    for field in schema:
        assert set(field.metadata) == {b"description", b"unit"}
        assert field.metadata[b"description"]


@pytest.mark.parametrize("name", [*schemas.EVALUATION_TABLES, *schemas.REPORT_TABLES])
def test_every_table_of_an_evaluation_begins_with_its_name_and_its_data(name):
    keys = ("evaluation", "run", "dataset", "split", "dataset_id")
    begins = [key for key in keys if key in ALL[name].schema.names]
    assert ALL[name].schema.names[: len(begins)] == begins
    assert {*begins} | {"run", "dataset_id"} == {*keys}
    assert set(ALL[name].schema.types[: len(begins)]) == {pa.dictionary(pa.int32(), pa.string())}
    without_id = {
        table for table in schemas.TABLES if {"evaluation", "dataset_id"} & {*ALL[table].schema.names} == {"evaluation"}
    }
    assert without_id == {"predictions"}


def test_a_table_where_a_row_is_a_run_says_when_it_was_made_and_its_setting():
    rows_of_runs = {"metrics", "lineage", "runs"}
    for column, tables in (
        ("setting", rows_of_runs),
        ("trained_at", rows_of_runs | {"grids"}),
        ("evaluated_at", {"metrics", "lineage"}),
    ):
        assert {name for name, table in ALL.items() if column in table.schema.names} == tables, column
    assert ALL["metrics"].schema.field("evaluated_at").type == pa.timestamp("us", tz="UTC")


def test_the_schema_of_predictions():
    schema = schemas.TABLES["predictions"].schema(code_version="1")
    assert schema.remove_metadata().equals(
        pa.schema(
            [
                pa.field("evaluation", pa.dictionary(pa.int32(), pa.string()), nullable=False),
                pa.field("run", pa.dictionary(pa.int32(), pa.string()), nullable=False),
                pa.field("dataset", pa.dictionary(pa.int32(), pa.string()), nullable=False),
                pa.field("split", pa.dictionary(pa.int32(), pa.string()), nullable=False),
                pa.field("example_index", pa.int64(), nullable=False),
                pa.field("label", pa.int64(), nullable=False),
                pa.field("label_name", pa.dictionary(pa.int32(), pa.string()), nullable=False),
                pa.field("predicted_label", pa.int64(), nullable=False),
                pa.field("predicted_label_name", pa.dictionary(pa.int32(), pa.string()), nullable=False),
                pa.field("correct", pa.bool_(), nullable=False),
                pa.field("confidence", pa.float32(), nullable=False),
                pa.field("label_probability", pa.float32(), nullable=False),
                pa.field("loss", pa.float32(), nullable=False),
                pa.field("probabilities", pa.list_(pa.field("element", pa.float32(), nullable=False)), nullable=False),
            ]
        )
    )


def test_every_setting_is_a_column_of_metrics_and_nullable_when_it_can_be_none():
    schema = schemas.TABLES["metrics"].schema(code_version="1")
    renamed = ["train_dataset" if setting == "dataset" else setting for setting in TrainConfig.model_fields]
    assert [name for name in schema.names if name in renamed] == renamed
    may_be_none = {"gradient_clip_norm", "early_stopping_patience", "train_limit", "image_size", "color", "code_sha256"}
    assert {name for name in renamed if schema.field(name).nullable} == may_be_none
    types = {"variant": "string", "model": "string", "batch_norm": "bool", "dropout": "double", "seed": "int64"}
    assert {name: str(schema.field(name).type) for name in types} == types
    assert str(schema.field("hidden_sizes").type) == "list<element: int64 not null>"
    assert str(schema.field("gradient_clip_norm").type) == "double"


def test_config_columns_hold_the_settings_of_each_run():
    columns = config_columns(CONFIGS)
    assert columns["hidden_sizes"] == [(128, 64), (256, 128, 64)]
    assert columns["gradient_clip_norm"] == [None, 1.5]
    assert columns["train_dataset"] == ["mnist", "mnist"]
    assert len(columns) == len(TrainConfig.model_fields)


def test_the_rates_of_a_run_are_columns_of_metrics():
    assert {field.name for field in dataclasses.fields(metrics.Rates)} <= set(ALL["metrics"].schema.names)


def test_the_documentation_is_the_one_that_the_module_prints():
    printed = subprocess.run(
        [sys.executable, "-m", "mnist_ray.results.schemas"],
        check=True,
        capture_output=True,
        cwd=Path(__file__).parents[2],
    ).stdout.decode()
    assert printed == schemas.tables_markdown()
    documented = Path(__file__).parents[2].joinpath("docs", "tables.md").read_text()
    assert documented == printed, "run `python -m mnist_ray.results.schemas > docs/tables.md`"
