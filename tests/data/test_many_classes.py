"""The report of an evaluation with more classes than a page can show."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score

from mnist_ray.analysis.effects import Effect, Term
from mnist_ray.analysis.estimates import Estimate
from mnist_ray.cli.main import run_command
from mnist_ray.config.settings import EvaluationConfig, TrainConfig
from mnist_ray.data.datasets import load_examples
from mnist_ray.data.examples import Examples, Split
from mnist_ray.evaluation import plan
from mnist_ray.grids.grid import GridRun
from mnist_ray.report import limits, plots
from mnist_ray.report.classification import confused_classes, confusions, frequent_mistakes, weakest_classes
from mnist_ray.report.effect_charts import effect_charts
from mnist_ray.report.page import report_evaluation
from mnist_ray.results import parquet
from mnist_ray.results.evaluation_folder import EvaluationFolder, open_evaluation
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.storage.storage import open_storage
from mnist_ray.training.data import prepare_data
from mnist_ray.training.train_stack import train_stack
from tests.support.report_evaluations import commit_evaluation

CPU = torch.device("cpu")
NUM_CLASSES = 300
# The last ones have no examples.
NAMES = tuple(f"kind {number}" for number in range(NUM_CLASSES + 5))


def many_classes(split: Split) -> Examples:
    """The digits, each divided into thirty classes by its place."""
    digits = load_examples("digits", split, data_dir=Path("unused"))
    labels = digits.labels * 30 + torch.arange(len(digits.labels)) % 30
    return replace(digits, labels=labels, class_names=NAMES)


def evaluate_many(storage_uri: str) -> str:
    """Trains two runs on these classes, evaluates them and returns the evaluation's name."""
    storage = open_storage(storage_uri)
    runs = [GridRun(f"run-{seed}", TrainConfig(dataset="digits", epochs=2, seed=seed)) for seed in range(2)]
    list(
        train_stack(runs, prepare_data(runs[0].config, many_classes("train"), device=CPU), storage=storage, device=CPU)
    )
    test = many_classes("test")
    examples = replace(test.stream("digits"), labels=test.labels)
    checkpoints = [RunFolder(storage, run.run).best() for run in runs]
    return commit_evaluation(storage, EvaluationConfig(dataset="digits"), checkpoints, examples)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("storage"))


@pytest.fixture(scope="module")
def evaluation(storage: str) -> str:
    return evaluate_many(storage)


@pytest.fixture(scope="module")
def predictions(storage: str, evaluation: str) -> pd.DataFrame:
    return open_evaluation(open_storage(storage), evaluation).table("predictions").to_pandas()


@pytest.fixture(scope="module")
def page(storage: str, evaluation: str) -> str:
    return Path(report_evaluation(open_evaluation(open_storage(storage), evaluation)).uri).read_text()


def section(page: str, name: str) -> str:
    return page.partition(f'<section id="{name}">')[2].partition("</section>")[0]


def mistakes_by_pandas(predictions: pd.DataFrame) -> pd.DataFrame:
    wrong = predictions[predictions.label != predictions.predicted_label]
    counts = wrong.groupby(["label", "predicted_label"]).size().reset_index(name="count")
    return counts.sort_values(["count", "label", "predicted_label"], ascending=[False, True, True])


def test_a_page_of_many_classes_is_small(page: str) -> None:
    assert len(page) < 2_000_000


def test_the_mistakes_shown_are_the_most_frequent_ones(page: str, predictions: pd.DataFrame) -> None:
    expected = mistakes_by_pandas(predictions)
    shown = section(page, "confusion").partition("The most frequent mistakes</h3>")[2]
    rows = re.findall(r'<td>([^<]*)</td><td class="text">([^<]*)</td><td>(\d+)</td>', shown)
    first = expected.head(8).itertuples(index=False)
    assert rows == [(NAMES[label], NAMES[predicted], str(count)) for label, predicted, count in first]
    assert f"8 of {len(expected):,} pairs of classes; the table <code>confusion</code> has all" in shown


def test_the_matrix_shows_the_classes_of_the_most_frequent_mistakes(
    storage: str, evaluation: str, page: str, predictions: pd.DataFrame
) -> None:
    expected: dict[int, None] = {}
    for label, predicted, _ in mistakes_by_pandas(predictions).itertuples(index=False):
        expected |= dict.fromkeys((label, predicted))
    names = {NAMES[number] for number in list(expected)[:50]}
    for kind in ("counts", "shares"):
        svg = Path(storage, "reports", evaluation, "plots", f"confusion-0-{kind}.svg").read_text()
        labels = re.findall(r">(kind \d+)</text>", svg)
        assert len(labels) == 100
        assert set(labels) == names
    caption = "50 of the 305 classes, those of the most frequent mistakes; the table confusion has all."
    assert section(page, "confusion").count(caption) == 2


def test_a_share_in_the_matrix_is_of_all_examples_of_its_class() -> None:
    svg = plots.confusion("c", "s", COUNTS, ["a", "b", "c", "d"], places=[0, 2], normalized=True).svg.decode()
    # 5 and 2 of 7 in the first row; in the other 1 of 4, of which three are of a class that isn't shown.
    assert re.findall(r">([\d.]+)</text>", svg) == ["71.4", "28.6", "25.0"]


def test_the_classes_shown_have_the_lowest_f1(page: str, predictions: pd.DataFrame) -> None:
    f1 = f1_score(
        predictions.label, predictions.predicted_label, labels=range(len(NAMES)), average=None, zero_division=0
    )
    has_examples = np.isin(np.arange(len(NAMES)), predictions.label)
    expected = sorted(range(len(NAMES)), key=lambda place: (not has_examples[place], f1[place], place))[:100]
    tables = section(page, "classes").split("<tbody>")[1:]
    shown = [re.findall(r"<tr><td>(kind \d+)</td>", table) for table in tables]
    # Of the setting, and the same ones of each of its runs.
    assert shown == [[NAMES[place] for place in expected]] * 3
    lowest = re.search(r"<tr><td>kind \d+</td><td>[\d.]+</td><td>[\d.]+</td><td>([\d.]+)</td>", tables[0])
    assert lowest is not None
    assert lowest[1] == f"{100 * f1[expected[0]]:.2f}"
    assert "100 of the 305 classes, the lowest F1 first" in page
    assert "the table <code>per_class</code> has all" in page


def test_the_confusions_of_settings_are_those_of_their_runs(
    storage: str, evaluation: str, predictions: pd.DataFrame
) -> None:
    found = confusions(open_evaluation(open_storage(storage), evaluation), [["run-1"], []])
    of_run = predictions[predictions.run == "run-1"]
    expected = np.zeros((len(NAMES), len(NAMES)), dtype=np.int64)
    np.add.at(expected, (of_run.label, of_run.predicted_label), 1)
    np.testing.assert_array_equal(found[0], expected)
    assert found[1].sum() == 0


@pytest.fixture(scope="module")
def in_pieces(tmp_path_factory: pytest.TempPathFactory) -> EvaluationFolder:
    """The same evaluation in part files of a hundred images, its confusion table in pieces that end within a class."""
    storage = str(tmp_path_factory.mktemp("pieces"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parquet, "ROWS_IN_PIECE", 70_000)
        patch.setattr(plan, "_MOST_PROBABILITIES", 100 * 2 * len(NAMES))
        return open_evaluation(open_storage(storage), evaluate_many(storage))


def test_the_confusion_table_is_that_of_the_predictions_in_any_pieces(
    storage: str, evaluation: str, predictions: pd.DataFrame, in_pieces: EvaluationFolder
) -> None:
    whole = open_evaluation(open_storage(storage), evaluation).table("confusion").to_pandas()
    assert len(whole) == 2 * len(NAMES) ** 2
    expected = predictions.groupby(["run", "label", "predicted_label"], observed=True).size()
    filled = whole[whole["count"] > 0].set_index(["run", "label", "predicted_label"])["count"]
    assert filled.to_dict() == expected.to_dict()
    for label, name in (("label", "label_name"), ("predicted_label", "predicted_label_name")):
        named = whole[[label, name]].drop_duplicates()
        assert named[name].tolist() == [NAMES[place] for place in named[label]]
        assert len(named) == len(NAMES)
    again = in_pieces.table("confusion").unify_dictionaries().to_pandas()
    for column in whole:
        assert (np.asarray(again[column]) == np.asarray(whole[column])).all()


def test_a_part_file_of_many_classes_and_runs_has_fewer_images(
    predictions: pd.DataFrame, in_pieces: EvaluationFolder
) -> None:
    assert [len(part) for part in in_pieces.parts("predictions")] == [200, 200, 200, 110]
    columns = ["run", "example_index", "label", "predicted_label_name", "loss"]
    found, whole = (
        some[columns].sort_values(columns[:2], ignore_index=True)
        for some in (in_pieces.table("predictions").to_pandas(), predictions)
    )
    pd.testing.assert_frame_equal(found, whole, check_categorical=False)


def test_the_documents_say_the_most_that_a_page_shows() -> None:
    document = " ".join((Path(__file__).parents[2] / "docs/evidence.md").read_text().split())
    assert limits.SETTINGS == limits.EFFECTS
    assert (
        f"A page shows at most {limits.SETTINGS} settings or effects in a chart, {limits.CURVES} loss curves, "
        f"{limits.LINES} lines over training images, {limits.PAIRS} pairs, {limits.MISTAKES} kinds of mistake, "
        f"{limits.CLASSES_IN_MATRIX} classes in a confusion matrix (of the most frequent mistakes) and "
        f"{limits.CLASSES_IN_TABLE} classes in a table"
    ) in document


def test_a_chart_of_many_effects_says_how_many_are_left_out() -> None:
    estimate = Estimate(0.01, None, None, None, None, None, 1, None, "unresolved", 0.005)
    effect = Effect("accuracy", "factorial", Term("dropout", "0.1", "0"), estimate, 2)
    assert effect_charts([effect] * 24, split="test")[0].caption.startswith("Each level")
    caption = effect_charts([effect] * 25, split="test")[0].caption
    assert caption.startswith("24 of 25 effects; the table effects has all. Each level")


@pytest.mark.parametrize("rows_in_piece", [1 << 20, 1000])
def test_a_query_answers_the_same_whether_the_confusion_table_is_in_memory(
    storage: str,
    evaluation: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rows_in_piece: int,
) -> None:
    monkeypatch.setattr(parquet, "ROWS_IN_PIECE", rows_in_piece)
    sql = "SELECT count(*) AS num_rows, sum(count) AS num_examples FROM confusion"
    assert run_command(["query", sql, "--evaluation", evaluation, "--storage", storage, "--csv"]) == 0
    # Two runs on 305 x 305 pairs of classes and 355 images.
    assert capsys.readouterr().out == "num_rows,num_examples\n186050,710\n"


def test_a_damaged_confusion_table_that_is_not_in_memory_is_told_of(
    storage: str,
    evaluation: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(parquet, "ROWS_IN_PIECE", 1000)
    shutil.copytree(storage, tmp_path / "copy")
    file = tmp_path / "copy/evaluations" / evaluation / "confusion/part-0.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(data)
    sql = "SELECT max(COLUMNS(*)) FROM confusion"
    assert run_command(["query", sql, "--evaluation", evaluation, "--storage", str(tmp_path / "copy")]) == 3
    assert "confusion/part-0.parquet" in capsys.readouterr().err


def test_a_list_of_many_values_is_cut_in_a_table(
    storage: str, evaluation: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "query",
        "SELECT probabilities FROM predictions LIMIT 1",
        "--evaluation",
        evaluation,
        "--storage",
        storage,
    ]
    assert run_command(command) == 0
    (shown,) = re.findall(r"\[(.*)\]", " ".join(capsys.readouterr().out.split()))
    assert shown.count(", ") == 50
    assert shown.endswith(", 255 more")
    assert run_command([*command, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)[0]["probabilities"]) == 305


def test_a_prediction_prints_the_most_probable_classes(
    storage: str, evaluation: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "one.png"
    Image.fromarray(many_classes("test").images[0, 0].numpy()).save(image)
    command = ["predict", "--run", "run-0", "--images", str(image), "--storage", storage, "--polarity", "as-trained"]
    assert run_command([*command, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    probabilities = dict(zip(said["class_names"], said["probabilities"], strict=True))
    assert run_command(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "the first 50 of 305 classes; --json prints all"
    shown = [found[1] for found in map(re.compile(r" (kind \d+) ").match, lines) if found]
    assert shown == sorted(NAMES, key=lambda name: -probabilities[name])[:50]


def test_a_model_card_names_the_first_classes_and_says_where_the_others_are(
    storage: str, evaluation: str, tmp_path: Path
) -> None:
    output = tmp_path / "network.safetensors"
    command = ["export", "run-0", "--to", "safetensors", "--output", str(output), "--storage", storage]
    assert run_command(command) == 0
    (card,) = tmp_path.glob("*.md")
    text = " ".join(card.read_text().split())
    assert "`kind 99` and 205 more: `class_names` in the run's `best/checkpoint.json`. Softmax" in text
    assert json.loads(Path(storage, "runs/run-0/best/checkpoint.json").read_text())["class_names"] == list(NAMES)


COUNTS = np.array([[5, 0, 2, 0], [1, 0, 0, 2], [0, 3, 1, 0], [0, 0, 0, 0]])


def test_mistakes_are_in_the_order_of_count_true_and_predicted_class() -> None:
    assert frequent_mistakes(COUNTS).tolist() == [[2, 1, 3], [0, 2, 2], [1, 3, 2], [1, 0, 1]]
    assert frequent_mistakes(np.diag([1, 2])).tolist() == []


def test_where_mistakes_have_too_few_classes_the_first_others_are_shown() -> None:
    assert confused_classes(COUNTS, 2) == [1, 2]
    assert confused_classes(COUNTS, 3) == [0, 1, 2]
    assert confused_classes(np.diag([1, 2, 3]), 2) == [0, 1]


def test_classes_without_examples_come_after_the_weakest() -> None:
    assert weakest_classes(COUNTS, 4) == [0, 1, 2, 3]
    assert weakest_classes(COUNTS, 3) == [1, 2, 0]
    counts = np.array([[0, 0, 0], [0, 4, 0], [0, 1, 3]])
    assert weakest_classes(counts, 2) == [2, 1]
