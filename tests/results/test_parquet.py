import io
from typing import Annotated

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import Field

from mnist_ray.config.settings import TrainConfig
from mnist_ray.errors import DataError
from mnist_ray.results import columns, parquet, schemas
from mnist_ray.setting import Setting
from tests.support.sample_tables import ALL, metrics_table, predictions_table


def test_every_table_has_a_sample_here():
    assert set(ALL) == set(schemas.TABLES)


@pytest.mark.parametrize("name", schemas.TABLES)
def test_a_table_reads_back_equal_with_its_types_nullability_and_metadata(name):
    read = parquet.read_parquet(parquet.to_parquet_bytes(ALL[name]))
    assert read.schema.equals(ALL[name].schema, check_metadata=True)
    assert read.schema.equals(schemas.TABLES[name].schema(code_version="1"), check_metadata=True)
    assert read.equals(ALL[name])


@pytest.fixture
def written(tmp_path):
    for name, table in ALL.items():
        (tmp_path / f"{name}.parquet").write_bytes(parquet.to_parquet_bytes(table))
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
        ("a", "", "mnist", [128, 64], None, None, pytest.approx(2 / 3)),
        ("b", "regularization", "mnist", [256, 128, 64], 1.5, 100, pytest.approx(2 / 3)),
    ]
    assert bins == [(15, 1, 3)]
    assert kinds["run"] == "VARCHAR"
    assert kinds["correct"] == "BOOLEAN"
    assert kinds["label"] == "BIGINT"
    assert kinds["loss"] == "FLOAT"
    assert kinds["probabilities"] == "FLOAT[]"
    assert kinds["evaluation"] == "VARCHAR"


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
    assert runs["grid"].tolist() == ["", "regularization"]
    assert str(runs["evaluated_at"].dtype) == "datetime64[us, UTC]"
    assert runs["trained_at"].isna().tolist() == [False, True]


def test_polars_reads_the_tables(written):
    predictions = pl.read_parquet(written / "predictions.parquet")
    runs = pl.read_parquet(written / "metrics.parquet")
    assert predictions.schema["label"] == pl.Int64
    assert predictions.schema["loss"] == pl.Float32
    assert predictions.schema["correct"] == pl.Boolean
    assert predictions.schema["probabilities"] == pl.List(pl.Float32)
    assert predictions["label_name"].cast(pl.String).to_list() == ALL["predictions"]["label_name"].to_pylist()
    assert predictions["probabilities"].to_list() == ALL["predictions"]["probabilities"].to_pylist()
    assert runs.schema["hidden_sizes"] == pl.List(pl.Int64)
    assert runs["hidden_sizes"].to_list() == [[128, 64], [256, 128, 64]]
    assert runs["train_limit"].to_list() == [None, 100]


def test_the_file_is_zstd_with_dictionaries_for_names_and_none_for_floats():
    file = pq.ParquetFile(io.BytesIO(parquet.to_parquet_bytes(ALL["predictions"])))
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


@pytest.mark.parametrize("name", schemas.TABLES)
def test_equal_content_gives_equal_bytes_however_it_was_put_together(name):
    table = ALL[name]
    backwards = np.arange(len(table))[::-1]
    # Its dictionaries hold the names in the order of the last row to the first, and it comes in two pieces.
    reordered = encoded_anew(table.take(backwards)).take(backwards)
    pieced = pa.concat_tables([reordered.slice(0, 1), reordered.slice(1)])
    assert pieced.column(0).num_chunks > table.column(0).num_chunks
    assert parquet.to_parquet_bytes(pieced) == parquet.to_parquet_bytes(table)
    assert parquet.to_parquet_bytes(parquet.read_parquet(parquet.to_parquet_bytes(table))) == parquet.to_parquet_bytes(
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
    content = parquet.to_parquet_bytes(predictions_table(100, label_name=names))
    positions = [position for body in page_bodies(content) for position in body]
    assert len(positions) > 1000
    for position in positions[::5]:
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        with pytest.raises(DataError, match=r"part 0: not a whole Parquet file \(.*CRC checksum verification failed"):
            parquet.read_parquet(bytes(damaged), source="part 0")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_truncated_file_is_no_table(share):
    content = parquet.to_parquet_bytes(ALL["metrics"])
    with pytest.raises(DataError) as error:
        parquet.read_parquet(content[: int(share * len(content))], source="metrics.parquet")
    assert str(error.value).startswith("metrics.parquet: not a whole Parquet file (")
    assert str(error.value).endswith("): copy it again, or make it again")
    assert "\n" not in str(error.value)


def test_an_open_file_is_read_too(written):
    with pa.OSFile(str(written / "metrics.parquet")) as file:
        assert parquet.read_parquet(file).equals(ALL["metrics"])


def test_some_columns_are_read_alone():
    content = parquet.to_parquet_bytes(ALL["predictions"])
    read = parquet.read_parquet(content, columns=["run", "loss"])
    assert read.equals(ALL["predictions"].select(["run", "loss"]))


def test_a_string_stands_for_the_same_value_in_every_row():
    assert ALL["predictions"]["run"].to_pylist() == ["a"] * 6
    assert ALL["metrics"]["checkpoint_sha256"].to_pylist() == ["ab", "ab"]


def test_a_table_needs_its_columns_exactly():
    with pytest.raises(ValueError) as error:
        parquet.make_table("history", {"run": ["a"], "epoc": [1]}, code_version="1")
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


def test_probabilities_of_another_number_of_examples_are_refused():
    with pytest.raises(ValueError, match="Column 13 named probabilities expected length 6 but got length 5"):
        predictions_table(probabilities=np.ones((5, 3), np.float32))


def test_an_empty_shard_makes_an_empty_table():
    table = predictions_table(0)
    assert len(table) == 0
    assert parquet.read_parquet(parquet.to_parquet_bytes(table)).equals(table)


def test_a_table_of_another_schema_version_is_refused():
    newer = ALL["confusion"].replace_schema_metadata({"table": "confusion", "schema_version": "4"})
    with pytest.raises(
        DataError, match=r"c\.parquet: has schema version 4, this version of mnist-ray reads 2 and 3: read it"
    ):
        parquet.read_parquet(parquet.to_parquet_bytes(newer), source="c.parquet")


def test_a_nullable_column_that_an_older_table_lacks_is_read_as_nulls():
    table = ALL["runs"]
    read = parquet.read_parquet(parquet.to_parquet_bytes(table.drop_columns(["reason", "best_epoch"])))
    assert read.schema.equals(table.schema)
    assert read["reason"].to_pylist() == read["best_epoch"].to_pylist() == [None, None]
    assert read.drop_columns(["reason", "best_epoch"]).equals(table.drop_columns(["reason", "best_epoch"]))


def test_a_nullable_column_that_an_older_table_lacks_is_read_alone_too():
    content = parquet.to_parquet_bytes(ALL["runs"].drop_columns(["reason"]))
    assert parquet.read_parquet(content, columns=["reason"]).to_pydict() == {"reason": [None, None]}
    (batch,) = parquet.read_batches(content, source="runs.parquet", columns=["run", "reason"])
    assert batch.to_pydict() == {"run": ["a", "b"], "reason": [None, None]}


def test_a_column_that_a_newer_table_has_is_left_out():
    newer = ALL["confusion"].add_column(0, "share", pa.array([0.5] * 9))
    assert parquet.read_parquet(parquet.to_parquet_bytes(newer)).equals(ALL["confusion"])
    (batch,) = parquet.read_batches(parquet.to_parquet_bytes(newer), source="c.parquet", columns=["count"])
    assert batch.schema.names == ["count"]


def test_the_columns_may_stand_in_another_order():
    table = ALL["history"]
    assert parquet.read_parquet(parquet.to_parquet_bytes(table.select(table.schema.names[::-1]))).equals(table)


ADVICE = ": read it with the version that wrote it, or make it again"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda table: table.drop_columns(["count"]),
            "lacks the column count, which this version of mnist-ray needs",
        ),
        (
            lambda table: table.drop_columns(["run", "label"]),
            "lacks the column run, which this version of mnist-ray needs",
        ),
        (
            lambda table: table.set_column(9, "count", table["count"].cast(pa.float64())),
            "its column count is double, this version of mnist-ray reads int64",
        ),
        (
            lambda table: table.set_column(9, "count", pa.array([[1]] * 9)),
            "its column count is list<element: int64>, this version of mnist-ray reads int64",
        ),
        (
            lambda table: table.set_column(9, "count", pa.array([None, *range(8)])),
            "its column count has nulls, which this version of mnist-ray can't read",
        ),
        (
            lambda table: table.replace_schema_metadata({"table": "confusions", "schema_version": "3"}),
            "holds the table 'confusions', which this version of mnist-ray lacks",
        ),
        (
            lambda table: table.replace_schema_metadata({"table": "confusion"}),
            "has schema version none, this version of mnist-ray reads 2 and 3",
        ),
    ],
)
def test_a_table_that_can_not_be_read_as_it_was_meant_is_refused(change, reason):
    content = parquet.to_parquet_bytes(change(ALL["confusion"]))
    for read in (
        lambda: parquet.read_parquet(content, source="c.parquet"),
        lambda: list(parquet.read_batches(content, source="c.parquet", columns=["count"])),
    ):
        with pytest.raises(DataError) as caught:
            read()
        assert str(caught.value) == f"c.parquet: {reason}{ADVICE}"


def test_probabilities_are_read_as_lists_of_float32_and_no_others():
    assert parquet.read_parquet(parquet.to_parquet_bytes(ALL["predictions"]))["probabilities"].type == columns.FLOAT32S
    place = ALL["predictions"].schema.get_field_index("probabilities")
    doubles = ALL["predictions"]["probabilities"].cast(columns.list_of(pa.float64()))
    with pytest.raises(DataError, match=r"its column probabilities is list<element: double not null>"):
        parquet.read_parquet(parquet.to_parquet_bytes(ALL["predictions"].set_column(place, "probabilities", doubles)))


def test_the_column_of_a_later_setting_holds_its_default_in_an_older_table(monkeypatch):
    grown = columns.setting_columns(Grown)[-3:]
    assert [(column.name, column.is_required, column.absent) for column in grown] == [
        ("later", False, 0.25),
        ("later_or_none", False, 7),
        ("of_old", True, None),
    ]
    table = schemas.TABLES["runs"]
    monkeypatch.setitem(schemas.TABLES, "runs", columns.Table("runs", table.row, (*table.columns, *grown[:2])))
    read = parquet.read_parquet(parquet.to_parquet_bytes(ALL["runs"]))
    assert read.select(["later", "later_or_none"]).to_pydict() == {"later": [0.25, 0.25], "later_or_none": [7, 7]}
    monkeypatch.setitem(schemas.TABLES, "runs", columns.Table("runs", table.row, (*table.columns, *grown)))
    with pytest.raises(DataError, match="lacks the column of_old"):
        parquet.read_parquet(parquet.to_parquet_bytes(ALL["runs"]))


class Grown(TrainConfig):
    later: Annotated[float, Setting(is_later=True)] = Field(0.25, description="a later setting")
    later_or_none: Annotated[int | None, Setting(is_later=True)] = Field(7, description="another")
    of_old: float = Field(0.25, description="a setting that every stored table has")
