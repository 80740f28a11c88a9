"""`mnist-ray compare` on real evaluations of tiny networks."""

import json
from pathlib import Path

import duckdb
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from mnist_ray.analysis.comparisons import Scores
from mnist_ray.cli.main import run_command
from mnist_ray.config.settings import GridConfig, TrainConfig
from mnist_ray.config.variants import variant_config
from mnist_ray.errors import ConfigError
from mnist_ray.grids.grid import GridRun, expand
from mnist_ray.report.comparison_report import accuracy_interval, find_setting, group_settings
from mnist_ray.results import parquet
from mnist_ray.results.columns import config_columns, with_own_settings
from mnist_ray.results.grid_folder import GridFolder
from mnist_ray.results.run_progress import RunProgress
from mnist_ray.storage.storage import open_storage
from mnist_ray.training.data import prepare_data
from mnist_ray.training.train_stack import train_stack
from tests.support.tiny_digits import tiny_digits

# A patience that is never used leaves the same weights; a learning rate of 1e-9 leaves them at chance.
AXES = {"early_stopping_patience": (None, 50), "learning_rate": (1e-9, 1e-2)}
SMALL = {"dataset": "digits", "hidden_sizes": (16,), "epochs": 4}
LABELS = [
    f"learning_rate={rate} early_stopping_patience={patience}"
    for rate in ("1e-09", "0.01")
    for patience in ("none", "50")
]
BROKEN, BROKEN_TWIN, GOOD, GOOD_TWIN = LABELS


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


def test_twins_tie_and_a_broken_setting_is_worse(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = evaluate(root, capsys, "--grid", "g", "--shard-size", "100")
    assert run_command(["compare", evaluation, "--storage", str(root), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    verdicts = {(row["first"], row["second"]): row["verdict"] for row in found["comparisons"]}
    assert verdicts == {
        (BROKEN_TWIN, BROKEN): "tie",
        (GOOD, BROKEN): "better",
        (GOOD_TWIN, BROKEN): "better",
        (GOOD, BROKEN_TWIN): "better",
        (GOOD_TWIN, BROKEN_TWIN): "better",
        (GOOD_TWIN, GOOD): "tie",
    }
    groups = {row["setting"]: row["group"] for row in found["settings"]}
    assert groups == {GOOD: 1, GOOD_TWIN: 1, BROKEN: 3, BROKEN_TWIN: 3}
    assert found["selection"]["setting"] in (GOOD, GOOD_TWIN)
    assert found["selection"]["num_settings"] == 4
    best = next(row for row in found["settings"] if row["setting"] == GOOD)
    assert found["selection"]["optimism"] == pytest.approx(best["val_accuracy_mean"] - best["accuracy_mean"])

    stored = parquet.read_parquet((root / f"reports/{evaluation}/comparisons.parquet").read_bytes()).to_pylist()
    assert [{name: row[name] for name in found["comparisons"][0]} for row in stored] == found["comparisons"]
    assert {(row["evaluation"], row["dataset"], row["split"]) for row in stored} == {(evaluation, "digits", "test")}


def test_the_means_and_counts_are_those_that_duckdb_finds_in_the_predictions(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = evaluate(root, capsys, "--grid", "g", "--shard-size", "100")
    assert run_command(["compare", evaluation, "--storage", str(root), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["comparisons"]
    row = next(row for row in rows if (row["first"], row["second"]) == (GOOD, BROKEN))
    folder = root / "evaluations" / evaluation
    with duckdb.connect() as connection:
        query = f"""
            with scored as (
                select learning_rate > 1e-3 as good, seed, example_index, correct::int as correct, loss::double as loss
                from '{folder}/predictions-*.parquet' join '{folder}/metrics.parquet' using (run)
                where early_stopping_patience is null
            ), wins as (select sum(if(good, correct, -correct)) as won from scored group by example_index)
            select (select avg(correct) from scored where good), (select avg(loss) from scored where not good),
                   (select count(*) from wins where won > 0), (select count(*) from wins where won < 0),
                   (select count(*) from wins)"""
        expected = connection.execute(query).fetchone()
    names = ("first_accuracy", "second_log_loss", "first_right", "second_right", "num_examples")
    assert [row[name] for name in names] == pytest.approx(list(expected))


def test_a_baseline_restricts_what_is_shown_and_corrected_and_not_what_is_stored(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluation = evaluate(root, capsys, "--grid", "g", "--shard-size", "100")
    arguments = ["compare", evaluation, "--storage", str(root), "--baseline", GOOD]
    assert run_command([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["first"], row["second"]) for row in found["comparisons"]] == [
        (BROKEN, GOOD),
        (BROKEN_TWIN, GOOD),
        (GOOD_TWIN, GOOD),
    ]
    assert [row["verdict"] for row in found["comparisons"]] == ["worse", "worse", "tie"]
    assert found["comparisons"][0]["p_adjusted"] == pytest.approx(3 * found["comparisons"][0]["p_value"])
    assert found["num_pairs"] == 6
    stored = parquet.read_parquet((root / f"reports/{evaluation}/comparisons.parquet").read_bytes())
    assert len(stored) == 6

    assert run_command(arguments) == 0
    shown = capsys.readouterr().out
    assert "Holm's correction over these 3 pairs" in shown
    assert "The groups and comparisons.parquet are corrected over all 6 pairs." in shown
    assert "Too few seeds to tell 0.1 points apart in 2 of 3 pairs." in shown
    assert "Chosen by validation from 4 settings: learning_rate=0.01" in shown
    assert f"all pairs: {root}/reports/{evaluation}/comparisons.parquet" in shown


def test_variants_without_a_common_seed_are_left_out_and_one_seed_is_said(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [part for name in ("baseline-0", "dropout-0", "dropout_batchnorm-1") for part in ("--run", name)]
    evaluation = evaluate(root, capsys, *names)
    assert run_command(["compare", evaluation, "--storage", str(root)]) == 0
    shown = capsys.readouterr().out
    assert "Left out, without a seed in common: 2 pairs: dropout_batchnorm / baseline, dropout_batchnorm" in shown
    assert (
        "One seed in 1 of 1 pairs: unresolved, because their intervals and p values cover other examples only" in shown
    )
    assert "Chosen by validation from 3 settings: dropout_batchnorm;" in shown

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
    assert capsys.readouterr().err == (
        f"mnist-ray: error: evaluation 'nothing': not in {root}; `mnist-ray evaluations` lists what is\n"
    )
    assert run_command(["compare", evaluation, "--baseline", "tuned", "--storage", str(root)]) == 2
    assert capsys.readouterr().err == (
        "mnist-ray: error: --baseline 'tuned': no such setting in the evaluation; give one of 'baseline', 'dropout'\n"
    )


def test_a_damaged_part_file_ends_with_3(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation = evaluate(root, capsys, "--run", "baseline-0", "--run", "dropout-0", "--batch-size", "7")
    part = root / "evaluations" / evaluation / "predictions-00000.parquet"
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
    assert list(group_settings(dropout)) == ["baseline dropout=0", "dropout dropout=0.123457", "dropout dropout=0.5"]
    assert find_setting(group_settings(dropout), "baseline") == "baseline dropout=0"
    with pytest.raises(ConfigError) as error:
        find_setting(group_settings(dropout), "dropout")
    assert str(error.value) == (
        "--baseline 'dropout': 2 settings have this variant; give one of 'dropout dropout=0.123457', "
        "'dropout dropout=0.5'"
    )
    near = [row("a", "dropout", dropout=0.12345678), row("b", "dropout", dropout=0.12345679)]
    assert list(group_settings(near)) == ["dropout=0.12345678", "dropout=0.12345679"]
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
    assert labels(*sizes) == [f"model_settings.width={value}" for value in ("8", "64", "wide")]
    assert labels(row("a"), sizes[0]) == ["model=mlp model_settings.width=none", f"model={own} model_settings.width=8"]
    assert labels(row("a"), row("b", own, "1")) == ["model=mlp", f"model={own}"]
    assert labels(row("a", own, "1"), row("b", own, "2")) == [f"code_sha256={digit * 64}" for digit in "12"]


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
