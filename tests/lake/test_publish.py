"""Tables of a lakehouse hold what the committed evaluations hold, once, whatever happened before."""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyiceberg.catalog
import pytest
from deltalake import DeltaTable
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.utils.config import Config

from mnist_ray.cli.main import run_command
from mnist_ray.lake.tables import LAKE_TABLES
from mnist_ray.results import schemas
from mnist_ray.results.columns import STRING, Column, Table
from mnist_ray.storage.storage import open_storage
from tests.results.test_version2 import ARCHIVE, GRID
from tests.results.test_version2 import RUNS as OLD_RUNS
from tests.support.commits import REPOSITORY
from tests.support.doing_lines import without_doing
from tests.support.published import (
    commit_evaluation,
    counts,
    delta_table,
    iceberg_table,
    published_rows,
    rows_in_files,
)

KINDS = ("iceberg", "delta")


@pytest.fixture
def storage(tmp_path: Path) -> str:
    """Evaluations of data sets with 5, 10 and 47 classes."""
    for num_classes in (5, 10, 47):
        commit_evaluation(str(tmp_path / "s"), f"of-{num_classes}-classes", num_classes=num_classes)
    return str(tmp_path / "s")


def publish(kind: str, storage: str, *more: str) -> int:
    return run_command(["publish", "--to", kind, "--storage", storage, *more])


def expected(storage: str) -> dict[str, dict[str, int]]:
    return {table: dict(Counter(rows_in_files(storage, table)["evaluation"].to_pylist())) for table in LAKE_TABLES}


def ordered(rows: pa.Table) -> pa.Table:
    return duckdb.sql("FROM rows ORDER BY ALL").to_arrow_table()


@pytest.mark.parametrize("kind", KINDS)
def test_a_published_table_has_the_values_columns_and_descriptions_of_the_files(kind: str, storage: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path(storage, "evaluations").rglob("*")}
    assert publish(kind, storage) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for table in LAKE_TABLES:
        rows, stored = published_rows(kind, storage, table), rows_in_files(storage, table)
        assert rows.schema.names == schemas.TABLES[table].names
        assert ordered(rows).to_pylist() == stored.to_pylist()
    described = "cross-entropy: negative logarithm of the true class's probability; unit: nats"
    if kind == "iceberg":
        table = iceberg_table(storage, "predictions")
        assert table.schema().find_field("loss").doc == described
        assert [field.name for field in table.spec().fields] == ["evaluation"]
        assert table.properties["comment"] == "A row is a run × an example."
    else:
        fields = {field.name: field for field in delta_table(storage, "predictions").schema().fields}
        assert fields["loss"].metadata == {"comment": described}


def test_duckdb_and_polars_read_what_was_published(storage: str) -> None:
    for kind in KINDS:
        assert publish(kind, storage) == 0
    tables = {table: iceberg_table(storage, table) for table in ("predictions", "metrics")}
    connection = tables["predictions"].scan().to_duckdb("predictions")
    tables["metrics"].scan().to_duckdb("metrics", connection)
    join = "SELECT count(*) FROM predictions JOIN metrics USING (evaluation, run)"
    assert connection.execute(join).fetchall() == [(240,)]
    for table in LAKE_TABLES:
        stored = rows_in_files(storage, table).to_pylist()
        files = [task.file.file_path for task in iceberg_table(storage, table).scan().plan_files()]
        assert duckdb.sql(f"FROM read_parquet({files}) ORDER BY ALL").to_arrow_table().to_pylist() == stored
        data = delta_table(storage, table).to_pyarrow_dataset()
        assert duckdb.from_arrow(data).order("ALL").to_arrow_table().to_pylist() == stored
        assert pl.scan_delta(f"{storage}/lake/delta/{table}").collect().height == len(stored)
    # Without the files of the others.
    one = iceberg_table(storage, "predictions").scan(row_filter="evaluation = 'of-5-classes'")
    assert len(list(one.plan_files())) == 2
    assert one.to_arrow().num_rows == 80
    lazy = pl.scan_delta(f"{storage}/lake/delta/predictions").filter(pl.col("evaluation") == "of-5-classes")
    assert lazy.collect().height == 80


@pytest.mark.parametrize("kind", KINDS)
def test_publishing_again_adds_only_what_is_new_and_removes_what_is_gone(
    kind: str, storage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish(kind, storage) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(": evaluations: 3 added")
    whole = expected(storage)
    assert counts(kind, storage) == whole
    assert publish(kind, storage) == 0
    assert capsys.readouterr().out.endswith(": evaluations: 3 kept\n")
    assert counts(kind, storage) == whole
    shutil.rmtree(f"{storage}/evaluations/of-5-classes")
    # The same name for other answers, so other files.
    shutil.rmtree(f"{storage}/evaluations/of-10-classes")
    commit_evaluation(storage, "of-10-classes", num_classes=10, num_examples=60, seed=1)
    commit_evaluation(storage, "new")
    assert publish(kind, storage) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines[:-1]) == ["added new", "removed of-5-classes", "replaced of-10-classes"]
    assert lines[-1].endswith(": evaluations: 1 added, 1 replaced, 1 removed, 1 kept")
    assert counts(kind, storage) == expected(storage)
    assert (
        ordered(published_rows(kind, storage, "metrics")).to_pylist() == rows_in_files(storage, "metrics").to_pylist()
    )


# Ends its own process before or after a commit of a table.
KILLED = """
import os, signal, sys
import deltalake, deltalake.transaction
from pyiceberg.catalog.sql import SqlCatalog
from mnist_ray.cli.main import run_command

kind, storage, when, place = sys.argv[1:]
calls = 0

def killing(function):
    def call(*arguments, **more):
        global calls
        calls += 1
        if when == "before" and calls == int(place):
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **more)
        if when == "after" and calls == int(place):
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call

SqlCatalog.commit_table = killing(SqlCatalog.commit_table)
deltalake.DeltaTable.create_write_transaction = killing(deltalake.DeltaTable.create_write_transaction)
deltalake.transaction.create_table_with_add_actions = killing(deltalake.transaction.create_table_with_add_actions)
run_command(["publish", "--to", kind, "--storage", storage])
"""


def publish_killed(kind: str, storage: str, when: str, place: str) -> None:
    child = subprocess.run(
        [sys.executable, "-c", KILLED, kind, storage, when, place], cwd=REPOSITORY, timeout=120, check=False
    )
    assert child.returncode == -signal.SIGKILL


@pytest.mark.fault
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["iceberg", pytest.param("delta", marks=pytest.mark.series)])
def test_a_killed_publication_goes_on_and_doubles_nothing(kind: str, storage: str) -> None:
    for when, place in (("before", "1"), ("after", "4"), ("before", "7")):
        publish_killed(kind, storage, when, place)
    assert publish(kind, storage) == 0
    assert counts(kind, storage) == expected(storage)
    # And while it removes.
    shutil.rmtree(f"{storage}/evaluations/of-10-classes")
    publish_killed(kind, storage, "after", "2")
    assert publish(kind, storage) == 0
    assert counts(kind, storage) == expected(storage)


@pytest.mark.parametrize("kind", KINDS)
def test_an_addition_is_refused_after_another_programs(
    kind: str, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert publish(kind, storage) == 0
    commit_evaluation(storage, "new")
    owner, name = (SqlCatalog, "commit_table") if kind == "iceberg" else (DeltaTable, "create_write_transaction")
    commit = getattr(owner, name)

    def second(*arguments, **more):
        monkeypatch.setattr(owner, name, commit)
        assert publish(kind, storage) == 0
        return commit(*arguments, **more)

    monkeypatch.setattr(owner, name, second)
    assert publish(kind, storage) == 6
    assert counts(kind, storage) == expected(storage)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_publications_at_once_double_nothing(kind: str, storage: str) -> None:
    command = [sys.executable, "-m", "mnist_ray", "publish", "--to", kind, "--storage", storage]
    racers = [subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    messages = [racer.communicate(timeout=120)[1] for racer in racers]
    assert all(without_doing(message).count("\n") <= 1 for message in messages), messages
    assert {racer.returncode for racer in racers} <= {0, 4, 6}, messages
    assert publish(kind, storage) == 0
    assert counts(kind, storage) == expected(storage)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_size_is_refused_and_nothing_of_its_evaluation_published(
    kind: str, storage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish(kind, storage) == 0
    commit_evaluation(storage, "z")
    damaged = Path(storage, "evaluations/z/metrics/part-0.parquet")
    content = damaged.read_bytes()
    damaged.write_bytes(content + b"more")
    before = counts(kind, storage)
    assert publish(kind, storage) == 3
    message = f"{damaged}: not the content that was committed; delete the folder and make it again\n"
    assert without_doing(capsys.readouterr().err) == f"mnist-ray: error: {message}"
    assert counts(kind, storage) == before
    # A file beside them is not named by the manifest.
    damaged.write_bytes(content)
    shutil.copy(damaged, damaged.with_name("part-1.parquet"))
    assert publish(kind, storage) == 0
    assert counts(kind, storage)["metrics"]["z"] == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_of_a_later_version_is_added(kind: str, storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert publish(kind, storage) == 0
    old = schemas.TABLES["metrics"]
    note = Column("note", STRING, "", "what somebody wrote", nullable=True)
    monkeypatch.setitem(schemas.TABLES, "metrics", Table("metrics", old.row, (*old.columns, note)))
    commit_evaluation(storage, "later", more={"note": ["written"]})
    assert publish(kind, storage) == 0
    rows = published_rows(kind, storage, "metrics").select(["evaluation", "note"]).to_pylist()
    assert {(row["evaluation"], row["note"]) for row in rows} == {
        *((f"of-{number}-classes", None) for number in (5, 10, 47)),
        ("later", "written"),
    }
    assert counts(kind, storage) == expected(storage)


@pytest.mark.parametrize("kind", KINDS)
def test_evaluations_of_an_older_version_are_named_with_the_command_that_makes_them_again(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    assert publish(kind, str(tmp_path)) == 0
    captured = capsys.readouterr()
    assert captured.out == f"no evaluations in {tmp_path}\n"
    assert sorted(without_doing(captured.err).splitlines()) == [
        f"without evaluation {name!r}: its tables have schema version 2; `mnist-ray evaluate {what}` makes it again"
        for name, what in ((OLD_RUNS, "--run baseline --run dropout"), (GRID, "--grid g"))
    ]
    assert not (tmp_path / "lake").exists()
    assert run_command(["evaluate", "--grid", "g", "--name", "new", "--no-report", "--storage", str(tmp_path)]) == 0
    assert publish(kind, str(tmp_path)) == 0
    assert counts(kind, str(tmp_path))["predictions"] == {"new": 4 * 355}


def test_a_moved_storage(storage: str, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in KINDS:
        assert publish(kind, storage) == 0
    moved = f"{storage}-moved"
    os.rename(storage, moved)
    capsys.readouterr()
    assert publish("delta", moved) == 0
    assert counts("delta", moved) == expected(moved)
    assert publish("iceberg", moved) == 4
    message = without_doing(capsys.readouterr().err)
    assert message.count("\n") == 1
    assert "if the storage was moved, delete the lake's folder" in message
    shutil.rmtree(f"{moved}/lake/iceberg")
    assert publish("iceberg", moved) == 0
    assert counts("iceberg", moved) == expected(moved)


@pytest.mark.parametrize("kind", KINDS)
def test_a_storage_without_evaluations_stays_as_it_is(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish(kind, str(tmp_path / "none")) == 0
    assert capsys.readouterr().out == f"no evaluations in {tmp_path / 'none'}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "iceberg", "--storage", "s3://bucket/p"], "name one of ~/.pyiceberg.yaml: --catalog NAME"),
        (["--to", "delta", "--storage", "s3://bucket/p"], "`--to iceberg --catalog NAME` takes this one"),
        (["--to", "iceberg", "--catalog", "unknown"], "--catalog 'unknown': URI missing"),
        (["--to", "delta", "--catalog", "c"], "--catalog and --namespace are for --to iceberg"),
    ],
)
def test_what_can_not_be_published_to_is_one_line(
    arguments: list[str], message: str, storage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["publish", "--storage", storage, *arguments]) == 2
    error = without_doing(capsys.readouterr().err)
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("kind", "package"), [("iceberg", "pyiceberg"), ("delta", "deltalake")])
def test_a_missing_package_is_one_line(
    kind: str, package: str, storage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert publish(kind, storage) == 2
    line = f"publish: needs {package}, which is not installed: pip install 'mnist-ray[lake]'"
    assert without_doing(capsys.readouterr().err) == f"mnist-ray: error: {line}\n"


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    """A catalog of a .pyiceberg.yaml, named shared."""
    lines = [f"uri: sqlite:///{tmp_path}/shared.db", f"warehouse: {tmp_path}/warehouse"]
    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        lines.append(f"s3.endpoint: {endpoint}")
    (tmp_path / ".pyiceberg.yaml").write_text("\n    ".join(["catalog:\n  shared:", *lines]))
    monkeypatch.setenv("PYICEBERG_HOME", str(tmp_path))
    # It was read when pyiceberg was imported.
    monkeypatch.setattr(pyiceberg.catalog, "_ENV_CONFIG", Config())
    return load_catalog("shared")


def test_a_named_catalog_holds_one_storage_in_a_namespace(
    storage: str, shared: Catalog, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert publish("iceberg", storage, "--catalog", "shared") == 0
    assert not Path(storage, "lake").exists()
    other = str(tmp_path / "other")
    commit_evaluation(other, "of-5-classes")
    capsys.readouterr()
    assert publish("iceberg", other, "--catalog", "shared") == 6
    assert without_doing(capsys.readouterr().err) == (
        f"mnist-ray: error: catalog shared: mnist_ray.predictions holds the evaluations of {storage}; "
        f"--namespace NAME makes other tables for {other}\n"
    )
    assert publish("iceberg", other, "--catalog", "shared", "--namespace", "others") == 0
    rows = {name: shared.load_table(f"{name}.metrics").scan().to_arrow().num_rows for name in ("mnist_ray", "others")}
    assert rows == {"mnist_ray": 6, "others": 2}


@pytest.mark.s3
def test_evaluations_on_s3_are_published_to_a_named_catalog(
    s3_uri: str, shared: Catalog, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        commit_evaluation(s3_uri, name)
    assert publish("iceberg", s3_uri, "--catalog", "shared") == 0
    assert publish("iceberg", s3_uri, "--catalog", "shared") == 0
    assert capsys.readouterr().out.endswith("iceberg in catalog shared: evaluations: 2 kept\n")
    predictions = shared.load_table("mnist_ray.predictions").scan().to_arrow()
    assert Counter(predictions["evaluation"].to_pylist()) == {"one": 80, "two": 80}
    open_storage(s3_uri).delete_folder("evaluations/one")
    assert publish("iceberg", s3_uri, "--catalog", "shared") == 0
    assert shared.load_table("mnist_ray.metrics").scan().to_arrow()["evaluation"].to_pylist() == ["two", "two"]
