"""The tuning job on a Ray of its own: grids that lose a worker, or are interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import duckdb
import pytest
import torch

from tests.support.grid_runs import train_without_ray, weights
from tests.support.processes import descendants, written_so_far
from tests.support.ray_head import RayHead
from tests.support.ray_jobs import run_job

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
GRID = ["--grid", "smoke", "--seeds", "2", "--epochs", "40", "--name", "g", "--num-workers", "2"]

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.fault]


def mnist_ray(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mnist_ray", *arguments]


def start_and_wait_for_an_epoch(storage: Path, *more: str) -> subprocess.Popen[str]:
    command = mnist_ray("tune", *GRID, "--storage", str(storage), *more)
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not written_so_far(storage, "runs/*/checkpoints/epoch-0003/checkpoint.json"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return process


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    return descendants(process.pid, title=b"ray::ImplicitFunc")


def assert_same_runs(storage: Path, expected: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """The same runs, each once in runs.parquet, with the same bits."""
    found = weights(storage)
    assert found.keys() == expected.keys()
    for run, tensors in found.items():
        assert all(torch.equal(value, expected[run][name]) for name, value in tensors.items()), run
    rows = duckdb.sql(f"SELECT run, status FROM '{storage}/grids/g/runs.parquet'").fetchall()
    assert sorted(rows) == [(run, "finished") for run in sorted(expected)]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Mapping[str, torch.Tensor]]:
    storage = tmp_path_factory.mktemp("uninterrupted")
    train_without_ray(str(storage), "smoke", seeds="2", epochs=40)
    return weights(storage)


def test_a_grid_whose_worker_is_killed_ends_as_if_it_had_not_been(
    tmp_path: Path, expected: dict[str, Mapping[str, torch.Tensor]]
) -> None:
    process = start_and_wait_for_an_epoch(tmp_path)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    output, log = process.communicate(timeout=200)
    assert process.returncode == 0, log
    assert "a worker was lost; its runs go on" in log
    assert "Traceback" not in log
    # What Ray says of the worker does not mix with the results.
    assert "raylet" not in output
    assert_same_runs(tmp_path, expected)
    # The command is the person's, not the worker's.
    for path in tmp_path.glob("runs/*/best/checkpoint.json"):
        lineage = json.loads(path.read_text())["lineage"]
        assert lineage["command_line"].startswith("python -m mnist_ray tune --grid smoke --seeds 2")


def test_the_same_command_goes_on_with_a_grid_that_lost_a_worker_for_good(
    shared_head: RayHead, tmp_path: Path, expected: dict[str, Mapping[str, torch.Tensor]]
) -> None:
    process = start_and_wait_for_an_epoch(tmp_path, "--max-failures", "0")
    os.kill(workers_of(process)[0], signal.SIGKILL)
    _, log = process.communicate(timeout=200)
    assert process.returncode == 7, log
    assert "runs are not finished" in log.splitlines()[-1]
    assert list(tmp_path.glob("runs/*/best/checkpoint.json"))
    goes_on(shared_head, tmp_path, expected)


@pytest.mark.series
def test_the_same_command_goes_on_with_a_grid_that_was_stopped(
    shared_head: RayHead, tmp_path: Path, expected: dict[str, Mapping[str, torch.Tensor]]
) -> None:
    process = start_and_wait_for_an_epoch(tmp_path)
    workers = workers_of(process)
    process.send_signal(signal.SIGINT)
    _, log = process.communicate(timeout=100)
    assert process.returncode == 130, log
    assert "the same command goes on" in log.splitlines()[-1]
    assert "Traceback" not in log
    assert [pid for pid in workers if Path(f"/proc/{pid}").exists()] == []
    goes_on(shared_head, tmp_path, expected)


def goes_on(head: RayHead, storage: Path, expected: dict[str, Mapping[str, torch.Tensor]]) -> None:
    """Runs the command once more, and compares with a grid that was never interrupted."""
    done_before = {path: path.stat().st_mtime_ns for path in storage.glob("runs/*/best/checkpoint.json")}
    assert len(done_before) < 8
    done = run_job(head, "tune", *GRID, "--storage", str(storage))
    assert done.code == 0, done.log
    assert_same_runs(storage, expected)
    assert {path: path.stat().st_mtime_ns for path in done_before} == done_before
