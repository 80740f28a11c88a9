"""What a report must not claim: of a grid that grew, of runs that were stopped, of settings that can't be compared."""

import re
import shutil
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import torch

from mnist_ray.analysis.selection import selection_bias
from mnist_ray.cli.main import run_command
from mnist_ray.config.settings import DATA_SETTINGS, TrainConfig
from mnist_ray.data.datasets import load_examples
from mnist_ray.evaluation.gallery import vote_entropy
from mnist_ray.grids.grid import GridRun
from mnist_ray.report.evaluated_runs import evaluated_runs, share_validation
from mnist_ray.report.page import report_evaluation
from mnist_ray.report.setting_names import group_settings
from mnist_ray.results.columns import column_of
from mnist_ray.results.evaluation_folder import open_evaluation
from mnist_ray.results.grid_folder import GridFolder
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.results.run_progress import RunProgress
from mnist_ray.results.validation import Validation
from mnist_ray.storage.storage import open_storage
from mnist_ray.training.data import prepare_data
from mnist_ray.training.train_stack import train_stack
from tests.support.grid_runs import train_without_ray
from tests.support.report_evaluations import evaluate_runs

pytestmark = pytest.mark.usefixtures("blank_charts")

CPU = torch.device("cpu")


def train(storage: Path, run: str, **settings: Any) -> str:
    config = TrainConfig(**{"dataset": "digits", "hidden_sizes": (16,), "epochs": 1, **settings})
    data = prepare_data(config, load_examples("digits", "train", data_dir=Path("unused")), device=CPU)
    uri = open_storage(str(storage))
    list(train_stack([GridRun(run, config)], data, storage=uri, device=CPU))
    return run


def evaluate_grid_g(storage: Path) -> str:
    return evaluate_runs(str(storage), GridFolder(open_storage(str(storage)), "g").run_names(), grid="g")


def page_of(storage: Path, evaluation: str) -> str:
    return Path(report_evaluation(open_evaluation(open_storage(str(storage)), evaluation)).uri).read_text()


def test_an_evaluation_keeps_its_report_when_its_grid_grows(tmp_path: Path) -> None:
    train_without_ray(str(tmp_path), "smoke", seeds="2", epochs=1)
    evaluation = evaluate_grid_g(tmp_path)
    before = page_of(tmp_path, evaluation)
    folder = tmp_path / "reports" / evaluation
    files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (folder / "plots/grid-of-an-older-version.svg").write_text("")
    # The new level comes first, where the reference of the effects was.
    train_without_ray(str(tmp_path), "smoke", seeds="2", epochs=1, dropout=[0.1, 0, 0.3])
    assert page_of(tmp_path, evaluation) == before
    assert {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files


def test_runs_that_a_scheduler_stopped_are_said_and_are_in_no_heat_map(tmp_path: Path, capsys: Any) -> None:
    stopped: list[str] = []

    def goes_on(progress: RunProgress) -> bool:
        if not stopped:
            stopped.append(progress.run)
        return progress.run not in stopped

    train_without_ray(str(tmp_path), "smoke", seeds="1", epochs=2, goes_on=goes_on)
    evaluation = evaluate_grid_g(tmp_path)
    runs = evaluated_runs(open_evaluation(open_storage(str(tmp_path)), evaluation))
    assert [row["run"] for row in runs if row["was_stopped"]] == stopped
    page = page_of(tmp_path, evaluation)
    said = "Stopped early by the grid's scheduler: 1 of 4 runs, in 1 setting."
    assert said in page.replace("&#39;", "'")
    assert "1 (1 stopped)" in page
    assert "effects: without the run that was stopped early" in page
    assert run_command(["compare", evaluation, "--storage", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert said in shown
    assert "1 (1 stopped)" in shown
    ends = re.search(r"Mean test accuracy by [^:]+: from ([0-9.]+) % to ([0-9.]+) %", page)
    assert ends
    whole = [100 * row["accuracy"] for row in runs if not row["was_stopped"]]
    assert [float(end) for end in ends.groups()] == pytest.approx([min(whole), max(whole)], abs=0.006)


def test_a_run_that_its_own_patience_ended_was_not_stopped(tmp_path: Path) -> None:
    train(tmp_path, "a", epochs=40, learning_rate=0.05, early_stopping_patience=1)
    assert len(RunFolder(open_storage(str(tmp_path)), "a").history()) < 40
    (row,) = evaluated_runs(open_evaluation(open_storage(str(tmp_path)), evaluate_runs(str(tmp_path), ["a"])))
    assert not row["was_stopped"]


def test_settings_that_were_never_compared_are_not_judged(tmp_path: Path, capsys: Any) -> None:
    runs = [train(tmp_path, name, seed=seed, dropout=dropout) for seed, (name, dropout) in
            enumerate((("a", 0.0), ("b", 0.1), ("c", 0.2)))]  # fmt: skip
    evaluation = evaluate_runs(str(tmp_path), runs)
    page = page_of(tmp_path, evaluation)
    assert "No two settings have a seed in common, so none can be compared." in page
    assert "Left out, without a seed in common: 3 pairs:" in page
    assert 'id="pairs"' not in page
    assert run_command(["compare", evaluation, "--storage", str(tmp_path)]) == 0
    rows = [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    best = {row[0]: row[1] for row in rows if row[0].startswith("dropout ") and len(row) > 5}
    assert best == dict.fromkeys(["dropout 0", "dropout 0.1", "dropout 0.2"], "yes")


def test_nothing_is_chosen_among_runs_that_were_validated_on_different_examples(tmp_path: Path) -> None:
    runs = [train(tmp_path, f"r{share}", validation_fraction=share) for share in (0.1, 0.2)]
    page = page_of(tmp_path, evaluate_runs(str(tmp_path), runs))
    assert "the settings were validated on different examples, so validation chooses none of them" in page


def test_the_optimism_of_choosing_counts_the_validation_examples_if_the_runs_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_without_ray(str(tmp_path / "there"), "smoke", seeds="2", epochs=1)
    evaluation = evaluate_grid_g(tmp_path / "there")
    shutil.copytree(tmp_path / "there", tmp_path / "trained_again")
    shutil.copytree(tmp_path / "there/evaluations", tmp_path / "copied/evaluations")
    # The same name, other weights.
    runs = sorted(path.name for path in (tmp_path / "trained_again/runs").iterdir())
    shutil.rmtree(tmp_path / "trained_again/runs" / runs[0])
    train(tmp_path / "trained_again", runs[0])

    def said(storage: str) -> tuple[str, str]:
        for command in ("report", "compare"):
            assert run_command([command, evaluation, "--storage", str(tmp_path / storage)]) == 0
        printed = " ".join(capsys.readouterr().out.split())
        page = (tmp_path / storage / "reports" / evaluation / "report.html").read_text()
        (on_terminal,) = re.findall(r"About ([0-9.]+ points of the validation accuracy come from [^.]*)\.", printed)
        (on_page,) = re.findall(r"about ([0-9.]+ points of the validation accuracy come from [^<]*)<", page)
        assert on_terminal == on_page
        points, _, rest = on_terminal.partition(" ")
        return points, rest.partition("choosing ")[2]

    points, words = said("there")
    assert words == "the best of 4, by the spread of the seeds and of the validation examples"
    storage = open_storage(str(tmp_path / "there"))
    groups = group_settings(evaluated_runs(open_evaluation(storage, evaluation)))
    read = [[RunFolder(storage, row["run"]).best_validation() for row in runs.values()] for runs in groups.values()]
    bits = np.array([[validation.correct for validation in runs if validation] for runs in read])
    assert points == f"{100 * selection_bias(bits):.2f}"
    for storage_name in ("copied", "trained_again"):
        assert said(storage_name)[1] == "the best of 4, by the spread of the seeds"


def test_runs_that_were_validated_on_other_data_share_no_validation() -> None:
    rows = [{"dataset": "idx:here", **dict.fromkeys(map(column_of, DATA_SETTINGS), 1)}] * 2
    correct = np.ones(3, dtype=np.bool_)
    same, other = Validation(correct, ("one", 3)), Validation(correct, ("two", 3))
    assert share_validation(rows, [])
    assert share_validation(rows, [same, same])
    assert not share_validation(rows, [same, other])


def test_a_run_that_repeats_another_is_listed_and_said(tmp_path: Path) -> None:
    runs = [train(tmp_path, "a", seed=0), train(tmp_path, "again", seed=0)]
    page = page_of(tmp_path, evaluate_runs(str(tmp_path), runs))
    for run in runs:
        assert f"<summary><code>{run}</code>" in page
    assert "1 run repeats the settings and seed of another run; the first by name counts." in page.replace("&#39;", "'")


def test_the_entropy_of_the_same_counts_is_the_same_to_the_last_bit() -> None:
    generator = np.random.default_rng(0)
    votes = generator.integers(0, 10, size=(18, 500))
    # The same votes for other classes: every count is another class's.
    renamed = generator.permutation(10)[votes]
    assert np.array_equal(vote_entropy(votes), vote_entropy(renamed))


def test_the_effects_are_those_of_the_levels_that_were_evaluated(tmp_path: Path) -> None:
    train_without_ray(str(tmp_path), "smoke", seeds="2", epochs=1)
    evaluation = evaluate_grid_g(tmp_path)
    train_without_ray(str(tmp_path), "smoke", seeds="2", epochs=1, dropout=[0.1, 0, 0.3])
    report_evaluation(open_evaluation(open_storage(str(tmp_path)), evaluation))
    found = duckdb.sql(
        f"SELECT axis, level, reference_level FROM '{tmp_path}/reports/{evaluation}/effects/part-0.parquet' "
        "WHERE metric = 'accuracy' AND kind = 'main' ORDER BY ALL"
    ).fetchall()
    assert found == [("batch_norm", "true", "false"), ("dropout", "0.3", "0")]
