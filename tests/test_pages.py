"""Every command and every block of Python of the pages runs, in the order of its page."""

import re
import shlex
import shutil
import traceback
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from mnist_ray.cli.main import run_command
from tests.support.colour_images import write_colour_folder
from tests.support.grid_runs import train_without_ray
from tests.support.pages import PAGES, Step, steps, yaml_files
from tests.support.ray_jobs import run_apart
from tests.support.tiny_digits import tiny_digits
from tests.support.warm_processes import call

# Pages that have tests of their own: test_own_network_document, test_python_document, test_docs and deploy/.
ELSEWHERE = {"own-network.md", "python.md", "cluster.md"}
# Excerpts of files, and the blocks that report/test_documented_queries.py runs.
NOT_THEIR_PYTHON = {"extending.md", "queries.md"}
RAY = {"README.md", "train.md", "grids.md", "trackers.md"}
LONG = {"grids.md", "trackers.md", "evidence.md"}

# Why steps of a page are left out, and how many; everything else runs.
LEFT_OUT = {
    "README.md": {"an installation": 1, "a shell": 1, "a cluster": 3},
    "benchmarks.md": {"an installation": 1, "a checkout": 1},
    "extending.md": {"an installation": 1, "a checkout": 1},
    "lakehouse.md": {"an installation": 1},
    "layout.md": {"an installation": 2},
    "operations.md": {"a cluster": 2, "a bucket": 3},
    "own-data.md": {"a bucket": 1},
    "queries.md": {"an installation": 1},
    "storage-care.md": {"a bucket": 2},
    "trackers.md": {"an installation": 1, "a server": 2},
}


def steps_here(name: str) -> list[Step]:
    found = [step for step in steps(PAGES[name]) if not (step.is_python and name in NOT_THEIR_PYTHON)]
    # Those have outputs that tests/test_docs.py compares, in one process and order of their own.
    return [step for step in found if not (name == "operations.md" and step.output)]


def marks(name: str) -> list[pytest.MarkDecorator]:
    found = [pytest.mark.slow, pytest.mark.timeout(1800)] if name in RAY | LONG else []
    return found + [pytest.mark.ray] * (name in RAY) + [pytest.mark.series] * (name in LONG)


FOLLOWED = [pytest.param(name, marks=marks(name), id=name) for name in PAGES if name not in ELSEWHERE]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage with which a page begins that trains nothing at first: runs, a grid, its evaluation, predictions."""
    folder = tmp_path_factory.mktemp("before")
    storage = str(folder / "results")
    write_images(folder)
    axes = {"dropout": [0.0, 0.3], "batch_norm": [False, True], "weight_decay": [0.0, 1e-4]}
    train_without_ray(storage, "regularization", seeds="2", dataset="digits", epochs=1, **axes)
    trained = ["--variant", "dropout_batchnorm", "--dataset", "digits", "--epochs", "1"]
    for line in (
        *(["train", *trained, "--name", name] for name in "abc"),
        *(["predict", "--run", "a", "--images", str(folder / "new"), "--name", name] for name in "pq"),
        ["evaluate", "--grid", "g", "--name", "g-on-digits"],
    ):
        assert run_command([*line, "--storage", storage]) == 0
    return folder / "results"


def write_images(folder: Path) -> None:
    """Writes the images that pages name: photos in four classes, digits to predict, and one in a file of its own."""
    write_colour_folder(folder / "photos", 20)
    (folder / "new").mkdir()
    for number, image in enumerate(tiny_digits(5).images):
        Image.fromarray(image[0].numpy()).save(folder / "new" / f"{number}.png")
    shutil.copy(folder / "photos" / "red" / "000.png", folder / "seven.jpg")


def run_python(code: str) -> str:
    """Runs a block of Python, and returns the traceback of its end, if any."""
    try:
        exec(compile(code, "the page", "exec"), {"__name__": "__main__"})
    except Exception:
        return traceback.format_exc()
    return ""


def follow(step: Step) -> None:
    if step.is_python:
        assert not (error := call(run_python, step.text)), f"{step.text}\n{error}"
        return
    words = shlex.split(step.text, comments=True)
    # Whoever has a terminal is asked there.
    answer = ["--yes"] if words[1] == "rm" and not {"--yes", "--dry-run"} & set(words) else []
    done = run_apart(*words[1:], *answer)
    assert done.code == 0, f"{step.text}\n{done.log}"
    if step.output:
        assert shape(done.log + done.output) == shape(step.output), step.text


def shape(output: str) -> list[str]:
    """Returns printed lines without their numbers, which differ between processors."""
    return [re.sub(r"\d[\d.,]*", "0", line) for line in output.splitlines()]


@pytest.mark.parametrize("name", FOLLOWED)
def test_a_page_can_be_followed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE",
                     "MLFLOW_TRACKING_URI"):  # fmt: skip
        monkeypatch.delenv(variable, raising=False)
    write_images(tmp_path)
    for file, content in yaml_files(PAGES[name]).items():
        Path(file).write_text(content)
    left_out = [(step, reason) for step in steps_here(name) if (reason := step.needs())]
    taken = [step for step in steps_here(name) if step.needs() is None]
    print(*(f"left out, needs {reason}: {step.text}" for step, reason in left_out), sep="\n")
    assert Counter(reason for _, reason in left_out) == LEFT_OUT.get(name, {})
    if taken and not re.match(r"mnist-ray (plan )?(train|tune)", taken[0].text):
        shutil.copytree(request.getfixturevalue("results"), "results")
    for step in taken:
        follow(step)


def test_all_pages_are_followed_here_or_elsewhere() -> None:
    assert PAGES.keys() >= ELSEWHERE | NOT_THEIR_PYTHON | RAY | LONG | LEFT_OUT.keys()
    with pytest.raises(KeyError):
        Step("rm -r results").needs()
