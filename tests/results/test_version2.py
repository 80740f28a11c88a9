"""A storage that the code before schema version 3 made is listed, read, reported and extended."""

import tarfile
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow.parquet as pq
import pytest

from mnist_ray.cli.main import run_command
from mnist_ray.report.query import query_evaluations
from mnist_ray.results.columns import FLOAT32S
from mnist_ray.results.evaluation_folder import (
    EvaluationFolder,
    committed_evaluations,
    find_evaluation,
    open_evaluation,
)
from mnist_ray.results.schemas import EVALUATION_TABLES, TABLES
from mnist_ray.storage.storage import open_storage
from tests.support.doing_lines import without_doing

ARCHIVE = Path(__file__).parents[1] / "storages/version-2.tar.xz"
RUNS, GRID = "digits-test-2runs-81e0506c5987", "digits-test-g-4runs-65e82b01d2d4"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Two runs with their evaluation, and a grid of two settings x two seeds with its own; reports of both."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def folder_of(old: Path, name: str) -> EvaluationFolder:
    return open_evaluation(open_storage(str(old)), name)


def asked(old: Path, sql: str) -> pd.DataFrame:
    storage = open_storage(str(old))
    with query_evaluations(storage, committed_evaluations(storage), sql) as answer:
        return pd.DataFrame(list(answer.rows), columns=list(answer.columns))


@pytest.mark.parametrize("name", [RUNS, GRID])
@pytest.mark.parametrize("table", EVALUATION_TABLES)
def test_a_table_becomes_one_of_this_version_with_the_same_values(old: Path, table: str, name: str) -> None:
    folder = folder_of(old, name)
    read = folder.table(table)
    expected = TABLES[table].schema(code_version="")
    assert read.schema.names == expected.names
    assert read.schema.types == expected.types
    (stored,) = (pq.read_table(old / path) for path in folder.stored_paths(table))
    same = [column for column in stored.column_names if column not in ("grid", "data_sha256", "probabilities")]
    assert read.select(same).to_pylist() == stored.select(same).to_pylist()
    assert set(read["evaluation"].to_pylist()) == {name}
    if table == "predictions":
        assert read["probabilities"].type == FLOAT32S
        assert read["probabilities"].to_pylist() == stored["probabilities"].to_pylist()
    else:
        assert set(read["dataset_id"].to_pylist()) == {folder.manifest["data_sha256"]}


def test_some_columns_are_read_alone_and_in_batches(old: Path) -> None:
    folder = folder_of(old, GRID)
    words = [f"baseline{norm}, train dataset digits, hidden sizes 8, epochs 1" for norm in (", bn", "")]
    assert folder.table("metrics", columns=["setting"]).to_pydict() == {"setting": 2 * words}
    batches = list(folder.batches("predictions", columns=["evaluation", "probabilities"]))
    assert sum(batch.num_rows for batch in batches) == 4 * 355
    assert {batch.schema.field("probabilities").type for batch in batches} == {FLOAT32S}


def test_the_commands_read_it(old: Path, capsys: Any) -> None:
    at = ["--storage", str(old)]
    commands = (["evaluations"], ["runs"], ["grids"], ["report", GRID], ["compare", GRID], ["compare", "digits-test-2"])
    for command in commands:
        assert run_command([*command, *at]) == 0, command
    captured = capsys.readouterr()
    assert without_doing(captured.err) == ""
    assert RUNS in captured.out
    assert (old / "reports" / GRID / "report.html").exists()
    assert (old / "reports" / GRID / "effects/part-0.parquet").exists()


def test_it_is_queried_beside_evaluations_of_this_version(old: Path) -> None:
    counts = (
        "SELECT evaluation, count(*) AS n, min(len(probabilities)) AS classes FROM predictions GROUP BY ALL ORDER BY n"
    )
    before = asked(old, counts)
    assert before.to_dict("list") == {"evaluation": [RUNS, GRID], "n": [2 * 355, 4 * 355], "classes": [10, 10]}
    assert asked(old, "SELECT count(*), count(DISTINCT setting), count(trained_at) FROM metrics").iloc[0].to_list() == [
        6, 3, 0
    ]  # fmt: skip
    # Its report, at the old place.
    assert set(asked(old, "SELECT evaluation FROM comparisons")["evaluation"]) == {GRID, RUNS}
    # Extended: the same runs, made again with this version.
    assert run_command(["evaluate", "--grid", "g", "--name", "new", "--storage", str(old)]) == 0
    assert list(asked(old, counts)["n"]) == [2 * 355, 4 * 355, 4 * 355]
    both = asked(
        old,
        "SELECT count(*) AS n, max(abs(a.loss - b.loss)) AS change "
        "FROM predictions AS a JOIN predictions AS b USING (run, example_index) "
        f"WHERE a.evaluation = '{GRID}' AND b.evaluation = 'new'",
    )
    assert both["n"].iloc[0] == 4 * 355
    assert both["change"].iloc[0] < 1e-5
    assert set(asked(old, "SELECT evaluation FROM effects")["evaluation"]) == {GRID, "new"}
    latest = find_evaluation(open_storage(str(old)), "latest")
    assert latest.name == "new"
    assert latest.earlier_evaluations == [RUNS, GRID]


@pytest.mark.series
def test_a_grid_of_the_old_version_grows(old: Path, capsys: Any) -> None:
    (old / "g.yaml").write_text(
        "hidden_sizes: [[8]]\nbatch_norm: [false, true]\nseed: [0, 1, 2]\nepochs: 1\ndataset: digits\n"
    )
    assert run_command(["tune", "--grid", str(old / "g.yaml"), "--name", "g", "--storage", str(old)]) == 0
    rows = asked(old, "SELECT seed, trained_at IS NULL AS is_old FROM runs WHERE grid = 'g' ORDER BY seed")
    assert rows["is_old"].tolist() == [True] * 4 + [False] * 2
    assert run_command(["evaluate", "--grid", "g", "--storage", str(old)]) == 0
    assert "6 runs" in capsys.readouterr().out


def test_plain_duckdb_reads_both_versions_by_name(old: Path) -> None:
    assert run_command(["evaluate", "--grid", "g", "--name", "new", "--no-report", "--storage", str(old)]) == 0
    files = [f"{old}/evaluations/new/predictions/*.parquet", f"{old}/evaluations/{RUNS}/predictions-*.parquet"]
    sql = f"SELECT coalesce(evaluation, 'old') AS e, count(*) FROM read_parquet({files}, union_by_name=true) GROUP BY e"
    assert dict(duckdb.sql(sql).fetchall()) == {"new": 4 * 355, "old": 2 * 355}
