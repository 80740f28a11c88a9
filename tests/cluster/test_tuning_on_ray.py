"""The tuning job on a real Ray: grids that are interrupted, extended, and trained in other ways."""

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
from processes import descendants
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
GRID = ["--grid", "smoke", "--seeds", "2", "--epochs", "40", "--name", "g", "--num-workers", "2"]

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def mnist_ray(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mnist_ray", *arguments]


def tune(storage: Path, *more: str, grid: list[str] = GRID) -> subprocess.CompletedProcess[str]:
    command = mnist_ray("tune", *grid, "--storage", str(storage), *more)
    return subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=300)


def start_and_wait_for_an_epoch(storage: Path, *more: str) -> subprocess.Popen[str]:
    command = mnist_ray("tune", *GRID, "--storage", str(storage), *more)
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(storage.glob("runs/*/checkpoints/epoch-0003/checkpoint.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    return process


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    return descendants(process.pid, title=b"ray::ImplicitFunc")


def weights(storage: Path) -> dict[str, Mapping[str, torch.Tensor]]:
    return {path.parts[-3]: load_file(path) for path in storage.glob("runs/*/best/model.safetensors")}


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
    done = tune(storage)
    assert done.returncode == 0, done.stderr
    assert "8 runs, 8 trained now" in done.stdout
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


def test_the_same_command_goes_on_with_a_grid_that_lost_a_worker_for_good_or_was_stopped(
    tmp_path: Path, expected: dict[str, Mapping[str, torch.Tensor]]
) -> None:
    process = start_and_wait_for_an_epoch(tmp_path, "--max-failures", "0")
    os.kill(workers_of(process)[0], signal.SIGKILL)
    _, log = process.communicate(timeout=200)
    assert process.returncode == 7, log
    assert "runs are not finished" in log.splitlines()[-1]
    done_before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/best/checkpoint.json")}
    assert 0 < len(done_before) < 8

    process = subprocess.Popen(
        mnist_ray("tune", *GRID, "--storage", str(tmp_path)), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    while not workers_of(process):
        assert process.poll() is None
        time.sleep(0.05)
    workers = workers_of(process)
    process.send_signal(signal.SIGINT)
    _, log = process.communicate(timeout=100)
    assert process.returncode == 130, log
    assert "the same command goes on" in log.splitlines()[-1]
    assert "Traceback" not in log
    assert [pid for pid in workers if Path(f"/proc/{pid}").exists()] == []

    done = tune(tmp_path)
    assert done.returncode == 0, done.stderr
    assert_same_runs(tmp_path, expected)
    assert {path: path.stat().st_mtime_ns for path in done_before} == done_before


def test_an_extended_grid_trains_only_what_is_new_and_another_grid_of_the_name_is_refused(tmp_path: Path) -> None:
    small = ["--grid", "smoke", "--name", "g", "--num-workers", "2"]
    first = tune(tmp_path, "--seeds", "1", grid=small)
    assert "4 runs, 4 trained now" in first.stdout, first.stderr
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/best/checkpoint.json")}
    more = tune(tmp_path, "--seeds", "2", "--dropout", "[0.0, 0.3, 0.5]", "--json", grid=small)
    assert json.loads(more.stdout)["trained"] == 8, more.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    again = tune(tmp_path, "--seeds", "2", "--dropout", "[0.0, 0.3, 0.5]", grid=small)
    assert "12 runs, all were done already" in again.stdout
    refused = tune(tmp_path, "--seeds", "1", grid=small)
    assert refused.returncode == 6
    assert "8 of its 12 runs are not in this one" in refused.stderr


def test_runs_shared_by_workers_give_the_numbers_of_stacks(tmp_path: Path) -> None:
    float64 = ["--grid", "smoke", "--name", "g", "--precision", "float64", "--batch-norm"]
    assert tune(tmp_path / "stacks", grid=float64).returncode == 0
    done = tune(tmp_path / "shared", "--workers-per-run", "2", grid=float64)
    assert done.returncode == 0, done.stderr
    stacked, shared = weights(tmp_path / "stacks"), weights(tmp_path / "shared")
    assert stacked.keys() == shared.keys()
    for run, tensors in stacked.items():
        for name, value in tensors.items():
            torch.testing.assert_close(shared[run][name], value, rtol=0, atol=1e-9)


def test_asha_stops_runs_a_diverged_run_is_marked_and_the_grid_is_evaluated_without_it(tmp_path: Path) -> None:
    grid = ["--grid", "smoke", "--name", "g", "--epochs", "9", "--seeds", "3", "--num-workers", "2"]
    done = tune(tmp_path, "--scheduler", "asha", "--learning-rate", "[0.001, 1.0e+38]", "--no-batch-norm", grid=grid)
    assert done.returncode == 0, done.stderr
    rows = duckdb.sql(f"SELECT status, epochs_done, reason FROM '{tmp_path}/grids/g/runs.parquet'").fetchall()
    assert sum(status == "diverged" for status, _, _ in rows) == 6
    stopped = [(epochs, reason) for status, epochs, reason in rows if status == "stopped"]
    assert stopped
    assert all(epochs in (1, 3, 9) and "not among the best" in reason for epochs, reason in stopped)
    decisions = json.loads((tmp_path / "grids/g/asha.json").read_text())
    assert sum(not decision["goes_on"] for decision in decisions) == len(stopped)

    arguments = ["evaluate", "--grid", "g", "--dataset", "digits", "--storage", str(tmp_path), "--json"]
    evaluated = subprocess.run(mnist_ray(*arguments), env=ENVIRONMENT, capture_output=True, text=True, timeout=100)
    assert evaluated.returncode == 0, evaluated.stderr
    assert "6 of 12 runs have no checkpoint" in evaluated.stderr
    metrics = json.loads(evaluated.stdout)["metrics"]
    assert len(metrics) == 6
    assert {row["grid"] for row in metrics} == {"g"}


def test_an_error_in_a_worker_ends_the_grid_with_its_line_and_code(tmp_path: Path) -> None:
    done = tune(tmp_path, "--seeds", "1", "--epochs", "1")
    assert done.returncode == 0, done.stderr
    run = min(path.parts[-3] for path in tmp_path.glob("runs/*/best/checkpoint.json"))
    folder = tmp_path / "runs" / run
    (folder / "best/checkpoint.json").unlink()
    (folder / "checkpoints/epoch-0001/model.safetensors").write_bytes(b"damaged")
    again = tune(tmp_path, "--seeds", "1", "--epochs", "1")
    assert again.returncode == 3
    assert f"run '{run}'" in again.stderr.splitlines()[-1]
    assert "SHA-256 differs" in again.stderr.splitlines()[-1]


def test_optuna_goes_on_where_it_stopped_and_takes_only_settings_of_the_ranges(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    file = tmp_path / "space.yaml"
    file.write_text(
        "dataset: digits\nepochs: 1\ntrain_limit: 300\nhidden_sizes: [[16, 8], [8]]\n"
        "dropout: {uniform: [0.1, 0.4]}\nlearning_rate: {loguniform: [1e-4, 1e-2]}\n"
    )
    grid = ["--grid", str(file), "--name", "g", "--seeds", "2", "--search", "optuna"]
    first = tune(tmp_path, "--num-samples", "3", "--json", grid=grid)
    assert json.loads(first.stdout)["trained"] == 6, first.stderr
    more = tune(tmp_path, "--num-samples", "5", "--json", grid=grid)
    assert json.loads(more.stdout)["trained"] == 4, more.stderr
    rows = duckdb.sql(
        f"SELECT dropout, learning_rate, count(*) FROM '{tmp_path}/grids/g/runs.parquet' "
        "WHERE status = 'finished' GROUP BY ALL"
    ).fetchall()
    assert len(rows) == 5
    assert all(0.1 <= dropout <= 0.4 and 1e-4 <= rate <= 1e-2 and seeds == 2 for dropout, rate, seeds in rows)
    done = tune(tmp_path, "--num-samples", "5", grid=grid)
    assert "all were done already" in done.stdout
