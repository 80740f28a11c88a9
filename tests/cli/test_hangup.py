"""A closed terminal ends a command as SIGTERM does, and leaves nothing behind; nohup keeps it running."""

import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from mnist_ray.cli.main import run_command
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.storage.storage import open_storage
from tests.support.processes import wait_until_gone, with_variable
from tests.support.terminals import Terminal
from tests.support.warm_processes import launched, wait

ROOT = Path(__file__).parents[2]
MNIST_RAY = [sys.executable, "-m", "mnist_ray"]
TRAIN = ["train", "--dataset", "digits", "--epochs", "500", "--name", "a"]
TUNE = ["tune", "--grid", "smoke", "--dataset", "digits", "--seeds", "8", "--epochs", "500", "--name", "g"]

pytestmark = pytest.mark.fault


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for all temporary files, with a short name for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="hup", dir="/tmp") as folder:
        yield Path(folder)


def environment(temporary: Path) -> dict[str, str]:
    more = {"TMPDIR": str(temporary), "RAY_TMPDIR": str(temporary), "OMP_NUM_THREADS": "1", "TERM": "xterm"}
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def left_in(temporary: Path) -> list[str]:
    return [path.name for path in temporary.iterdir() if path.name.startswith(("ray-", "mnist-ray"))]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        TRAIN,
        pytest.param([*TRAIN, "--num-workers", "2"], marks=[pytest.mark.ray, pytest.mark.series]),
        pytest.param(TUNE, marks=[pytest.mark.ray, pytest.mark.series]),
    ],
    ids=["train", "train on workers", "tune"],
)
def test_a_closed_terminal_ends_a_command_with_129_and_leaves_nothing_behind(
    tmp_path: Path, temporary: Path, arguments: list[str]
) -> None:
    command = [*MNIST_RAY, *arguments, "--storage", str(tmp_path)]
    with Terminal(*command, environment=environment(temporary)) as terminal:
        terminal.read_until(lambda _: list(tmp_path.glob("runs/*/checkpoints/*/checkpoint.json")))
        terminal.close()
        assert terminal.wait() == 129
    wait_until_gone(lambda: with_variable(f"TMPDIR={temporary}"))
    assert left_in(temporary) == []
    if arguments == TRAIN:
        # Ray ends its workers in the middle of a write.
        assert list(tmp_path.glob(".staging/*")) == []
    run = next(path.parents[2].name for path in tmp_path.glob("runs/*/checkpoints/*/checkpoint.json"))
    state = RunFolder(open_storage(str(tmp_path)), run).latest_state()
    assert state is not None
    assert state.history


def test_sighup_says_what_the_same_command_does(tmp_path: Path) -> None:
    with launched(*TRAIN, "--storage", str(tmp_path)) as (process, errors):
        while "epoch 2/500" not in errors.readline():
            assert process.is_alive()
        assert process.pid is not None
        os.kill(process.pid, signal.SIGHUP)
        rest = errors.read()
        assert wait(process) == 129, rest
    assert rest.splitlines()[-1] == "mnist-ray: hung up; the same command goes on"
    assert "Traceback" not in rest


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", ["1", pytest.param("2", marks=[pytest.mark.ray, pytest.mark.series])])
def test_nohup_keeps_a_command_running_when_its_terminal_is_closed(
    tmp_path: Path, temporary: Path, num_workers: str
) -> None:
    train = ["train", "--dataset", "digits", "--epochs", "60", "--name", "a", "--num-workers", num_workers]
    command = [*MNIST_RAY, *train, "--storage", str(tmp_path / "results")]
    # nohup leaves standard error on the terminal if it is sent there on purpose: what is written to it is dropped.
    script = f'cd {tmp_path}; nohup "$@" > nohup.out & wait'
    with Terminal(*command, environment=environment(temporary), leader=script) as terminal:
        terminal.read_until(lambda _: list(tmp_path.glob("results/runs/a/checkpoints/*/checkpoint.json")))
        terminal.close()
        assert terminal.wait() == -signal.SIGHUP
        wait_until_gone(lambda: with_variable(f"TMPDIR={temporary}"), seconds=120)
    assert "a is finished: best of 60 epochs" in (tmp_path / "nohup.out").read_text()
    assert left_in(temporary) == []


def test_a_terminal_that_is_gone_is_no_error(tmp_path: Path, temporary: Path) -> None:
    # disown, so to speak: no signal comes, and standard output is the terminal too.
    command = [*MNIST_RAY, "train", "--dataset", "digits", "--epochs", "3", "--name", "a", "--storage", str(tmp_path)]
    script = 'trap "" HUP; "$@"; echo $? > "$TMPDIR/code"'
    with Terminal(*command, environment=environment(temporary), leader=script) as terminal:
        terminal.read_until(lambda text: "epoch 1/3" in text)
        terminal.close()
        terminal.wait()
    assert (temporary / "code").read_text() == "0\n"
    assert run_command(["evaluate", "--run", "a", "--no-report", "--storage", str(tmp_path)]) == 0
