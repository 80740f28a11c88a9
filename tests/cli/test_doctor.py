"""What `mnist-ray doctor` says, and the exit code that a script sees."""

import gzip
from pathlib import Path

import pytest

from mnist_ray.cli.main import run_command


def doctor(data_dir: Path, storage: str) -> int:
    return run_command(["doctor", "--data-dir", str(data_dir), "--storage", storage])


def test_a_machine_without_mnist_is_healthy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(tmp_path, str(tmp_path / "s")) == 0
    printed = capsys.readouterr().out
    assert f"ok data no MNIST in {tmp_path}: the first run downloads it" in " ".join(printed.split())
    lines = printed.splitlines()
    assert all(len(line) <= 100 or str(tmp_path) in line for line in lines)
    # A line that goes on is indented.
    assert {line[:14] for line in lines if not line.startswith(("ok ", "FAIL"))} <= {" " * 14}
    assert "FAIL" not in printed


def test_a_damaged_mnist_is_a_failure_of_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"no digits"))
    assert doctor(tmp_path, str(tmp_path / "s")) == 3
    said = " ".join(capsys.readouterr().out.split())
    assert f"FAIL data {tmp_path}/train-images-idx3-ubyte.gz: starts with" in said


def test_a_storage_that_cannot_be_written_is_told_with_its_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor(tmp_path, "/dev/null/x") == 4
    assert "FAIL storage" in capsys.readouterr().out
