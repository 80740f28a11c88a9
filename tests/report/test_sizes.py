"""A grid over train_limit: the chart of accuracy against training images, and what levels are worth in images."""

import re
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from mnist_ray.analysis.effects import Axes
from mnist_ray.analysis.sizes import Differences, Line, Sizes
from mnist_ray.cli.main import run_command
from mnist_ray.config.settings import Range
from mnist_ray.report.answer import answer
from mnist_ray.report.findings import Findings, find
from mnist_ray.report.page import View, report_evaluation
from mnist_ray.report.size_charts import size_charts
from mnist_ray.report.size_report import report_sizes, worth_sentences
from mnist_ray.results.evaluation_folder import EvaluationFolder, open_evaluation
from mnist_ray.storage.storage import open_storage
from tests.support.report_evaluations import evaluate_grid, evaluate_runs

IMAGES = np.array([450, 900, 1_800, 3_600])
SETTINGS = {"dropout": 0.0, "learning_rate": 0.01, "batch_norm": [False, True], "train_limit": [200, 400, None]}


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("storage"))


@pytest.fixture(scope="module")
def evaluation(storage: str) -> EvaluationFolder:
    return open_evaluation(open_storage(storage), evaluate_grid(storage, SETTINGS))


@pytest.fixture(scope="module")
def findings(evaluation: EvaluationFolder) -> Findings:
    return find(evaluation)


def lines(row: list[float], half: float, *, place: int, level: str = "true", axis: str = "batch_norm") -> Sizes:
    """A level whose differences from the reference are `row` with one number of images, and 0 with the others."""
    count = len(row)
    mean = np.zeros((count, count))
    mean[place] = row
    low, high = mean - half, mean + half
    differences = Differences(mean, low, high, (low > 0) | (high < 0))
    group = [Line({axis: "false"}, np.full(count, 0.8), None), Line({axis: level}, np.full(count, 0.85), differences)]
    return Sizes(IMAGES[:count], [], 3, [group], [group])


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (
            lines([0.09, 0.04, -0.04], 0.02, place=1),
            "Batch norm is worth about 370 images (170 to 610) at 900 training images.",
        ),
        (
            lines([0.09, 0.04, -0.01], 0.02, place=1),
            "Batch norm is worth about 670 images (290 or more) at 900 training images.",
        ),
        (
            lines([0.09, 0.08, 0.07], 0.02, place=0),
            "Batch norm is worth more than 1,400 images at 450 training images.",
        ),
        (
            lines([0.04, -0.04, -0.09], 0.02, place=1, level="0.5", axis="dropout"),
            "Dropout 0.5 costs about 260 images (140 to 360) at 900 training images.",
        ),
        (
            lines([-0.04, -0.04, -0.09], 0.02, place=1, level="0.5", axis="dropout"),
            "Dropout 0.5 costs more than 450 images at 900 training images.",
        ),
        # Its line rises above the level, falls below it and rises again, all within the interval.
        (
            lines([0.01, -0.001, 0.002, -0.05], 0.004, place=0),
            "Batch norm is worth 210 to 1,500 images at 450 training images.",
        ),
        (lines([0.09, 0.01, -0.04], 0.02, place=1), None),
    ],
)
def test_a_worth_is_said_with_its_interval_and_never_beyond_the_grid(sizes: Sizes, said: str | None) -> None:
    assert list(worth_sentences(sizes)) == ([said] if said else [])


def test_the_answer_has_the_worth_before_what_may_be_best(findings: Findings) -> None:
    grid = replace(findings.grid, sizes=lines([0.09, 0.04, -0.04], 0.02, place=1))
    said = answer(findings.comparison, grid, findings.evaluated.groups)
    assert said[-2].startswith("Batch norm is worth about 370 images")
    assert said[-1] == findings.answer[-1]


def test_the_chart_counts_the_images_that_were_trained_on(evaluation: EvaluationFolder, findings: Findings) -> None:
    rows = findings.evaluated.rows
    trained = {row["train_limit"]: row["num_train_images"] for row in rows}
    # A tenth of each class is held out for validation.
    assert trained == {200: 180, 400: 360, None: 1_299}
    assert findings.grid.sizes is not None
    assert findings.grid.sizes.left_out == []
    (chart,) = size_charts(findings.grid.sizes, split="test")
    with_norm, without = (
        [
            f"{100 * fmean(row['accuracy'] for row in rows if (row['batch_norm'], row['train_limit']) == cell):.2f}"
            for cell in ((norm, 200), (norm, 400), (norm, None))
        ]
        for norm in (True, False)
    )
    said = re.fullmatch(
        "Accuracy against training images, mean in percent: "
        "no bn (.*?) with 180, (.*?) with 360, (.*?) with 1,299; "
        r"bn (.*?) with 180 \((.*?), (.*?) to (.*?)\), (.*?) with 360 \(.*?\), "
        r"(.*?) with 1,299 \((.*?), (.*?) to (.*?)\)\.",
        chart.alternative,
    )
    assert said is not None
    groups = said.groups()
    assert [*groups[:4], *groups[7:9]] == [*without, *with_norm]
    for (difference, low, high), one, other in (
        (map(float, groups[4:7]), with_norm[0], without[0]),
        (map(float, groups[9:]), with_norm[2], without[2]),
    ):
        assert difference == pytest.approx(float(one) - float(other), abs=0.011)
        assert low < difference < high
    assert "difference from no bn with as many images" in chart.caption
    assert chart in View(evaluation, findings).charts


def test_the_page_and_compare_say_the_same_of_a_size_that_lacks_runs(
    storage: str, evaluation: EvaluationFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = evaluation.rows("metrics")
    lacking = [row["run"] for row in rows if row["batch_norm"] and row["train_limit"] == 400]
    part = evaluate_runs(storage, [row["run"] for row in rows if row["run"] not in lacking], grid="g")
    line = "Accuracy against training images is without 360: not all combinations have their runs there."
    assert run_command(["compare", part, "--storage", storage]) == 0
    assert line in capsys.readouterr().out.splitlines()
    report = report_evaluation(open_evaluation(open_storage(storage), part))
    page = Path(report.uri).read_text()
    # Runs with different numbers of images are validated on different examples.
    best = report.findings.comparison.settings[0]["setting"]
    assert f"highest test accuracy: {best}" in page
    assert "chosen by validation" not in page
    assert line in page
    assert re.search(
        r'aria-label="Accuracy against training images, [^"]*no bn [0-9.]+ with 180, [0-9.]+ with 1,299;', page
    )


def test_a_grid_without_several_sizes_and_a_search_have_neither_chart_nor_sentence(findings: Findings) -> None:
    axes = {"batch_norm": [False, True], "train_limit": [200, 400, None]}
    assert report_sizes(findings.evaluated, findings.evaluated.blocks, Axes(axes)) is not None
    assert report_sizes(findings.evaluated, findings.evaluated.blocks, Axes({"batch_norm": [False, True]})) is None
    assert report_sizes(findings.evaluated, findings.evaluated.blocks, Axes(axes, follows_results=True)) is None
    ranges = {"learning_rate": Range(kind="loguniform", low=1e-4, high=1e-2)}
    assert report_sizes(findings.evaluated, findings.evaluated.blocks, Axes(axes, ranges)) is None
    whole = findings.evaluated.where(lambda row: row["train_limit"] is None)
    assert report_sizes(whole, whole.blocks, Axes(axes)) is None
    assert size_charts(None, split="test") == []
    assert list(worth_sentences(None)) == []


def test_many_combinations_have_a_chart_for_each_axis_with_its_first_levels() -> None:
    norm = lines([0.09, 0.04, -0.04], 0.02, place=1)
    (reference, level), rates = norm.of_axes[0], [f"0.{rate}" for rate in range(8)]
    dropout = [
        Line({"dropout": rate}, level.means, level.against if place else None) for place, rate in enumerate(rates)
    ]
    charts = size_charts(replace(norm, drawn=[[reference, level], dropout]), split="test")
    assert [(chart.name, chart.title.partition(": ")[2]) for chart in charts] == [
        ("sizes-0", "batch norm"),
        ("sizes-1", "dropout"),
    ]
    assert charts[1].caption.startswith("6 of 8 levels; the table metrics has all. Mean over the seeds and the other")
    assert "dropout 0.5 " in charts[1].alternative
    assert "dropout 0.6 " not in charts[1].alternative
    one_seed = size_charts(replace(norm, num_seeds=1), split="test")[0]
    assert one_seed.caption.endswith("which hold jointly, for other examples.")
    # A line alone has no reference.
    alone = size_charts(replace(norm, of_axes=[], drawn=[[Line({}, level.means, None)]]), split="test")[0]
    assert "Bars" not in alone.caption
    assert "all settings 85.00 with 450" in alone.alternative
