"""docs/own-network.md followed as it stands, here and on a cluster."""

import shlex
from pathlib import Path

import pytest
from PIL import Image

from tests.support.pages import blocks, command_lines
from tests.support.ray_head import RayHead
from tests.support.ray_jobs import launch, run_apart

PAGE = (Path(__file__).parents[1] / "docs/own-network.md").read_text()

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of the page, and an image to predict, in the working folder."""
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(PAGE, "python")
    config, grid = blocks(PAGE, "yaml")
    for name, text in {"my_nets.py": code, "config.yaml": config, "grid.yaml": grid}.items():
        Path(name).write_text(text)
    Path("images").mkdir()
    Image.new("L", (28, 28), 80).save("images/0.png")


@pytest.mark.usefixtures("_files", "blank_charts")
def test_the_page_can_be_followed_here() -> None:
    done = []
    for line in command_lines(PAGE):
        if "--address" in line:
            continue
        words = shlex.split(line.replace("IMAGES", "images"))
        ended = run_apart(*words[1:])
        assert ended.code == 0, f"{line}\n{ended.log}"
        done.append(words[1])
    assert done == ["train", "evaluate", "predict", "export", "plan", "tune", "evaluate", "report", "compare"]
    assert "width 64" in ended.output
    # The config file asks for the same run.
    same = run_apart("train", "--config", "config.yaml", "--name", "mine")
    assert same.output.startswith("mine was finished already"), same.log


@pytest.mark.series
@pytest.mark.usefixtures("_files", "blank_charts")
def test_the_page_can_be_followed_on_a_cluster(shared_head: RayHead, tmp_path: Path) -> None:
    lines = [line for line in command_lines(PAGE) if "--address" in line]
    assert len(lines) == 2
    for line in lines:
        words = shlex.split(line.replace("s3://BUCKET/results", str(tmp_path / "results")))
        place = words.index("--address")
        done = launch(shared_head, *words[1:place], *words[place + 2 :])
        assert done.code == 0, f"{line}\n{done.log}"
    assert len(list(tmp_path.glob("results/evaluations/*/_SUCCESS"))) == 1
