"""SQL on committed evaluations: what is there, what is refused, and what is printed."""

import base64
import csv
import hashlib
import io
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from mnist_ray.cli.main import run_command
from mnist_ray.errors import ConfigError, DataError
from mnist_ray.report.findings import find
from mnist_ray.results.evaluation_folder import open_evaluation
from mnist_ray.results.schemas import EVALUATION_TABLES
from mnist_ray.storage.storage import open_storage
from tests.support.doing_lines import without_doing
from tests.support.queried import QUERIES, ROOT, Evaluated


def test_only_the_files_that_the_manifest_names_are_read(evaluated: Evaluated, tmp_path: Path) -> None:
    copy = Evaluated(str(tmp_path), evaluated.name)
    source = Path(evaluated.storage) / "evaluations" / evaluated.name
    folder = tmp_path / "evaluations" / evaluated.name
    folder.mkdir(parents=True)
    shutil.copytree(source, folder, dirs_exist_ok=True)
    (folder / "predictions/part-00004.parquet").write_bytes((folder / "predictions/part-00000.parquet").read_bytes())
    (folder / "metrics/extra.parquet").write_bytes((folder / "metrics/part-0.parquet").read_bytes())
    assert copy.query("SELECT count(*) FROM predictions").iloc[0, 0] == 16 * 355
    assert copy.query("SELECT count(*) FROM metrics").iloc[0, 0] == 16
    assert set(copy.query("SHOW TABLES")["name"]) == {*EVALUATION_TABLES, "runs", "grids"}


def test_effects_comparisons_and_runs_are_there_if_they_were_made(
    evaluated: Evaluated, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(evaluated.query("SHOW TABLES")["name"])
    assert before == {*EVALUATION_TABLES, "runs", "grids"}
    with pytest.raises(ConfigError, match=r"effects does not exist.*; mnist-ray report EVALUATION stores"):
        evaluated.query("FROM effects")
    effects = find(open_evaluation(open_storage(evaluated.storage), evaluated.name)).grid.effects
    folder = Path(evaluated.storage) / "reports" / evaluated.name
    try:
        assert evaluated.query("SELECT count(*) FROM effects").iloc[0, 0] == len(effects) > 0
        # Two metrics of all pairs of eight settings.
        assert evaluated.query("SELECT count(*) FROM comparisons").iloc[0, 0] == 2 * 28
        # A report of a version with other columns.
        other = pq.read_table(folder / "comparisons/part-0.parquet").drop_columns(["margin"])
        pq.write_table(other, folder / "comparisons/part-0.parquet")
        assert evaluated.query("SELECT count(*) FROM comparisons").iloc[0, 0] == 2 * 28
        pq.write_table(other.drop_columns(["verdict"]), folder / "comparisons/part-0.parquet")
        assert "comparisons" not in set(evaluated.query("SHOW TABLES")["name"])
        assert "query: without comparisons: " in capsys.readouterr().err
    finally:
        for name in ("effects", "comparisons"):
            (folder / f"{name}/part-0.parquet").unlink()


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM read_text('/etc/passwd')",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_parquet('{folder}/metrics/part-0.parquet')",
        "SELECT * FROM glob('/etc/*')",
        "COPY metrics TO '{out}/x.csv'",
        "EXPORT DATABASE '{out}/x'",
        "ATTACH '{out}/x.db' AS other",
        "INSTALL httpfs",
        "LOAD '{out}/x.duckdb_extension'",
        "SET enable_external_access = true",
        "SET temp_directory = '{out}'",
        # DuckDB reads the variables of the calling Python code, unless it is told not to.
        "SELECT * FROM manifest",
        "SELECT * FROM content",
    ],
)
def test_a_statement_reaches_no_other_file(sql: str, evaluated: Evaluated, tmp_path: Path) -> None:
    folder = Path(evaluated.storage) / "evaluations" / evaluated.name
    statement = sql.format(folder=folder, out=tmp_path)
    with pytest.raises(ConfigError, match=r"^SQL: [^\n]+$"):
        evaluated.query(statement)
    assert list(tmp_path.iterdir()) == []
    assert hashlib.sha256((folder / "metrics/part-0.parquet").read_bytes()).hexdigest() == next(
        file["sha256"]
        for file in json.loads((folder / "_manifest.json").read_text())["files"]
        if file["name"] == "metrics/part-0.parquet"
    )


@pytest.fixture
def damaged(evaluated: Evaluated) -> Iterator[Path]:
    path = Path(evaluated.storage) / "evaluations" / evaluated.name / "predictions/part-00001.parquet"
    content = path.read_bytes()
    yield path
    path.write_bytes(content)


def test_a_damaged_file_is_a_data_error_and_no_error_of_the_sql(evaluated: Evaluated, damaged: Path) -> None:
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(DataError, match=r"predictions/part-00001\.parquet: not the content that was committed"):
        evaluated.query("SELECT sum(loss), sum(list_sum(probabilities)) FROM predictions")
    damaged.write_bytes(content[:1000])
    with pytest.raises(DataError, match=r"predictions/part-00001\.parquet: not the content that was committed"):
        evaluated.query("SELECT sum(loss) FROM predictions")
    # What a statement does not need is not read.
    assert len(evaluated.query("SELECT * FROM metrics")) == 16


def line_of(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    line = without_doing(captured.err)
    assert line.count("\n") == 1, captured.err
    return line.strip()


@pytest.mark.parametrize(
    ("sql", "more", "message"),
    [
        ("SELEC 1", [], "SQL: Parser Error: syntax error at or near"),
        ("SELECT accurracy FROM metrics", [], 'SQL: Binder Error: Referenced column "accurracy" not found'),
        ("SELECT * FROM metric", [], "SQL: Catalog Error: Table with name metric does not exist!"),
        ("SELECT 'a'::INT", [], "SQL: Conversion Error:"),
        ("", [], "SQL: there is no statement; try 'SELECT run, accuracy FROM metrics'"),
        ("SELECT 1", ["--json", "--csv"], "--json and --csv don't go together"),
        ("SELECT 1 AS a, 2 AS a", ["--json"], "SQL: the column 'a' occurs twice"),
    ],
)
def test_a_mistake_in_the_sql_is_one_line_and_ends_with_2(
    sql: str, more: list[str], message: str, evaluated: Evaluated, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["query", sql, "--evaluation", evaluated.name, "--storage", evaluated.storage, *more]) == 2
    assert message in line_of(capsys)


def test_an_evaluation_that_is_unknown_or_not_committed_ends_with_3(
    evaluated: Evaluated, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["SELECT 1", "--storage", evaluated.storage]
    assert run_command(["query", *arguments, "--evaluation", "nothing"]) == 3
    expected = (
        f"mnist-ray: error: evaluation 'nothing': not in {evaluated.storage}; `mnist-ray evaluations` lists what is"
    )
    assert line_of(capsys) == expected
    folder = tmp_path / "evaluations" / "half"
    (folder / "metrics").mkdir(parents=True)
    (folder / "metrics/part-0.parquet").write_bytes(b"")
    assert run_command(["query", "SELECT 1", "--evaluation", "half", "--storage", str(tmp_path)]) == 3
    assert "evaluation 'half': not in" in line_of(capsys)


def test_without_duckdb_the_message_says_what_to_install(
    evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    assert run_command(["query", "SELECT 1", "--evaluation", evaluated.name, "--storage", evaluated.storage]) == 2
    assert line_of(capsys) == (
        "mnist-ray: error: query: needs DuckDB, which is not installed: pip install 'mnist-ray[sql]'"
    )


def printed(evaluated: Evaluated, capsys: pytest.CaptureFixture[str], sql: str, *more: str) -> str:
    assert run_command(["query", sql, "--evaluation", evaluated.name, "--storage", evaluated.storage, *more]) == 0
    captured = capsys.readouterr()
    assert without_doing(captured.err) == ""
    return captured.out


def test_a_result_is_printed_as_table_json_or_csv(evaluated: Evaluated, capsys: pytest.CaptureFixture[str]) -> None:
    sql = (
        "SELECT 'a,b' AS text, 1e-6::DOUBLE AS small, 1.5 AS exact, NULL AS missing, 'nan'::DOUBLE AS none, "
        "[0.5, 0.25]::FLOAT[2] AS both, DATE '2024-02-29' AS day, true AS yes"
    )
    table = printed(evaluated, capsys, sql)
    lines = [line.split() for line in table.splitlines() if line.strip()]
    assert lines[0] == ["text", "small", "exact", "missing", "none", "both", "day", "yes"]
    assert lines[-1] == ["a,b", "1e-06", "1.5", "-", "nan", "[0.5,", "0.25]", "2024-02-29", "True"]
    expected = {
        "text": "a,b", "small": 1e-6, "exact": 1.5, "missing": None, "none": None, "both": [0.5, 0.25],
        "day": "2024-02-29", "yes": True,
    }  # fmt: skip
    assert json.loads(printed(evaluated, capsys, sql, "--json")) == [expected]
    rows = list(csv.DictReader(io.StringIO(printed(evaluated, capsys, sql, "--csv"))))
    assert rows == [
        {"text": "a,b", "small": "1e-06", "exact": "1.5", "missing": "", "none": "", "both": "[0.5, 0.25]",
         "day": "2024-02-29", "yes": "True"}
    ]  # fmt: skip


def test_a_long_result_is_cut_in_the_table_alone(evaluated: Evaluated, capsys: pytest.CaptureFixture[str]) -> None:
    sql = "SELECT run, example_index FROM predictions ORDER BY ALL"
    table = printed(evaluated, capsys, sql)
    assert table.splitlines()[-1] == "the first 100 rows; --csv or --json print all"
    assert len(json.loads(printed(evaluated, capsys, sql, "--json"))) == 16 * 355
    assert len(printed(evaluated, capsys, sql, "--csv").splitlines()) == 1 + 16 * 355
    assert json.loads(printed(evaluated, capsys, f"{sql} LIMIT 0", "--json")) == []


def test_a_filter_on_a_name_finds_its_rows_in_every_part(evaluated: Evaluated) -> None:
    # Each part has dictionaries of its own.
    rows = evaluated.table("predictions").astype({"label_name": str, "run": str})
    run = rows["run"].iloc[0]
    for name in "0123456789":
        sql = f"SELECT count(*), sum(loss) FROM predictions WHERE label_name = '{name}' AND run = '{run}'"
        count, loss = evaluated.query(sql).iloc[0]
        expected = rows[(rows["label_name"] == name) & (rows["run"] == run)]
        assert count == len(expected) > 0
        assert loss == pytest.approx(expected["loss"].astype(float).sum(), rel=1e-6)


def test_the_command_loads_neither_torch_nor_ray(evaluated: Evaluated) -> None:
    code = (
        "import sys; from mnist_ray.cli.main import run_command\n"
        "assert run_command(sys.argv[1:]) == 0\n"
        "assert not {'torch', 'ray', 'boto3'} & set(sys.modules)\n"
    )
    arguments = [
        "query",
        "SELECT count(*) FROM predictions",
        "--evaluation",
        evaluated.name,
        "--storage",
        evaluated.storage,
    ]
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert str(16 * 355) in done.stdout


def test_the_help_of_query_and_export_loads_nothing_heavy() -> None:
    code = (
        "import sys; from mnist_ray.cli.main import run_command\n"
        "assert run_command(['query', '--help']) == run_command(['export', '--help']) == 0\n"
        "assert not {'torch', 'ray', 'pyarrow', 'numpy', 'boto3', 'duckdb', 'onnx'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.s3
def test_queries_of_an_evaluation_on_s3_give_what_the_local_one_gives(evaluated: Evaluated, s3_uri: str) -> None:
    source, target = open_storage(evaluated.storage), open_storage(s3_uri)
    folder = f"evaluations/{evaluated.name}"
    document = source.read_manifest(folder)
    assert document is not None
    pending = target.pending_folder(folder)
    files = [pending.write(file["name"], source.read_committed(folder, file["name"])) for file in document["files"]]
    assert pending.commit(files, {name: value for name, value in document.items() if name not in ("files", "volatile")})
    for entry in [*source.list_files("grids"), *source.list_files("runs")]:
        target.write_bytes(entry.path, source.read_bytes(entry.path))
    target.write_bytes(f"{folder}/predictions/part-00009.parquet", b"not committed")
    remote = Evaluated(s3_uri, evaluated.name)
    for number in (4, 6, 7):
        pd.testing.assert_frame_equal(remote.query(QUERIES[number]), evaluated.query(QUERIES[number]))


def test_bytes_and_decimals_arrive_whole(evaluated: Evaluated, capsys: pytest.CaptureFixture[str]) -> None:
    sql = "SELECT image, 12345678901234567890.12::decimal(30, 2) AS sum FROM images ORDER BY example_index LIMIT 1"
    assert run_command(["query", sql, "--evaluation", evaluated.name, "--storage", evaluated.storage, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert base64.b64decode(row["image"]).startswith(b"\x89PNG")
    assert row["sum"] == "12345678901234567890.12"


def test_a_row_too_wide_for_the_terminal_is_printed_as_a_list(
    evaluated: Evaluated, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mnist_ray.text.tables.console", lambda: Console(width=80))
    assert (
        run_command(
            ["query", "SELECT * FROM metrics LIMIT 2", "--evaluation", evaluated.name, "--storage", evaluated.storage]
        )
        == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.split()[:1] == ["checkpoint_sha256"] for line in lines) == 2
    (accuracy,) = evaluated.query("SELECT accuracy FROM metrics LIMIT 1").to_numpy()[0]
    assert f"{accuracy:.6g}" in [line.split()[-1] for line in lines if line.startswith("accuracy  ")]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_query_whose_output_nobody_reads(evaluated: Evaluated, number: int, code: int) -> None:
    sql = "SELECT a.* FROM predictions a, predictions b"
    command = [
        sys.executable,
        "-m",
        "mnist_ray",
        "query",
        sql,
        "--evaluation",
        evaluated.name,
        "--csv",
        "--storage",
        evaluated.storage,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        # More follows than a pipe holds.
        assert process.stdout.read(10) == b"evaluation"
        process.send_signal(number)
        assert process.wait(30) == code


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGTERM, 143, marks=pytest.mark.series), (signal.SIGINT, 130)]
)
@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM range(10000000) a, range(10000000) b WHERE a.range * b.range % 7 = 3",
        "SELECT p.run FROM predictions p, range(100000000) r ORDER BY hash(r.range)",
        # One call of a function, which DuckDB does not interrupt.
        "SELECT levenshtein(repeat('a', 300000) || range, repeat('b', 300000)) FROM range(2)",
    ],
)
def test_a_signal_ends_a_long_statement(evaluated: Evaluated, sql: str, number: int, code: int) -> None:
    # The line on stderr says that the launcher is past its imports; the statement alone would take hours.
    script = f"""
import sys, threading
from mnist_ray.cli import process
from mnist_ray.report.query import _Connection
given = _Connection.call
def started(*arguments):
    threading.Timer(0.3, lambda: print("started", file=sys.stderr, flush=True)).start()
    return given(*arguments)
_Connection.call = started
process.main(["query", {sql!r}, "--evaluation", {evaluated.name!r}, "--storage", {evaluated.storage!r}])
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        # What the launcher does may come first.
        while process.stderr.readline() != b"started\n":
            assert process.poll() is None
        process.send_signal(number)
        output, errors = process.communicate(timeout=30)
    word = "terminated" if number == signal.SIGTERM else "stopped"
    assert (process.returncode, output) == (code, b"")
    assert without_doing(errors.decode()) == f"mnist-ray: {word}; the same command starts again\n"
