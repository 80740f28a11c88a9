"""Grids that lose a worker, or are interrupted."""

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
from tests.support.ray_jobs import Step, run_job

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
GRID = ["--grid", "smoke", "--seeds", "1", "--epochs", "40", "--name", "g", "--num-workers", "2"]

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.fault]


def mnist_ray(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mnist_ray", *arguments]


def epochs_written(storage: Path, epoch: str = "0003") -> list[str]:
    return written_so_far(storage, f"runs/*/checkpoints/epoch-{epoch}/checkpoint.json")


def workers_under(pid: int) -> list[int]:
    return descendants(pid, title=b"ray::ImplicitFunc")


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
    train_without_ray(str(storage), "smoke", seeds="1", epochs=40)
    return weights(storage)


def test_a_grid_that_lost_a_worker_for_good_goes_on_by_the_same_command_and_bears_the_loss_of_another(
    shared_head: RayHead, tmp_path: Path, expected: dict[str, Mapping[str, torch.Tensor]]
) -> None:
    def loss() -> Step:
        """A worker is killed once this job has written an epoch."""
        before = set(epochs_written(tmp_path, "*"))
        return (
            lambda _: set(epochs_written(tmp_path, "*")) - before and workers_under(shared_head.pid),
            lambda workers: os.kill(workers[0], signal.SIGKILL),
        )

    tune = ["tune", *GRID, "--storage", str(tmp_path)]
    lost = run_job(shared_head, *tune, "--max-failures", "0", steps=[loss()])
    assert lost.code == 7, lost.log
    assert "runs are not finished" in lost.log.splitlines()[-1]
    done_before = modification_times(tmp_path)
    assert 0 < len(done_before) < 4
    done = run_job(shared_head, *tune, steps=[loss()])
    assert done.code == 0, done.log
    assert "a worker was lost; its runs go on" in done.log
    assert modification_times(tmp_path).items() >= done_before.items()
    assert_same_runs(tmp_path, expected)
    # The command is the person's, not the worker's.
    for path in tmp_path.glob("runs/*/best/checkpoint.json"):
        lineage = json.loads(path.read_text())["lineage"]
        assert lineage["command_line"].startswith("mnist-ray tune --grid smoke --seeds 1")


@pytest.mark.series
def test_the_same_command_goes_on_with_a_grid_that_was_stopped(
    shared_head: RayHead, tmp_path: Path, expected: dict[str, Mapping[str, torch.Tensor]]
) -> None:
    command = mnist_ray("tune", *GRID, "--storage", str(tmp_path))
    with subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while not epochs_written(tmp_path):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        workers = workers_under(process.pid)
        process.send_signal(signal.SIGINT)
        output, log = process.communicate(timeout=100)
    assert process.returncode == 130, log
    assert "the same command goes on" in log.splitlines()[-1]
    assert "Traceback" not in log
    # Ray's own messages don't mix with the results.
    assert "raylet" not in output
    assert [pid for pid in workers if Path(f"/proc/{pid}").exists()] == []
    done_before = modification_times(tmp_path)
    assert len(done_before) < 4
    done = run_job(shared_head, "tune", *GRID, "--storage", str(tmp_path))
    assert done.code == 0, done.log
    assert modification_times(tmp_path).items() >= done_before.items()
    assert_same_runs(tmp_path, expected)


def modification_times(storage: Path) -> dict[Path, int]:
    """Returns when each finished run was written."""
    return {path: path.stat().st_mtime_ns for path in storage.glob("runs/*/best/checkpoint.json")}
