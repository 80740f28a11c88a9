"""Tables of many evaluations are one table: of data sets with 5, 10 and 47 classes, and of both schema versions."""

import tarfile
from glob import glob
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_digits

from mnist_ray.cli.main import run_command
from mnist_ray.results.schemas import EVALUATION_TABLES
from tests.results.test_version2 import ARCHIVE
from tests.support.idx_files import write_pair

CLASSES = (5, 10, 47)
NUM_TEST = 200


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run for each of three data sets, each evaluated on its own test images, beside a storage of version 2."""
    folder = tmp_path_factory.mktemp("unions")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    # Real digits: with 47 classes the label has no meaning, but each class has images.
    images = np.repeat(np.repeat((load_digits().images * 15).astype(np.uint8), 3, axis=1), 3, axis=2)
    for num_classes in CLASSES:
        labels = [number % num_classes for number in range(len(images))]
        place = folder / f"set-{num_classes}"
        write_pair(place, "train", images[NUM_TEST:], labels[NUM_TEST:])
        write_pair(place, "t10k", images[:NUM_TEST], labels[:NUM_TEST])
        name, at = f"of-{num_classes}", ["--storage", str(folder)]
        train = ["train", "--dataset", f"idx:{place}", "--set", "hidden_sizes=8", "--epochs", "1", "--name", name]
        assert run_command([*train, *at]) == 0
        assert run_command(["evaluate", "--run", name, "--no-report", "--name", name, *at]) == 0
    return folder


def files(storage: Path, table: str) -> list[str]:
    return sorted(glob(f"{storage}/evaluations/*/{table}/*.parquet"))


def old_files(storage: Path, table: str) -> list[str]:
    return sorted(glob(f"{storage}/evaluations/*/{table}*.parquet"))


EXPECTED = {f"of-{num_classes}": (NUM_TEST, num_classes) for num_classes in CLASSES}


def test_duckdb_unites_them(storage: Path) -> None:
    pattern = f"'{storage}/evaluations/*/predictions/*.parquet'"
    sql = f"SELECT evaluation, count(*), max(len(probabilities)) FROM {pattern} GROUP BY evaluation"
    assert {name: tuple(rest) for name, *rest in duckdb.sql(sql).fetchall()} == EXPECTED
    for table in EVALUATION_TABLES:
        rows = duckdb.sql(
            f"SELECT count(DISTINCT evaluation) FROM '{storage}/evaluations/*/{table}/*.parquet'"
        ).fetchall()
        assert rows == [(3,)], table
    # Version 2 has neither the column nor the folders; DuckDB takes its lists of a fixed size as lists.
    both = [*files(storage, "predictions"), *old_files(storage, "predictions")]
    sql = f"SELECT evaluation, count(*) FROM read_parquet({both}, union_by_name=true) GROUP BY evaluation"
    assert dict(duckdb.sql(sql).fetchall()) == {**{name: n for name, (n, _) in EXPECTED.items()}, None: 6 * 355}


def test_polars_unites_them(storage: Path) -> None:
    read = pl.scan_parquet(f"{storage}/evaluations/*/predictions/*.parquet")
    grouped = (
        read.group_by("evaluation").agg(pl.len(), pl.col("probabilities").list.len().max().alias("classes")).collect()
    )
    assert {str(name): (n, classes) for name, n, classes in grouped.iter_rows()} == EXPECTED
    for table in EVALUATION_TABLES:
        assert pl.read_parquet(files(storage, table))["evaluation"].n_unique() == 3, table
    old = [
        pl.read_parquet(path).with_columns(pl.col("probabilities").arr.to_list())
        for path in old_files(storage, "predictions")
    ]
    united = pl.concat([read.collect(), *old], how="diagonal_relaxed")
    assert len(united) == 3 * NUM_TEST + 6 * 355


def test_pandas_and_pyarrow_unite_them(storage: Path) -> None:
    # pandas reads several files as pyarrow's data set.
    read = pd.read_parquet(files(storage, "predictions"))
    assert {
        name: (len(rows), len(rows["probabilities"].iloc[0]))
        for name, rows in read.groupby("evaluation", observed=True)
    } == EXPECTED
    for table in EVALUATION_TABLES:
        whole = ds.dataset(files(storage, table)).to_table()
        assert whole["evaluation"].unique().to_pylist() == sorted(EXPECTED), table
    old = [pd.read_parquet(path) for path in old_files(storage, "predictions")]
    assert len(pd.concat([read, *old])) == 3 * NUM_TEST + 6 * 355
    schema = ds.dataset(files(storage, "predictions")).schema
    united = ds.dataset(
        [ds.dataset(files(storage, "predictions")), ds.dataset(old_files(storage, "predictions"), schema=schema)]
    )
    assert united.count_rows() == 3 * NUM_TEST + 6 * 355


def test_a_column_that_a_later_version_adds_breaks_no_reader(storage: Path, tmp_path: Path) -> None:
    now, later = files(storage, "metrics")[0], tmp_path / "later.parquet"
    table = pq.read_table(now)
    pq.write_table(table.append_column("new_rate", pa.array([0.5] * len(table))), later)
    paths = [now, str(later)]
    rows = duckdb.sql(f"SELECT count(*), count(new_rate) FROM read_parquet({paths}, union_by_name=true)").fetchall()
    assert rows == [(2, 1)]
    united = pl.scan_parquet(paths, extra_columns="ignore").select(pl.len(), pl.col("accuracy").mean()).collect()
    assert united.row(0)[0] == 2
    assert ds.dataset(paths).to_table(columns=["run", "accuracy"]).num_rows == 2
