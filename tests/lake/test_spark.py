"""Spark reads the Parquet files of many evaluations by a pattern, as docs/queries.md says."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from mnist_ray.cli.main import run_command
from mnist_ray.results.schemas import EVALUATION_TABLES
from tests.support.published import commit_evaluation, iceberg_table, rows_in_files

pytestmark = [pytest.mark.spark, pytest.mark.slow]
CLASSES = (5, 10, 47)
# Each run's latest evaluation on a split, as in docs/queries.md; Spark has no QUALIFY.
BY_SETTING = """
SELECT setting, round(avg(accuracy), 9) AS accuracy, count(*) AS runs FROM (
  SELECT *, row_number() OVER (PARTITION BY run, dataset_id ORDER BY evaluated_at DESC NULLS LAST, evaluation) AS place
  FROM metrics
) AS numbered
WHERE place = 1 GROUP BY setting ORDER BY setting
"""


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Evaluations of three data sets, and a second one of the runs on the first."""
    uri = str(tmp_path_factory.mktemp("spark") / "s")
    for num_classes in CLASSES:
        commit_evaluation(uri, f"of-{num_classes}", num_classes=num_classes, dataset=f"set{num_classes}")
    commit_evaluation(uri, "of-5-again", num_classes=5, dataset="set5")
    return uri


@pytest.fixture(scope="module")
def spark(storage: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from pyspark.sql import SparkSession

    folder = tmp_path_factory.mktemp("warehouse")
    builder = SparkSession.builder.master("local[1]").config("spark.sql.warehouse.dir", str(folder))
    quiet = {"spark.ui.enabled": "false", "spark.sql.shuffle.partitions": "1", "spark.driver.host": "127.0.0.1"}
    session = builder.config(map=quiet).getOrCreate()
    for table in EVALUATION_TABLES:
        files = f"{storage}/evaluations/*/{table}"
        session.read.option("mergeSchema", "true").parquet(files).createOrReplaceTempView(table)
    yield session
    session.stop()


def test_tables_of_data_sets_with_different_classes_are_one_table(spark: Any, storage: str) -> None:
    for table in EVALUATION_TABLES:
        assert spark.table(table).count() == rows_in_files(storage, table).num_rows
    sizes = spark.sql("SELECT DISTINCT size(probabilities) AS size FROM predictions ORDER BY size").collect()
    assert [row["size"] for row in sizes] == list(CLASSES)
    assert spark.sql("SELECT sum(size(probabilities)) AS n FROM predictions").first()["n"] == 80 * (5 + 5 + 10 + 47)
    of_spark = spark.sql("SELECT round(sum(loss), 3) AS loss FROM predictions").first()["loss"]
    assert of_spark == pytest.approx(sum(rows_in_files(storage, "predictions")["loss"].to_pylist()), abs=1e-2)


def test_predictions_join_their_metrics_by_evaluation_and_run(spark: Any) -> None:
    join = "SELECT count(*) AS n FROM predictions JOIN metrics USING ({})"
    assert spark.sql(join.format("evaluation, run")).first()["n"] == 4 * 80
    # The key that docs/queries.md warns of.
    assert spark.sql(join.format("run")).first()["n"] == 4 * 4 * 80


def test_an_average_by_setting_counts_each_run_on_each_data_set_once(spark: Any, storage: str) -> None:
    metrics = rows_in_files(storage, "metrics")
    assert metrics.num_rows == 8
    expected = duckdb.sql(BY_SETTING).fetchall()
    assert [tuple(row) for row in spark.sql(BY_SETTING).collect()] == expected
    assert [row[2] for row in expected] == [6]
    per_set = [row for row in metrics.to_pylist() if row["evaluation"] != "of-5-again"]
    assert expected[0][1] == pytest.approx(sum(row["accuracy"] for row in per_set) / 6)


def test_spark_reads_the_files_that_an_iceberg_table_names(spark: Any, storage: str) -> None:
    assert run_command(["publish", "--to", "iceberg", "--storage", storage]) == 0
    files = [task.file.file_path for task in iceberg_table(storage, "confusion").scan().plan_files()]
    assert len(files) == len(list(Path(storage).glob("evaluations/*/confusion/*.parquet")))
    assert spark.read.parquet(*files).count() == rows_in_files(storage, "confusion").num_rows
