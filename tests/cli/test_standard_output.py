"""Where results are printed to: a full disk is one line with exit code 4, a closed pipe is quiet."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_ray.cli import process
from mnist_ray.config.placement import RAY_JOB_VARIABLE
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.storage.storage import open_storage
from tests.support.doing_lines import without_doing
from tests.support.warm_processes import start, wait

FULL = "error: standard output: No space left on device; what was printed is not complete\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    "arguments",
    [
        ["--version"],
        ["--help"],
        ["train", "--help"],
        ["runs"],
        ["runs", "--json"],
        ["grids", "--json"],
    ],
    ids=" ".join,
)
def test_a_full_disk_under_standard_output_is_one_line_and_exit_code_4(arguments: list[str], tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = run(arguments, tmp_path, stdout=full.fileno())
    assert without_doing(done.stderr) == f"mnist-ray: {FULL}"
    assert done.returncode == 4


def test_a_closed_pipe_under_standard_output_is_quiet(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run(["--help"], tmp_path, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("stdout", ["/dev/full", "/dev/null"])
def test_a_full_disk_under_standard_error_is_exit_code_4(stdout: str, tmp_path: Path) -> None:
    with open(stdout, "wb") as out, open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "mnist_ray", "runs", "--storage", "s3://key:secret@bucket/x"]
        assert subprocess.run(command, cwd=tmp_path, stdout=out, stderr=full, timeout=60, check=False).returncode == 4


@pytest.mark.parametrize(("variables", "expected"), [({}, b"\xff"), ({RAY_JOB_VARIABLE: "{}"}, b"\\udcff")])
def test_the_log_of_a_job_is_utf_8_whatever_is_printed(variables: dict[str, str], expected: bytes) -> None:
    # A locale in which Python passes the byte of a file's name on; Ray can't read a log that has it.
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", **variables}
    code = (
        r"import sys; from mnist_ray.cli.process import _stream; print('\udcff', end='', file=_stream(1, sys.stdout))"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, env=environment, capture_output=True, check=True).stdout == expected


def train_without_standard_streams(storage: str) -> None:
    """Trains as a launcher that was started with `>&- 2>&-`: Python has no streams, and files get their numbers."""
    sys.stdout = sys.stderr = None
    for number in (1, 2):
        os.close(number)
    process.main(["train", "--dataset", "digits", "--hidden-sizes", "8", "--epochs", "1", "--name", "a",
                  "--storage", storage])  # fmt: skip


def test_closed_standard_streams_change_no_result(tmp_path: Path) -> None:
    assert wait(start(train_without_standard_streams, str(tmp_path))) == 0
    assert RunFolder(open_storage(str(tmp_path)), "a").best().history


def run(arguments: list[str], folder: Path, *, stdout: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mnist_ray", *arguments]
    return subprocess.run(
        command, cwd=folder, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
