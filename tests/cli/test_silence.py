"""What a command says before it has a result: a line at once, then what it does; on a terminal something moves."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from mnist_ray.cli.main import run_command
from tests.support.grid_runs import train_without_ray
from tests.support.terminals import Terminal

ROOT = Path(__file__).parents[2]
MNIST_RAY = [sys.executable, "-m", "mnist_ray"]
# Small batches, so that an epoch takes longer than it takes to draw a row.
TRAIN = ["train", "--dataset", "digits", "--epochs", "3", "--global-batch-size", "2", "--hidden-sizes", "64"]
COUNTS = "1299 training, 143 validation (validation_fraction 0.1, per class) images"
DATASET = [
    f"dataset digits: 10 classes (0, 1, 2, 3, 4 and 5 more); {COUNTS}",
    "dataset digits: 1442 images of 8x8 grey -> 28x28 grey; the last batch of an epoch has 3 images (global batch 2)",
]
TESTED = "dataset digits: 10 classes (0, 1, 2, 3, 4 and 5 more); 355 test images"


def environment(**more: str) -> Mapping[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "xterm-256color", **more}


def on_terminal(*arguments: str, storage: Path, columns: int = 200, **more: str) -> Terminal:
    command = [*MNIST_RAY, *arguments, "--storage", str(storage)]
    return Terminal(*command, environment=environment(**more), columns=columns)


def in_pipe(*arguments: str, storage: Path) -> subprocess.CompletedProcess[str]:
    command = [*MNIST_RAY, *arguments, "--storage", str(storage)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with a run, a, and a grid of four runs, g."""
    storage = tmp_path_factory.mktemp("results")
    train = ["train", "--dataset", "digits", "--epochs", "1", "--hidden-sizes", "8", "--name", "a"]
    assert run_command([*train, "--storage", str(storage)]) == 0
    train_without_ray(str(storage), "smoke", seeds="1", epochs=1)
    return storage


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["train", "--dataset", "digits"], "loading digits"),
        (["train", "--dataset", "folder:/data/photos/"], "reading the images of photos"),
        (["tune", "--grid", "smoke", "--dataset", "digits"], "loading digits"),
        (["tune", "--grid", "smoke", "--set", "dataset=[digits,mnist]"], "loading digits, mnist"),
        (["plan", "train", "--dataset", "digits"], "loading digits"),
        (["plan", "tune", "--grid", "smoke"], "loading digits"),
        (["evaluate", "--run", "a", "--run", "b"], "reading runs a, b"),
        (["evaluate", "--grid", "g"], "reading grid g"),
        (["evaluate", "--all-runs"], "reading all runs"),
        (["predict", "--run", "a", "--images", "photos"], "reading run a"),
        (["reproduce", "a"], "reading run a"),
        (["export", "a", "--to", "onnx"], "reading run a"),
        (["report", "latest"], "reading evaluation latest"),
        (["compare", "latest"], "reading evaluation latest"),
        (["publish", "--to", "delta"], "reading the evaluations in STORAGE"),
        (["prune"], "looking for what STORAGE can do without"),
        (["demo"], "training three variants on digits, then evaluating them"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_the_first_line_is_there_before_anything_slow_is_imported(
    tmp_path: Path, arguments: list[str], line: str
) -> None:
    # Stand-ins that end the process when they are imported.
    for name in ("torch", "ray", "scipy", "sklearn", "matplotlib", "deltalake", "pyiceberg"):
        package = tmp_path / "slow" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(f"import os\nos.write(2, b'{name} is imported\\n')\nos._exit(99)\n")
    storage = tmp_path / "results"
    command = [*MNIST_RAY, *arguments, "--storage", str(storage)]
    path = os.pathsep.join([str(tmp_path / "slow"), str(ROOT)])
    done = subprocess.run(
        command, env=environment(PYTHONPATH=path), capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "" or arguments == ["prune"]
    assert done.stderr.splitlines()[0] == line.replace("STORAGE", str(storage))
    # Pruning needs nothing slow.
    assert done.returncode == (0 if arguments == ["prune"] else 99), done.stderr


series = pytest.mark.series


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["runs"], "reading the runs in STORAGE"),
        pytest.param(["grids"], "reading the grids in STORAGE", marks=series),
        pytest.param(["evaluations"], "reading the evaluations in STORAGE", marks=series),
        pytest.param(["show", "a"], "reading run a in STORAGE", marks=series),
        pytest.param(["query", "SELECT run FROM metrics"], "querying STORAGE", marks=series),
        (["rm", "run", "a"], "looking in STORAGE for what goes"),
        (["jobs", "list"], "connecting to ADDRESS"),
        pytest.param(["jobs", "delete", "a"], "connecting to ADDRESS", marks=series),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_a_quick_command_that_waits_says_for_what(arguments: list[str], line: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as never_answers:
        address = f"http://127.0.0.1:{never_answers.getsockname()[1]}"
        where = ["--address", address] if arguments[0] == "jobs" else ["--storage", "s3://results/a"]
        keys = {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "a"}
        command = [*MNIST_RAY, *arguments, *where]
        with subprocess.Popen(command, env=environment(**keys), stderr=subprocess.PIPE, text=True) as waiting:
            assert waiting.stderr is not None
            first = waiting.stderr.readline()
            waiting.terminate()
    assert first == line.replace("STORAGE", "s3://results/a").replace("ADDRESS", address) + "\n"


def test_a_terminal_shows_a_row_within_each_epoch_and_keeps_the_lines_of_a_log(tmp_path: Path) -> None:
    # An epoch of so large a network takes longer than the terminal takes to show a row.
    train = [*TRAIN, "--hidden-sizes", "512,64", "--name", "a"]
    with on_terminal(*train, storage=tmp_path / "on terminal") as terminal:
        text = terminal.read_all()
        assert terminal.wait() == 0
        screen = terminal.screen
    rows = re.findall(r" (\d+)% epoch (\d)/3: loss (\d\.\d{4}), (\d+:\d\d) left for all epochs", text)
    assert {int(epoch) for _, epoch, _, _ in rows} <= {1, 2, 3}
    assert any(0 < int(share) < 100 for share, _, _, _ in rows)
    logged = in_pipe(*train, storage=tmp_path / "in pipe")
    assert logged.returncode == 0
    lines = logged.stderr.splitlines()
    assert lines[:4] == screen[:4] == ["loading digits", *DATASET, "training a on cpu"]
    # The row is gone, and the epochs' lines stand there, without the run's name.
    epochs = [without_pace(line.removeprefix("a: ")) for line in lines[4:]]
    assert epochs == [without_pace(line) for line in screen[4:7]]
    assert [line.partition("  ")[0] for line in epochs] == [f"epoch {epoch}/3" for epoch in (1, 2, 3)]
    assert [line.replace("in pipe", "on terminal") for line in logged.stdout.splitlines()] == screen[7:]


def without_pace(line: str) -> str:
    return line.rpartition("  ")[0]


def test_a_terminal_and_a_log_show_how_far_an_evaluation_is(trained: Path) -> None:
    arguments = ["evaluate", "--grid", "g", "--batch-size", "1", "--no-report"]
    with on_terminal(*arguments, "--name", "one", storage=trained) as terminal:
        text = terminal.read_all()
        assert terminal.wait() == 0
        screen = terminal.screen
    counts = {int(count) for count in re.findall(r"% (\d+) of 355 images evaluated", text)}
    # How many it is at between two looks depends on the machine.
    assert counts
    assert counts <= {*range(356)}
    said = ["reading grid g", TESTED, "evaluating 4 runs on 355 test images"]
    assert screen[:3] == said
    logged = in_pipe(*arguments, "--name", "two", storage=trained)
    assert logged.returncode == 0
    assert logged.stderr.splitlines() == said


def test_a_terminal_and_a_log_show_how_far_a_prediction_is(trained: Path, tmp_path: Path) -> None:
    for number in range(40):
        Image.new("L", (28, 28), number).save(tmp_path / f"{number}.png")
    arguments = ["predict", "--run", "a", "--images", str(tmp_path), "--polarity", "as-trained"]
    with on_terminal(*arguments, "--name", "one", storage=trained) as terminal:
        text = terminal.read_all()
        assert terminal.wait() == 0
        screen = terminal.screen
    assert re.search(r" \d+ images predicted", text.partition(" images predicted, ")[0])
    assert screen[:2] == ["reading run a", f"predicting images={tmp_path}"]
    logged = in_pipe(*arguments, "--name", "two", "--json", storage=trained)
    assert json.loads(logged.stdout)["num_images"] == 40
    assert logged.stderr.splitlines()[:2] == screen[:2]


def test_json_is_pure_while_a_row_moves(trained: Path, tmp_path: Path) -> None:
    with open(tmp_path / "json", "wb") as file:
        command = [*MNIST_RAY, "evaluate", "--run", "a", "--json", "--name", "json", "--storage", str(trained)]
        with Terminal(*command, environment=environment(), stdout=file.fileno()) as terminal:
            text = terminal.read_all()
            assert terminal.wait() == 0
    assert "drawing the report" in text
    assert json.loads((tmp_path / "json").read_text())["evaluation"] == "json"


def test_ctrl_c_leaves_a_line_and_the_cursor(tmp_path: Path) -> None:
    with on_terminal(*TRAIN, "--epochs", "500", "--name", "a", storage=tmp_path) as terminal:
        terminal.read_until(lambda text: "epoch 2/500: loss" in text)
        terminal.type("\x03")
        terminal.read_all()
        assert terminal.wait() == 130
        assert terminal.screen[-1] == "mnist-ray: stopped; the same command goes on"
        assert "epoch 3/500: loss" not in "\n".join(terminal.screen)
    assert terminal.raw.rfind("\x1b[?25h") > terminal.raw.rfind("\x1b[?25l")


def test_a_dumb_terminal_is_a_log_and_no_color_has_none(trained: Path) -> None:
    arguments = ["evaluate", "--run", "a", "--no-report"]
    with on_terminal(*arguments, "--name", "dumb", storage=trained, TERM="dumb") as terminal:
        terminal.read_all()
        assert terminal.wait() == 0
    assert "\x1b" not in terminal.raw
    with on_terminal(*arguments, "--name", "plain", storage=trained, NO_COLOR="1") as terminal:
        terminal.read_all()
        assert terminal.wait() == 0
    assert "images evaluated" in terminal.text
    assert set(re.findall(r"\x1b\[[0-9;]*m", terminal.raw)) <= {"\x1b[0m", "\x1b[1m", "\x1b[2m"}


@pytest.mark.ray
@pytest.mark.slow
def test_a_grid_shows_a_row_of_its_epochs_and_the_best_setting(tmp_path: Path) -> None:
    arguments = ["tune", "--grid", "smoke", "--dataset", "digits", "--name", "g"]
    with on_terminal(*arguments, storage=tmp_path) as terminal:
        text = terminal.read_all()
        assert terminal.wait() == 0
        screen = terminal.screen
    assert "% 0/4 runs done" in text
    assert screen[3:5] == ["starting Ray (about 10 s)", "training grid g, 2 stacks of runs at a time"]
    setting = r"dropout 0, no bn|dropout 0\.3|bn|bn, dropout 0\.3"
    assert re.fullmatch(rf"4/4 runs done, best 0\.\d{{4}} \(({setting})\), [\d.]+ runs/min", screen[5])


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.series
def test_workers_show_how_far_an_epoch_is_too(tmp_path: Path) -> None:
    with on_terminal(*TRAIN, "--name", "a", "--num-workers", "2", storage=tmp_path) as terminal:
        text = terminal.read_all()
        assert terminal.wait() == 0
        screen = terminal.screen
    assert "starting Ray (about 10 s)" in screen
    assert "training a on 2 workers, to be started first (about 10 s)" in screen
    rows = re.findall(r" (\d+)% epoch \d/3: loss (\d\.\d{4})", text)
    assert any(0 < int(share) < 100 for share, _ in rows)
    # Rank 0 has half of each batch, which is what it tells the loss of.
    assert all(0 < float(loss) < 4 for _, loss in rows)
