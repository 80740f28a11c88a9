"""From a grid's runs to its effects, without Ray: what is printed, and what is stored."""

import json
import re
import shutil
from pathlib import Path

import duckdb
import pytest

from mnist_ray.cli.main import run_command
from mnist_ray.results.grid_folder import GridFolder
from mnist_ray.results.run_progress import RunProgress
from mnist_ray.storage.storage import open_storage
from tests.support.grid_runs import search_without_ray, train_without_ray

pytestmark = pytest.mark.usefixtures("blank_charts")


def evaluation_of(storage: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert (
        run_command(["evaluate", "--grid", "g", "--dataset", "digits", "--storage", storage, "--no-report", "--json"])
        == 0
    )
    return str(json.loads(capsys.readouterr().out)["evaluation"])


def test_the_effects_of_a_grid_are_printed_and_stored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train_without_ray(str(tmp_path), "smoke", seeds="2", epochs=1)
    evaluation = evaluation_of(str(tmp_path), capsys)
    assert run_command(["report", evaluation, "--storage", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"\n *dropout 0.3 +dropout 0 ", printed)
    assert re.search(r"\n *bn +no bn ", printed)
    assert re.search(r"\n *dropout 0.3 x bn ", printed)
    metrics = f"'{tmp_path}/evaluations/{evaluation}/metrics/part-0.parquet'"
    (expected,) = duckdb.sql(
        f"SELECT avg(accuracy) FILTER (batch_norm) - avg(accuracy) FILTER (NOT batch_norm) FROM {metrics}"
    ).fetchall()
    (found,) = duckdb.sql(
        f"SELECT difference FROM '{tmp_path}/reports/{evaluation}/effects/part-0.parquet' "
        "WHERE metric = 'accuracy' AND kind = 'main' AND axis = 'batch_norm'"
    ).fetchall()
    assert found == pytest.approx(expected)


def test_every_line_on_the_terminal_fits_100_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    axes = {"weight_decay": [0.0, 0.000123456], "label_smoothing": [0.0, 0.0123456]}
    train_without_ray(str(tmp_path), "smoke", seeds="2", epochs=1, **axes)
    last = GridFolder(open_storage(str(tmp_path)), "g").run_names()[-1]
    shutil.rmtree(tmp_path / "runs" / last)
    evaluation = evaluation_of(str(tmp_path), capsys)
    for command in ("compare", "report"):
        assert run_command([command, evaluation, "--storage", str(tmp_path)]) == 0
        lines = capsys.readouterr().out.splitlines()
        # A URI can't be broken.
        assert max(len(line) for line in lines if str(tmp_path) not in line) <= 100
        text = " ".join(" ".join(lines).split())
        assert "0.000123456" in text
        assert "0.0123456" in text


def test_runs_that_were_stopped_early_do_not_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stopped = []

    def goes_on(progress: RunProgress) -> bool:
        if not stopped:
            stopped.append(progress.run)
        return progress.run not in stopped

    train_without_ray(str(tmp_path), "smoke", seeds="1", epochs=2, goes_on=goes_on)
    evaluation = evaluation_of(str(tmp_path), capsys)
    assert run_command(["report", evaluation, "--storage", str(tmp_path)]) == 0
    assert "effects: without the run that was stopped early" in capsys.readouterr().out


def test_a_missing_run_leaves_the_effects_of_all_settings_without_its_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_without_ray(str(tmp_path), "smoke", seeds="3", epochs=1)
    last = GridFolder(open_storage(str(tmp_path)), "g").run_names()[-1]
    shutil.rmtree(tmp_path / "runs" / last)
    evaluation = evaluation_of(str(tmp_path), capsys)
    assert run_command(["report", evaluation, "--storage", str(tmp_path)]) == 0
    assert "effects: without seed 2, because not all settings have all seeds\n" in capsys.readouterr().out
    rows = duckdb.sql(
        f"SELECT DISTINCT model, num_settings, num_seeds FROM '{tmp_path}/reports/{evaluation}/effects/part-0.parquet'"
    ).fetchall()
    assert rows == [("factorial", 4, 2)]


def test_the_effects_of_a_search_over_ranges_are_those_of_an_additive_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "dataset": "digits",
        "epochs": 1,
        "hidden_sizes": [16],
        "batch_norm": [False, True],
        "learning_rate": {"loguniform": [1e-4, 1e-2]},
    }
    search_without_ray(str(tmp_path), settings, num_samples=6)
    evaluation = evaluation_of(str(tmp_path), capsys)
    assert run_command(["report", evaluation, "--storage", str(tmp_path)]) == 0
    note = "effects: an additive model without interactions, because a search draws from ranges\n"
    assert note in capsys.readouterr().out
    assert run_command(["compare", evaluation, "--storage", str(tmp_path)]) == 0
    assert note in capsys.readouterr().out
    rows = duckdb.sql(
        "SELECT axis, level, reference_level, model, verdict "
        f"FROM '{tmp_path}/reports/{evaluation}/effects/part-0.parquet' WHERE metric = 'accuracy' ORDER BY axis"
    ).fetchall()
    assert rows == [
        ("batch_norm", "true", "false", "additive", "unresolved"),
        ("learning_rate", "0.01", "0.0001", "additive", "unresolved"),
    ]


def test_an_evaluation_without_its_grid_is_reported_without_effects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_without_ray(str(tmp_path / "there"), "smoke", seeds="1", epochs=1)
    evaluation = evaluation_of(str(tmp_path / "there"), capsys)
    shutil.copytree(tmp_path / "there/evaluations", tmp_path / "here/evaluations")
    assert run_command(["report", evaluation, "--storage", str(tmp_path / "here")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"effects: grid 'g', which defines the axes, is not in {tmp_path}/here" in shown
    assert (tmp_path / "here/reports" / evaluation / "report.html").is_file()
