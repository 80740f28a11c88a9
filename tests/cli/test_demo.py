"""The demo from end to end, and the commands that it suggests."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_ray.cli.demo import next_commands
from mnist_ray.cli.main import run_command


@pytest.mark.usefixtures("blank_charts")
def test_the_demo_leaves_a_committed_evaluation_and_its_next_commands_can_be_typed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    storage = str(tmp_path / "it's here")
    assert run_command(["demo", "--epochs", "2", "--seeds", "1", "--storage", storage]) == 0
    shown = capfd.readouterr().out
    assert "Before and after regularization: digits, 355 test images, 1 seeds" in shown
    assert "weighted avg" in shown
    # Of one seed there is no range.
    assert not re.search(r"(\d\.\d{4})-\1", shown)
    assert re.search(r" baseline .* \d\.\d{4} +- +\+0\.00 ", shown)
    (evaluation,) = Path(storage, "evaluations").iterdir()
    assert (evaluation / "_SUCCESS").is_file()

    on_mnist, grid, query = next_commands(str(evaluation), storage)
    assert on_mnist in shown
    assert "--dataset mnist" in on_mnist
    # As a shell divides it.
    assert run_command(shlex.split(grid.replace("mnist-ray tune", "plan tune", 1))) == 0
    assert "96 runs" in capfd.readouterr().out
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(query, shell=True, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "dropout_batchnorm" in done.stdout
