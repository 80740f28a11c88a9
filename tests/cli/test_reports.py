"""`mnist-ray compare` on real evaluations of tiny networks."""

import json
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from mnist_ray.analysis.blocks import Scores
from mnist_ray.cli.main import run_command
from mnist_ray.config.settings import GridConfig, TrainConfig
from mnist_ray.config.variants import variant_config
from mnist_ray.errors import ConfigError
from mnist_ray.grids.grid import GridRun, expand
from mnist_ray.report.comparison_report import accuracy_interval
from mnist_ray.report.setting_names import find_setting, group_settings
from mnist_ray.results import parquet
from mnist_ray.results.columns import config_columns, with_own_settings
from mnist_ray.results.grid_folder import GridFolder
from mnist_ray.results.run_progress import RunProgress
from mnist_ray.storage.storage import open_storage
from mnist_ray.training.data import prepare_data
from mnist_ray.training.train_stack import train_stack
from tests.support.doing_lines import without_doing
from tests.support.tiny_digits import tiny_digits

# A patience that is never used leaves the same weights; a learning rate of 1e-9 leaves them at chance.
AXES = {"early_stopping_patience": (None, 50), "learning_rate": (1e-9, 1e-2)}
SMALL = {"dataset": "digits", "hidden_sizes": (16,), "epochs": 4}
BROKEN, BROKEN_TWIN = "lr 1e-9", "lr 1e-9, early stopping patience 50"
GOOD, GOOD_TWIN = "lr 0.01", "lr 0.01, early stopping patience 50"


def train(root: Path, runs: list[GridRun]) -> dict[str, RunProgress]:
    progress: dict[str, RunProgress] = {}
    for run in runs:
        data = prepare_data(run.config, tiny_digits(600), device=torch.device("cpu"))
        storage = open_storage(str(root))
        for rows in train_stack([run], data, storage=storage, device=torch.device("cpu"), goes_on=lambda _: True):
            progress |= {row.run: row for row in rows}
    return progress


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("storage")
    grid = GridConfig(axes=AXES, ranges={}, fixed={"variant": "baseline", **SMALL}, seeds=(0, 1, 2))
    runs = expand(grid, name="g", max_runs=100)
    folder = GridFolder(open_storage(str(root)), "g")
    folder.claim(grid, runs)
    folder.write_runs(runs, train(root, runs))
    train(root, [GridRun(f"{name}-{seed}", variant_config(name, {**SMALL, "seed": seed}))
                 for name, seed in (("baseline", 0), ("dropout", 0), ("dropout_batchnorm", 1))])  # fmt: skip
    return root


def evaluate(root: Path, capsys: pytest.CaptureFixture[str], *what: str) -> str:
    capsys.readouterr()
    assert run_command(["evaluate", *what, "--dataset", "digits", "--storage", str(root), "--no-report", "--json"]) == 0
    found: str = json.loads(capsys.readouterr().out)["evaluation"]
    return found


def compare(capsys: pytest.CaptureFixture[str], root: Path, evaluation: str, *arguments: str) -> dict[str, Any]:
    assert run_command(["compare", evaluation, "--storage", str(root), "--json", *arguments]) == 0
    compared: dict[str, Any] = json.loads(capsys.readouterr().out)
    return compared


def verdicts(compared: dict[str, Any]) -> dict[tuple[str, str], str]:
    rows = compared["comparisons"]
    return {(row["first"], row["second"]): row["verdict"] for row in rows if row["metric"] == "accuracy"}


def test_twins_are_not_told_apart_and_a_broken_setting_is_worse(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = evaluate(root, capsys, "--grid", "g", "--shard-size", "100")
    compared = compare(capsys, root, evaluation)
    assert verdicts(compared) == {
        (BROKEN_TWIN, BROKEN): "unresolved",
        (GOOD, BROKEN): "better",
        (GOOD_TWIN, BROKEN): "better",
        (GOOD, BROKEN_TWIN): "better",
        (GOOD_TWIN, BROKEN_TWIN): "better",
        (GOOD_TWIN, GOOD): "unresolved",
    }
    may_be_best = {row["setting"]: row["may_be_best"] for row in compared["settings"]}
    assert may_be_best == {GOOD: True, GOOD_TWIN: True, BROKEN: False, BROKEN_TWIN: False}
    # Twins differ by nothing, so only the number of examples limits how equal they are.
    assert verdicts(compare(capsys, root, evaluation, "--margin", "5"))[GOOD_TWIN, GOOD] == "equivalent"
    assert compared["selection"]["setting"] in (GOOD, GOOD_TWIN)
    assert compared["selection"]["num_settings"] == 4
    best = next(row for row in compared["settings"] if row["setting"] == GOOD)
    assert compared["selection"]["optimism"] == pytest.approx(best["val_accuracy_mean"] - best["accuracy_mean"])

    compared = compare(capsys, root, evaluation)
    stored = parquet.read_parquet((root / f"reports/{evaluation}/comparisons/part-0.parquet").read_bytes()).to_pylist()
    assert [{name: row[name] for name in compared["comparisons"][0]} for row in stored] == compared["comparisons"]
    assert {(row["evaluation"], row["dataset"], row["split"]) for row in stored} == {(evaluation, "digits", "test")}


def test_the_answer_names_what_helps_and_what_is_not_seen(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = evaluate(root, capsys, "--grid", "g", "--shard-size", "100")
    helps, nothing, best = compare(capsys, root, evaluation)["answer"]
    ((gain,),) = duckdb.sql(
        f"""SELECT avg(accuracy) FILTER (learning_rate > 1e-3) - avg(accuracy) FILTER (learning_rate < 1e-3)
        FROM '{root}/evaluations/{evaluation}/metrics/part-0.parquet'"""
    ).fetchall()
    assert helps.startswith(f"Learning rate 0.01 helps: {100 * gain:+.1f} points (")
    assert nothing.startswith("Early stopping patience: nothing seen, and less than ")
    assert nothing.endswith("; 355 examples are too few to resolve 0.5 points.")
    assert best == f"May be best: {GOOD}; {GOOD_TWIN}. Simplest of them: {GOOD}."


@pytest.mark.parametrize("margin", ["0", "-1", "nan", "101"])
def test_a_margin_that_is_none_is_refused(root: Path, capsys: pytest.CaptureFixture[str], margin: str) -> None:
    assert run_command(["compare", "any", "--margin", margin, "--storage", str(root)]) == 2
    assert without_doing(capsys.readouterr().err).count("\n") == 1


def test_the_means_and_counts_are_those_that_duckdb_finds_in_the_predictions(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = evaluate(root, capsys, "--grid", "g", "--shard-size", "100")
    assert run_command(["compare", evaluation, "--storage", str(root), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["comparisons"]
    rows = [row for row in rows if row["second"] == BROKEN]
    row = next(row for row in rows if (row["first"], row["metric"]) == (GOOD, "accuracy"))
    folder = root / "evaluations" / evaluation
    with duckdb.connect() as connection:
        query = f"""
            with scored as (
                select learning_rate > 1e-3 as good, seed, example_index, correct::int as correct, loss::double as loss
                from '{folder}/predictions/part-*.parquet' join '{folder}/metrics/part-0.parquet' using (run)
                where early_stopping_patience is null
            ), wins as (select sum(if(good, correct, -correct)) as won from scored group by example_index)
            select (select avg(correct) from scored where good), (select avg(loss) from scored where not good),
                   (select count(*) from wins where won > 0), (select count(*) from wins where won < 0),
                   (select count(*) from wins)"""
        expected = connection.execute(query).fetchone()
    loss = next(other for other in rows if other["metric"] == "log_loss" and other["first"] == GOOD)
    names = ("first_right", "second_right", "num_examples")
    stored = [row["first_mean"], loss["second_mean"], *(row[name] for name in names)]
    assert stored == pytest.approx(list(expected))


def test_a_baseline_restricts_what_is_shown_and_judged_and_not_what_is_stored(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = evaluate(root, capsys, "--grid", "g", "--shard-size", "100")
    compared = compare(capsys, root, evaluation, "--baseline", GOOD)
    assert verdicts(compared) == {
        (BROKEN, GOOD): "worse",
        (BROKEN_TWIN, GOOD): "worse",
        (GOOD_TWIN, GOOD): "unresolved",
    }
    assert compared["num_pairs"] == 6
    stored = parquet.read_parquet((root / f"reports/{evaluation}/comparisons/part-0.parquet").read_bytes())
    assert len(stored) == 2 * 6

    assert run_command(["compare", evaluation, "--storage", str(root), "--baseline", GOOD]) == 0
    printed = capsys.readouterr().out
    assert "These 3 pairs are one family; the table comparisons has all 6." in printed
    assert "Chosen by validation from 4 settings: lr 0.01" in printed
    assert f"all pairs: {root}/reports/{evaluation}/comparisons/part-0.parquet" in " ".join(printed.split())


def test_variants_without_a_common_seed_are_left_out_and_one_seed_is_said(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [part for name in ("baseline-0", "dropout-0", "dropout_batchnorm-1") for part in ("--run", name)]
    evaluation = evaluate(root, capsys, *names)
    assert run_command(["compare", evaluation, "--storage", str(root)]) == 0
    printed = capsys.readouterr().out
    assert "Left out, without a seed in common: 2 pairs: dropout_batchnorm / baseline, dropout_batchnorm" in printed
    assert printed.startswith("One seed says nothing about other seeds, so nothing is resolved: use --seeds 5 or more.")
    assert "One seed: the intervals hold jointly, with 95 % confidence, for other examples only." in printed
    assert "Chosen by validation from 3 settings: dropout_batchnorm;" in printed

    # A second look at the same examples.
    again = evaluate(root, capsys, *names[:4])
    assert run_command(["compare", again, "--storage", str(root)]) == 0
    assert "Evaluations in this storage that had read the same examples before: " in capsys.readouterr().out


def test_one_setting_has_nothing_to_compare(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = evaluate(root, capsys, "--run", "dropout-0")
    assert run_command(["compare", evaluation, "--storage", str(root)]) == 0
    assert "One setting: nothing to compare." in capsys.readouterr().out
    assert not (root / "reports" / evaluation).exists()


def test_what_is_not_there_is_one_line_and_its_exit_code(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = evaluate(root, capsys, "--run", "baseline-0", "--run", "dropout-0")
    assert run_command(["compare", "nothing", "--storage", str(root)]) == 3
    assert without_doing(capsys.readouterr().err) == (
        f"mnist-ray: error: evaluation 'nothing': not in {root}; `mnist-ray evaluations` lists what is\n"
    )
    assert run_command(["compare", evaluation, "--baseline", "tuned", "--storage", str(root)]) == 2
    assert without_doing(capsys.readouterr().err) == (
        "mnist-ray: error: --baseline 'tuned': no such setting in the evaluation; give one of 'baseline', 'dropout'\n"
    )


def test_a_damaged_part_file_ends_with_3(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = evaluate(root, capsys, "--run", "baseline-0", "--run", "dropout-0", "--batch-size", "7")
    part = root / "evaluations" / evaluation / "predictions/part-00000.parquet"
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    assert run_command(["compare", evaluation, "--storage", str(root)]) == 3
    assert "not the content that was committed" in capsys.readouterr().err


def test_labels_say_what_varies_within_a_variant() -> None:
    def row(run: str, variant: str, seed: int = 0, **settings: object) -> dict[str, object]:
        columns = config_columns([variant_config(variant, {"seed": seed, **settings})])
        return {"run": run, **{name: values[0] for name, values in columns.items()}}

    variants = [row("a", "tuned"), row("b", "baseline"), row("c", "dropout", 1), row("d", "dropout", 2)]
    assert {label: list(runs) for label, runs in group_settings(variants).items()} == {
        "baseline": [0],
        "dropout": [1, 2],
        "tuned": [0],
    }
    dropout = [row("a", "dropout", dropout=0.5), row("b", "dropout", dropout=0.123456789), row("c", "baseline")]
    assert list(group_settings(dropout)) == ["baseline", "dropout, dropout 0.123457", "dropout, dropout 0.5"]
    assert find_setting(group_settings(dropout), "baseline") == "baseline"
    with pytest.raises(ConfigError) as error:
        find_setting(group_settings(dropout), "dropout")
    assert str(error.value) == (
        "--baseline 'dropout': 2 settings have this variant; give one of 'dropout, dropout 0.123457', "
        "'dropout, dropout 0.5'"
    )
    near = [row("a", "dropout", dropout=0.12345678), row("b", "dropout", dropout=0.12345679)]
    assert list(group_settings(near)) == ["dropout 0.12345678", "dropout 0.12345679"]
    grid = [row("a", "dropout", dropout=0, weight_decay=0), row("b", "dropout"), row("c", "dropout", batch_norm=True)]
    assert list(group_settings(grid)) == ["dropout 0, no bn, wd 0", "dropout 0.3, wd 1e-5", "bn, dropout 0.3, wd 1e-5"]
    # The first by name counts.
    repeated = group_settings([row("b", "dropout"), row("a", "dropout")])
    assert [runs[0]["run"] for runs in repeated.values()] == ["a"]


def test_labels_say_what_varies_among_networks_of_ones_own() -> None:
    def row(run: str, model: str = "mlp", code: str | None = None, **arguments: object) -> dict[str, object]:
        config = TrainConfig(model=model, model_settings=arguments, code_sha256=code and code * 64)
        return {"run": run, **{name: values[0] for name, values in config_columns([config]).items()}}

    def labels(*rows: dict[str, object]) -> list[str]:
        return list(group_settings(with_own_settings(rows)))

    own = "nets.py:make"
    sizes = [row("a", own, "1", width=8), row("b", own, "1", width=64), row("c", own, "1", width="wide")]
    assert labels(*sizes) == [f"width {value}" for value in ("8", "64", "wide")]
    assert labels(row("a"), sizes[0]) == ["baseline", f"{own}, width 8"]
    assert labels(row("a"), row("b", own, "1")) == ["baseline", own]
    assert labels(row("b", own, "1")) == [own]
    # Arguments that a network wasn't given are not said.
    assert labels(row("b", own, "1"), row("c", "other.py:make", "1", depth=2)) == [own, "other.py:make, depth 2"]
    assert labels(row("a", own, "1"), row("b", own, "2")) == [f"code sha256 {digit * 64}" for digit in "12"]


def test_the_interval_of_an_accuracy_is_wilsons_with_one_seed_and_over_seeds_and_examples_with_more() -> None:
    correct = np.arange(50) < 40
    rows = [{"accuracy_low": 0.669, "accuracy_high": 0.887}] * 2

    def interval(correct: NDArray[np.bool_]) -> tuple[float, float]:
        scores = Scores("a", tuple(range(len(correct))), correct, np.zeros(correct.shape, np.float32))
        return accuracy_interval(rows[: len(correct)], scores)

    assert interval(correct[None]) == (0.669, 0.887)
    # Seeds that all answer alike leave the examples' variance alone.
    expected = stats.t.interval(0.95, 49, loc=0.8, scale=correct.std(ddof=1) / 50**0.5)
    assert interval(np.stack([correct, correct])) == pytest.approx(expected)
    # Seeds that differ make it wider.
    low, high = interval(np.stack([correct, np.arange(50) < 30]))
    assert high - low > 2 * (expected[1] - expected[0])
    assert interval(np.ones((2, 50), np.bool_)) == (0.669, 0.887)
    low, high = interval(np.stack([np.ones(50, np.bool_), correct]))
    assert high == 1.0
