"""The queries of docs/queries.md say what plain pandas says of the same tables."""

import re
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pytest

from mnist_ray.cli.main import run_command
from mnist_ray.results import schemas
from mnist_ray.results.grid_folder import GridFolder
from mnist_ray.storage.storage import open_storage
from tests.support.queried import DOCUMENT, QUERIES, SETTING, Evaluated

COLUMNS = {
    1: ["dataset", "class_name", "dropout", "accuracy", "runs"],
    2: ["dataset", "label_name", "predicted_label_name", "without_batch_norm", "with_batch_norm", "removed"],
    3: [
        "dataset",
        "batch_norm",
        "confidence_low",
        "confidence_high",
        "examples",
        "mean_confidence",
        "bin_accuracy",
        "gap",
    ],
    4: [*(f"{name}_{side}" for side in "ab" for name in SETTING), "disagreement"],
    5: ["dataset", "setting", "seeds", "mean_accuracy", "std_accuracy", "lowest", "highest"],
    6: [
        "dataset",
        "split",
        "example_index",
        "label_name",
        "wrong_runs",
        "runs",
        "usual_mistake",
        "mean_label_probability",
    ],
    7: [*SETTING, "validation_accuracy", "test_accuracy", "validation_rank", "test_rank", "optimism"],
    8: ["dataset", "dropout", "batch_norm", "over_confidence", "confidence_when_wrong", "confident_mistakes"],
    9: ["dataset", "class_name", "f1_gain", "share_of_pairs_improved", "pairs"],
    10: ["dataset", "weight_decay", "pairs", "accuracy_change", "accuracy_standard_error", "log_loss_change"],
}


def test_the_ten_queries_are_all_the_sql_blocks_of_the_document() -> None:
    assert list(QUERIES) == list(range(1, 11))
    assert DOCUMENT.count("```sql") == 10


@pytest.mark.parametrize("number", QUERIES)
def test_a_documented_query_has_its_columns_and_rows_without_nulls(number: int, evaluated: Evaluated) -> None:
    found = evaluated.query(QUERIES[number])
    assert list(found.columns) == COLUMNS[number]
    assert len(found) == {1: 20, 2: 10, 4: 28, 5: 8, 6: 10, 7: 8, 8: 4, 9: 10, 10: 1}.get(number, len(found))
    assert len(found) > 0
    assert not found.isna().any(axis=None)


# The two about one evaluation.
ACROSS = [number for number in QUERIES if number not in (4, 7)]


@pytest.mark.parametrize("number", ACROSS)
def test_an_answer_counts_a_run_once_however_often_it_was_evaluated(number: int, evaluated: Evaluated) -> None:
    storage = Path(evaluated.storage)
    for name in ("again", "some"):
        if not (storage / "evaluations" / name).exists():
            runs = GridFolder(open_storage(evaluated.storage), "g").run_names()
            chosen = ["--grid", "g"] if name == "again" else ["--run", runs[0], "--run", runs[-1]]
            more = ["--shard-size", "150", "--no-report", "--name", name, "--storage", evaluated.storage]
            assert run_command(["evaluate", *chosen, *more]) == 0
    alone, together = (evaluated.query(QUERIES[number], *more) for more in ((), ("again", "some")))
    pd.testing.assert_frame_equal(alone, together)
    plain = duckdb.connect()
    for table in schemas.EVALUATION_TABLES:
        plain.execute(f"CREATE VIEW {table} AS FROM '{storage}/evaluations/*/{table}/*.parquet'")
    pd.testing.assert_frame_equal(alone, plain.execute(QUERIES[number]).df(), check_dtype=False)


def test_a_join_on_the_run_alone_counts_it_for_each_pair_of_evaluations(evaluated: Evaluated) -> None:
    sql = "SELECT count(*) FROM predictions JOIN metrics USING ({})"
    names = ("again", "some")
    (right,), (wrong,) = (evaluated.query(sql.format(key), *names).iloc[0] for key in ("evaluation, run", "run"))
    assert right == (16 + 16 + 2) * 355
    # 14 runs were evaluated twice, 2 three times.
    assert wrong == (14 * 2**2 + 2 * 3**2) * 355


def test_the_accuracy_by_class_and_dropout_is_that_of_the_predictions(evaluated: Evaluated) -> None:
    rows = evaluated.joined("predictions").astype({"label_name": str})
    expected = rows.groupby(["label_name", "dropout", "run"])["correct"].mean().groupby(level=[0, 1]).mean()
    found = evaluated.query(QUERIES[1])
    assert list(zip(found["class_name"], found["dropout"], strict=True)) == list(expected.index)
    np.testing.assert_allclose(found["accuracy"], expected, rtol=1e-12)
    assert set(found["runs"]) == {8}


def test_the_removed_confusions_are_those_of_the_predictions(evaluated: Evaluated) -> None:
    wrong = evaluated.joined("predictions").query("not correct")
    pairs = wrong.groupby(["label", "predicted_label", "batch_norm"], observed=True).size().unstack(fill_value=0) / 8
    expected = (pairs[False] - pairs[True]).sort_values(ascending=False).head(10)
    found = evaluated.query(QUERIES[2])
    np.testing.assert_allclose(found["removed"], expected.to_numpy(), rtol=1e-12)
    best = found.iloc[0]
    assert (
        best["removed"]
        == pairs[False][int(best["label_name"]), int(best["predicted_label_name"])]
        - (pairs[True][int(best["label_name"]), int(best["predicted_label_name"])])
    )


def test_the_calibration_has_every_example_once_and_the_mean_gap_of_all(evaluated: Evaluated) -> None:
    found, rows = evaluated.query(QUERIES[3]), evaluated.joined("predictions")
    for batch_norm, bins in found.groupby("batch_norm"):
        of_setting = rows[rows["batch_norm"] == batch_norm]
        assert bins["examples"].sum() == 8 * 355 == len(of_setting)
        gap = (bins["gap"] * bins["examples"]).sum() / bins["examples"].sum()
        expected = of_setting["confidence"].astype(float).mean() - of_setting["correct"].mean()
        assert gap == pytest.approx(expected, abs=1e-6)


def test_the_disagreement_is_that_of_the_predictions(evaluated: Evaluated) -> None:
    rows = evaluated.joined("predictions")
    answers = rows.pivot_table(index=["seed", "example_index"], columns=SETTING, values="predicted_label")
    assert answers.shape == (2 * 355, 8)
    for row in evaluated.query(QUERIES[4]).itertuples():
        a = answers[row.dropout_a, row.batch_norm_a, row.weight_decay_a]
        b = answers[row.dropout_b, row.batch_norm_b, row.weight_decay_b]
        assert row.disagreement == pytest.approx((a != b).mean(), rel=1e-12)


def test_the_spread_over_seeds_is_numpys(evaluated: Evaluated) -> None:
    metrics = evaluated.table("metrics")
    for row in evaluated.query(QUERIES[5]).itertuples():
        accuracies = metrics["accuracy"][metrics["setting"] == row.setting].to_numpy()
        assert row.seeds == len(accuracies) == 2
        assert row.mean_accuracy == pytest.approx(np.mean(accuracies), rel=1e-12)
        assert row.std_accuracy == pytest.approx(np.std(accuracies, ddof=1), rel=1e-9)


def test_the_hardest_images_are_those_that_most_runs_get_wrong(evaluated: Evaluated) -> None:
    rows = evaluated.table("predictions")
    wrong = (~rows["correct"]).groupby(rows["example_index"]).sum()
    found = evaluated.query(QUERIES[6])
    assert list(found["wrong_runs"]) == sorted(wrong, reverse=True)[:10]
    for row in found.itertuples():
        of_image = rows[rows["example_index"] == row.example_index]
        mistakes = of_image.query("not correct")["predicted_label_name"].astype(str)
        assert row.wrong_runs == len(mistakes)
        assert row.usual_mistake in list(mistakes.mode())


def test_the_first_setting_by_validation_is_the_grids_best(evaluated: Evaluated) -> None:
    runs = pd.DataFrame(GridFolder(open_storage(evaluated.storage), "g").read_runs())
    expected = runs.groupby(SETTING)["best_val_accuracy"].mean()
    found = evaluated.query(QUERIES[7])
    assert found["validation_accuracy"].iloc[0] == pytest.approx(expected.max(), rel=1e-12)
    test = evaluated.table("metrics").groupby(SETTING)["accuracy"].mean()
    np.testing.assert_allclose(found["test_accuracy"], test.loc[list(zip(*map(found.get, SETTING), strict=True))])


def test_the_over_confidence_is_that_of_the_predictions(evaluated: Evaluated) -> None:
    rows = evaluated.joined("predictions").astype({"confidence": float}).set_index(["dropout", "batch_norm"])
    for row in evaluated.query(QUERIES[8]).itertuples():
        of_setting = rows.loc[(row.dropout, row.batch_norm)]
        wrong = of_setting[~of_setting["correct"]]
        assert row.over_confidence == pytest.approx(of_setting["confidence"].mean() - of_setting["correct"].mean())
        assert row.confidence_when_wrong == pytest.approx(wrong["confidence"].mean())
        assert row.confident_mistakes == pytest.approx((wrong["confidence"] > 0.9).sum() / len(of_setting))


def test_the_gain_of_a_class_from_dropout_is_that_of_the_pairs(evaluated: Evaluated) -> None:
    rows = evaluated.joined("per_class").astype({"class_name": str})
    f1 = rows.pivot(index=["class_name", "seed", "batch_norm", "weight_decay"], columns="dropout", values="f1")
    gain = f1[0.3] - f1[0.0]
    found = evaluated.query(QUERIES[9]).set_index("class_name").sort_index()
    np.testing.assert_allclose(found["f1_gain"], gain.groupby("class_name").mean(), atol=1e-12)
    np.testing.assert_allclose(found["share_of_pairs_improved"], (gain > 0).groupby("class_name").mean())
    assert set(found["pairs"]) == {8}


def test_the_effect_of_weight_decay_is_the_mean_of_the_paired_differences(evaluated: Evaluated) -> None:
    metrics = evaluated.table("metrics").set_index(["weight_decay", "seed", "dropout", "batch_norm"])
    difference = metrics.loc[1e-2, ["accuracy", "log_loss"]] - metrics.loc[0.0, ["accuracy", "log_loss"]]
    (row,) = evaluated.query(QUERIES[10]).itertuples()
    assert (row.weight_decay, row.pairs) == (1e-2, 8)
    assert row.accuracy_change == pytest.approx(difference["accuracy"].mean(), rel=1e-9, abs=1e-12)
    assert row.log_loss_change == pytest.approx(difference["log_loss"].mean(), rel=1e-9)
    assert row.accuracy_standard_error == pytest.approx(difference["accuracy"].sem(), rel=1e-9)


def test_the_documents_python_runs_and_finds_the_same(evaluated: Evaluated) -> None:
    folder = f"{evaluated.storage}/evaluations/{evaluated.name}"
    names: dict[str, Any] = {}
    counted = []
    for code in re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL):
        # Only this one of the storage's evaluations.
        code = code.replace("results/evaluations/EVALUATION", folder).replace("results/evaluations/*", folder)
        exec(code, names)
        counted += [len(names.pop("errors"))] if "errors" in names else []
    expected = evaluated.query("SELECT count(*) FROM predictions WHERE NOT correct").iloc[0, 0]
    assert counted == [expected, expected]
    assert len(names["by_setting"]) == 8
    assert [path.name for path in sorted(names["predictions"])] == [f"part-0000{number}.parquet" for number in range(4)]


def test_the_documents_table_for_athena_has_the_columns_of_the_schema() -> None:
    (statement,) = re.findall(r"CREATE EXTERNAL TABLE predictions \((.*?)\n\)", DOCUMENT, re.DOTALL)
    found = [tuple(line.strip(" ,").split(" ")) for line in statement.strip().splitlines()]
    kinds = {"int64": "bigint", "bool": "boolean", "float32": "float", "list of float32": "array<float>"}
    columns = schemas.TABLES["predictions"].columns
    # The evaluation is what the location names.
    assert found == [(one.name, kinds.get(one.type_name(), "string")) for one in columns if one.name != "evaluation"]
