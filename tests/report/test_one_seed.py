"""Runs of one seed: an interval over seeds is left empty, wherever one is shown."""

import re
from pathlib import Path

import pytest

from mnist_ray.cli.main import run_command
from tests.support.report_evaluations import evaluate_grid

# Such as 0.95-0.95, 95.21 to 95.21, and the standard deviation of one value.
EMPTY = re.compile(r"(?<![\d.])(\d+\.\d+) ?(?:-|–|to) ?\1(?!\d)|± ?(?:-|nan|0\.0+\b)|\bnan\b", re.IGNORECASE)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = str(tmp_path_factory.mktemp("one"))
    settings = {"dropout": [0.0, 0.5], "batch_norm": [False, True], "hidden_sizes": [8]}
    evaluate_grid(folder, settings, seeds="1")
    return folder


@pytest.mark.parametrize(
    "command",
    [["report", "latest"], ["compare", "latest"], ["runs"], ["grids"], ["evaluations"], ["evaluate", "--grid", "g"]],
)
@pytest.mark.usefixtures("blank_charts")
def test_no_command_prints_an_interval_of_one_value(
    command: list[str], storage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command([*command, "--storage", storage]) == 0
    printed = capsys.readouterr().out
    assert printed.count("0.") > 1
    assert not EMPTY.search(printed)


def test_no_page_shows_an_interval_of_one_value(storage: str) -> None:
    assert run_command(["report", "latest", "--storage", storage]) == 0
    for page in Path(storage, "reports").rglob("report.html"):
        text = re.sub("<style.*?</style>|<svg.*?</svg>|<img[^>]*>", "", page.read_text(), flags=re.DOTALL)
        assert "one seed; 95 % interval for other examples" in text
        assert not EMPTY.search(re.sub("<[^>]*>", " ", text))
        resolving = "unresolved</span>; one seed says nothing about others; 95 % interval"
        assert text.count(resolving) == text.count("<dt>against dropout 0, no bn</dt>")
