import dataclasses
import io
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mnist_ray.config.settings import TrainConfig
from mnist_ray.errors import DataError
from mnist_ray.evaluation import metrics
from mnist_ray.results import tables

EVALUATION = {"run": "a", "dataset": "digits", "split": "test"}
CLASS_NAMES = np.array(["null", "eins", "zwei"])
CONFIGS = [TrainConfig(), TrainConfig(hidden_sizes=(256, 128, 64), gradient_clip_norm=1.5, train_limit=100, seed=1)]


def predictions_table(num_examples=6, **changes):
    generator = torch.Generator().manual_seed(0)
    logits = 2.0 * torch.randn(num_examples, 3, generator=generator)
    labels = torch.randint(3, (num_examples,), generator=generator)
    shard = dataclasses.asdict(metrics.predictions(torch.log_softmax(logits, dim=1), labels))
    del shard["label_rank"]
    columns = {
        **EVALUATION,
        **shard,
        "example_index": np.arange(num_examples),
        "label_name": CLASS_NAMES[shard["label"]],
        "predicted_label_name": CLASS_NAMES[shard["predicted_label"]],
    }
    return tables.make_table("predictions", {**columns, **changes}, code_version="1", num_classes=3)


def metrics_table(**changes):
    shard = metrics.predictions(torch.log_softmax(torch.eye(3), dim=1), torch.tensor([0, 1, 1]))
    rates = dataclasses.asdict(metrics.rates(metrics.tally(shard)))
    columns = {
        **EVALUATION,
        "run": ["a", "b"],
        "grid": [None, "regularization"],
        **tables.config_columns(CONFIGS),
        **{name: [value, value] for name, value in rates.items()},
        "epoch": [5, 4],
        "config_hash": [config.config_hash() for config in CONFIGS],
        "checkpoint_sha256": "ab",
        "data_sha256": "cd",
        "code_version": "1",
    }
    return tables.make_table("metrics", {**columns, **changes}, code_version="1")


def other_tables():
    shard = metrics.predictions(torch.log_softmax(torch.eye(3), dim=1), torch.tensor([0, 1, 1]))
    total = metrics.tally(shard)
    labels, predicted = np.indices((3, 3)).reshape(2, 9)
    epochs = {"run": "a", "epoch": [1, 2], "examples": [1500, 1500], "learning_rate": [1e-3, 1e-4]}
    rates = ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "epoch_seconds")
    columns = {
        "per_class": {
            "class": range(3),
            "class_name": CLASS_NAMES,
            **dataclasses.asdict(metrics.class_rates(total.confusion)),
        },
        "confusion": {
            "label": labels,
            "label_name": CLASS_NAMES[labels],
            "predicted_label": predicted,
            "predicted_label_name": CLASS_NAMES[predicted],
            "count": total.confusion.reshape(-1),
        },
        "calibration": metrics.calibration(total),
    }
    made = {name: tables.make_table(name, {**EVALUATION, **own}, code_version="1") for name, own in columns.items()}
    runs = {
        "run": ["a", "b"],
        "grid": "g",
        **tables.config_columns(CONFIGS),
        "status": ["finished", "diverged"],
        "reason": [None, "epoch 1"],
        "epochs_done": [5, 0],
        "best_epoch": [4, None],
        "best_val_loss": [0.1, None],
        "best_val_accuracy": [0.97, None],
        "seconds": [1.5, 0.0],
        "checkpoint": ["runs/a/best", None],
    }
    effects = {
        "evaluation": "e",
        "grid": "g",
        "dataset": "digits",
        "split": "test",
        "metric": "accuracy",
        "kind": ["main", "interaction"],
        "axis": "dropout",
        "level": "0.3",
        "reference_level": "0",
        "second_axis": [None, "batch_norm"],
        "second_level": [None, "true"],
        "second_reference_level": [None, "false"],
        **{name: [0.01, None] for name in ("effect_low", "effect_high", "p_value", "p_adjusted")},
        "effect": [0.02, 0.0],
        "num_seeds": [3, 1],
        "num_pairs": [8, 4],
    }
    comparisons = {
        "evaluation": "e",
        "dataset": "digits",
        "split": "test",
        "first": ["dropout", "tuned"],
        "second": "baseline",
        **{name: [3, 1] for name in ("num_seeds", "num_examples", "first_right", "second_right")},
        **{
            f"{name}{end}": [0.9, 0.5]
            for name in ("accuracy_difference", "log_loss_difference")
            for end in ("", "_low", "_high")
        },
        **{f"{place}_{name}": [0.9, 0.5] for name in ("accuracy", "log_loss") for place in ("first", "second")},
        **{name: [0.01, 0.5] for name in ("p_value", "p_adjusted", "mcnemar_p", "mcnemar_p_adjusted")},
        "seed_error": [0.01, None],
        "example_error": [0.01, 0.02],
        "num_seeds_needed": [12, None],
        "verdict": ["better", "tie"],
    }
    images = {
        "dataset": "digits",
        "split": "test",
        "reason": ["hardest", "sample"],
        "rank": [0, 0],
        "example_index": [12, 0],
        "label": [1, 2],
        "label_name": ["eins", "zwei"],
        "image": [b"\x89PNG", b"\x89PNG2"],
        "num_runs_wrong": [2, 0],
        "vote_entropy": [0.5, 0.0],
        "mean_loss": [2.5, 0.125],
    }
    lineage = {
        **EVALUATION,
        "run": ["a", "b"],
        **dict.fromkeys(("config_hash", "checkpoint_sha256", "train_data_sha256", "train_code_version"), "ab"),
        "command_line": "mnist-ray train",
        "python": "3.11.2",
        "libraries": '{"torch": "2.14.1"}',
        "cpu": "a CPU",
        "num_cpus": [2, 64],
        "gpu": [None, "a GPU"],
        "os": "Linux",
        "num_workers": [1, 2],
    }
    curves = {**epochs, **{name: [0.5, 0.25] for name in rates if name != "epoch_seconds"}}
    made["images"] = tables.make_table("images", images, code_version="1")
    made["lineage"] = tables.make_table("lineage", lineage, code_version="1")
    made["learning_curves"] = tables.make_table("learning_curves", curves, code_version="1")
    image = {"run": "a", "path": ["a/1.png", "b.parquet"], "row": [None, 7]}
    answer = {
        "label": [None, 2],
        "predicted_label": [0, 2],
        "predicted_label_name": CLASS_NAMES[[0, 2]],
        "confidence": [0.75, 0.5],
        "inverted": [True, False],
        "probabilities": np.array([[0.75, 0.25, 0], [0.25, 0.25, 0.5]], dtype=np.float32),
    }
    made["image_predictions"] = tables.make_table(
        "image_predictions", {**image, **answer}, code_version="1", num_classes=3
    )
    made["image_errors"] = tables.make_table("image_errors", {**image, "error": ["null", "cut"]}, code_version="1")
    made["comparisons"] = tables.make_table("comparisons", comparisons, code_version="1")
    made["effects"] = tables.make_table("effects", effects, code_version="1")
    made["runs"] = tables.make_table("runs", runs, code_version="1")
    made["history"] = tables.make_table(
        "history", {**epochs, **{name: [0.5, 0.25] for name in rates}}, code_version="1"
    )
    return made


ALL = {"predictions": predictions_table(), "metrics": metrics_table(), **other_tables()}


def test_every_table_has_a_sample_here():
    assert set(ALL) == set(tables.TABLES)


@pytest.mark.parametrize("name", tables.TABLES)
def test_a_table_reads_back_equal_with_its_types_nullability_and_metadata(name):
    read = tables.read_parquet(tables.to_parquet_bytes(ALL[name]))
    assert read.schema.equals(ALL[name].schema, check_metadata=True)
    assert read.schema.equals(tables.TABLES[name].schema(code_version="1", num_classes=3), check_metadata=True)
    assert read.equals(ALL[name])


@pytest.mark.parametrize("name", tables.TABLES)
def test_every_column_is_described_once_in_the_schema(name):
    schema = tables.TABLES[name].schema(code_version="0.1.0+src.12", num_classes=3)
    assert len(set(schema.names)) == len(schema.names)
    assert schema.metadata == {b"table": name.encode(), b"schema_version": b"2", b"code_version": b"0.1.0+src.12"}
    for field in schema:
        assert set(field.metadata) == {b"description", b"unit"}
        assert field.metadata[b"description"]


@pytest.mark.parametrize("name", ["predictions", "metrics", "per_class", "confusion", "calibration"])
def test_every_evaluation_table_begins_with_run_dataset_and_split(name):
    assert ALL[name].schema.names[:3] == ["run", "dataset", "split"]
    assert set(ALL[name].schema.types[:3]) == {pa.dictionary(pa.int32(), pa.string())}


def test_the_schema_of_predictions():
    schema = tables.PREDICTIONS.schema(code_version="1", num_classes=10)
    assert schema.remove_metadata().equals(
        pa.schema(
            [
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
                pa.field(
                    "probabilities", pa.list_(pa.field("element", pa.float32(), nullable=False), 10), nullable=False
                ),
            ]
        )
    )


def test_every_setting_is_a_column_of_metrics_and_nullable_when_it_can_be_none():
    schema = tables.METRICS.schema(code_version="1")
    renamed = ["train_dataset" if setting == "dataset" else setting for setting in TrainConfig.model_fields]
    assert [name for name in schema.names if name in renamed] == renamed
    may_be_none = {"gradient_clip_norm", "early_stopping_patience", "train_limit"}
    assert {field.name for field in schema if field.nullable} == {"grid"} | may_be_none
    types = {"variant": "string", "model": "string", "batch_norm": "bool", "dropout": "double", "seed": "int64"}
    assert {name: str(schema.field(name).type) for name in types} == types
    assert str(schema.field("hidden_sizes").type) == "list<element: int64 not null>"
    assert str(schema.field("gradient_clip_norm").type) == "double"


def test_config_columns_hold_the_settings_of_each_run():
    columns = tables.config_columns(CONFIGS)
    assert columns["hidden_sizes"] == [(128, 64), (256, 128, 64)]
    assert columns["gradient_clip_norm"] == [None, 1.5]
    assert columns["train_dataset"] == ["mnist", "mnist"]
    assert len(columns) == len(TrainConfig.model_fields)


def test_the_rates_of_a_run_are_columns_of_metrics():
    assert {field.name for field in dataclasses.fields(metrics.Rates)} <= set(ALL["metrics"].schema.names)


@pytest.fixture
def written(tmp_path):
    for name, table in ALL.items():
        (tmp_path / f"{name}.parquet").write_bytes(tables.to_parquet_bytes(table))
    return tmp_path


def test_duckdb_reads_the_tables(written):
    with duckdb.connect() as connection:
        rows = connection.execute(
            "select example_index, label_name, confidence, probabilities[label + 1] = label_probability"
            f" from '{written}/predictions.parquet' order by example_index"
        ).fetchall()
        runs = connection.execute(
            "select run, grid, train_dataset, hidden_sizes, gradient_clip_norm, train_limit, accuracy"
            f" from '{written}/metrics.parquet' order by run"
        ).fetchall()
        bins = connection.execute(
            f"select count(*), count(mean_confidence), sum(count) from '{written}/calibration.parquet'"
        ).fetchall()
        kinds = dict(
            connection.execute(
                f"select column_name, column_type from (describe from '{written}/predictions.parquet')"
            ).fetchall()
        )
    predictions = ALL["predictions"]
    assert [row[:3] for row in rows] == list(
        zip(*(predictions[name].to_pylist() for name in ("example_index", "label_name", "confidence")), strict=True)
    )
    assert all(row[3] for row in rows)
    assert runs == [
        ("a", None, "mnist", [128, 64], None, None, pytest.approx(2 / 3)),
        ("b", "regularization", "mnist", [256, 128, 64], 1.5, 100, pytest.approx(2 / 3)),
    ]
    assert bins == [(15, 1, 3)]
    assert kinds["run"] == "VARCHAR"
    assert kinds["correct"] == "BOOLEAN"
    assert kinds["label"] == "BIGINT"
    assert kinds["loss"] == "FLOAT"
    assert kinds["probabilities"].startswith("FLOAT[")


def test_pandas_reads_the_tables(written):
    predictions = pd.read_parquet(written / "predictions.parquet")
    runs = pd.read_parquet(written / "metrics.parquet").set_index("run")
    expected = ALL["predictions"]
    types = {"run": "category", "label": "int64", "correct": "bool", "loss": "float32", "label_name": "category"}
    assert {name: str(predictions[name].dtype) for name in types} == types
    assert predictions["label_name"].tolist() == expected["label_name"].to_pylist()
    np.testing.assert_array_equal(np.stack(predictions["probabilities"]), expected["probabilities"].to_pylist())
    assert runs.loc["b", "hidden_sizes"].tolist() == [256, 128, 64]
    assert runs["gradient_clip_norm"].isna().tolist() == [True, False]
    assert runs["grid"].isna().tolist() == [True, False]


def test_polars_reads_the_tables(written):
    predictions = pl.read_parquet(written / "predictions.parquet")
    runs = pl.read_parquet(written / "metrics.parquet")
    assert predictions.schema["label"] == pl.Int64
    assert predictions.schema["loss"] == pl.Float32
    assert predictions.schema["correct"] == pl.Boolean
    assert predictions.schema["probabilities"] == pl.Array(pl.Float32, 3)
    assert predictions["label_name"].cast(pl.String).to_list() == ALL["predictions"]["label_name"].to_pylist()
    assert predictions["probabilities"].to_list() == ALL["predictions"]["probabilities"].to_pylist()
    assert runs.schema["hidden_sizes"] == pl.List(pl.Int64)
    assert runs["hidden_sizes"].to_list() == [[128, 64], [256, 128, 64]]
    assert runs["train_limit"].to_list() == [None, 100]


def test_the_file_is_zstd_with_dictionaries_for_names_and_none_for_floats():
    file = pq.ParquetFile(io.BytesIO(tables.to_parquet_bytes(ALL["predictions"])))
    group = file.metadata.row_group(0)
    chunks = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert {chunk.compression for chunk in chunks.values()} == {"ZSTD"}
    assert chunks["label_name"].has_dictionary_page
    assert chunks["run"].has_dictionary_page
    assert not chunks["loss"].has_dictionary_page
    assert not chunks["probabilities.list.element"].has_dictionary_page


def encoded_anew(table):
    columns = [
        column.cast(pa.string()).combine_chunks().dictionary_encode() if pa.types.is_dictionary(column.type) else column
        for column in table.columns
    ]
    return pa.Table.from_arrays(columns, schema=table.schema)


@pytest.mark.parametrize("name", tables.TABLES)
def test_equal_content_gives_equal_bytes_however_it_was_put_together(name):
    table = ALL[name]
    backwards = np.arange(len(table))[::-1]
    # Its dictionaries hold the names in the order of the last row to the first, and it comes in two pieces.
    reordered = encoded_anew(table.take(backwards)).take(backwards)
    pieced = pa.concat_tables([reordered.slice(0, 1), reordered.slice(1)])
    assert pieced.column(0).num_chunks > table.column(0).num_chunks
    assert tables.to_parquet_bytes(pieced) == tables.to_parquet_bytes(table)
    assert tables.to_parquet_bytes(tables.read_parquet(tables.to_parquet_bytes(table))) == tables.to_parquet_bytes(
        table
    )


def page_bodies(content):
    """Yields the ranges of the file that pages' contents fill; a page's header is shorter than 100 bytes."""
    group = pq.ParquetFile(io.BytesIO(content)).metadata.row_group(0)
    chunks = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    names = chunks["label_name"]
    yield range(names.dictionary_page_offset + 100, names.data_page_offset)
    floats = chunks["probabilities.list.element"]
    yield range(floats.data_page_offset + 100, floats.data_page_offset + floats.total_compressed_size)


def test_a_flipped_bit_in_a_page_is_detected():
    names = np.array([f"{i * 7919 % 1000:03d}-{i}" for i in range(100)])
    content = tables.to_parquet_bytes(predictions_table(100, label_name=names))
    positions = [position for body in page_bodies(content) for position in body]
    assert len(positions) > 1000
    for position in positions[::5]:
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(DataError, match=r"part 0: not a whole Parquet file \(.*CRC checksum verification failed"):
            tables.read_parquet(bytes(damaged), source="part 0")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_truncated_file_is_no_table(share):
    content = tables.to_parquet_bytes(ALL["metrics"])
    with pytest.raises(DataError) as error:
        tables.read_parquet(content[: int(share * len(content))], source="metrics.parquet")
    assert str(error.value).startswith("metrics.parquet: not a whole Parquet file (")
    assert str(error.value).endswith("): copy it again, or make it again")
    assert "\n" not in str(error.value)


def test_an_open_file_is_read_too(written):
    with pa.OSFile(str(written / "metrics.parquet")) as file:
        assert tables.read_parquet(file).equals(ALL["metrics"])


def test_some_columns_are_read_alone():
    content = tables.to_parquet_bytes(ALL["predictions"])
    read = tables.read_parquet(content, columns=["run", "loss"])
    assert read.equals(ALL["predictions"].select(["run", "loss"]))


def test_a_string_stands_for_the_same_value_in_every_row():
    assert ALL["predictions"]["run"].to_pylist() == ["a"] * 6
    assert ALL["metrics"]["checkpoint_sha256"].to_pylist() == ["ab", "ab"]


def test_a_table_needs_its_columns_exactly():
    with pytest.raises(ValueError) as error:
        tables.make_table("history", {"run": ["a"], "epoc": [1]}, code_version="1")
    assert str(error.value) == (
        "table history: needs its columns exactly; missing ['epoch', 'epoch_seconds', 'examples', 'learning_rate', "
        "'train_accuracy', 'train_loss', 'val_accuracy', 'val_loss'], unknown ['epoc']"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epoch": [5, None]}, "table metrics, column epoch: 1 nulls, where none is allowed"),
        ({"run": [None, "b"]}, "table metrics, column run: 1 nulls, where none is allowed"),
        ({"hidden_sizes": [(1, None), (2,)]}, "table metrics, column hidden_sizes: 1 nulls, where none is allowed"),
        ({"epoch": [5]}, "epoch.*expected length 2 but got length 1"),
        ({"epoch": [5, 1.5]}, r"Float value 1\.50* was truncated"),
        ({"accuracy": ["high", "low"]}, "Could not convert 'high'"),
    ],
)
def test_values_that_break_the_schema_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        metrics_table(**changes)


def test_probabilities_of_another_number_of_classes_are_refused():
    with pytest.raises(ValueError, match="Column 12 named probabilities expected length 6 but got length 8"):
        predictions_table(probabilities=np.ones((6, 4), np.float32))


def test_an_empty_shard_makes_an_empty_table():
    table = predictions_table(0)
    assert len(table) == 0
    assert tables.read_parquet(tables.to_parquet_bytes(table)).equals(table)


def test_the_documentation_is_the_one_that_the_module_prints():
    printed = subprocess.run(
        [sys.executable, "-m", "mnist_ray.results.tables"],
        check=True,
        capture_output=True,
        cwd=Path(__file__).parents[2],
    ).stdout.decode()
    assert printed == tables.tables_markdown()
    documented = Path(__file__).parents[2].joinpath("docs", "tables.md").read_text()
    assert documented == printed, "run `python -m mnist_ray.results.tables > docs/tables.md`"


def test_a_table_of_another_schema_version_is_refused():
    newer = ALL["confusion"].replace_schema_metadata({"table": "confusion", "schema_version": "3"})
    with pytest.raises(
        DataError, match=r"c\.parquet: has schema version 3, this version of mnist-ray reads 2: read it"
    ):
        tables.read_parquet(tables.to_parquet_bytes(newer), source="c.parquet")
