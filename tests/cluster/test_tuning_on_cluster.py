"""The tuning job on a cluster: grids that are extended, searched, ended early, and trained in other ways."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
import torch

from tests.support.grid_runs import train_without_ray, weights
from tests.support.processes import descendants, written_so_far
from tests.support.ray_head import RayHead, ray_head

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head() as running:
        yield running


def environment(head: RayHead) -> dict[str, str]:
    """What Ray gives the entry point of a job on the head."""
    return {**head.environment, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": head.gcs_address}


def tune(head: RayHead, storage: Path, *more: str, grid: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "jobs/tune.py", *grid, "--storage", str(storage), *more]
    return subprocess.run(command, env=environment(head), cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_an_extended_grid_trains_only_what_is_new_and_another_grid_of_the_name_is_refused(
    head: RayHead, tmp_path: Path
) -> None:
    small = ["--grid", "smoke", "--name", "g", "--num-workers", "2"]
    first = tune(head, tmp_path, "--seeds", "1", grid=small)
    assert "4 runs, 4 trained now" in first.stdout, first.stderr
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/best/checkpoint.json")}
    more = tune(head, tmp_path, "--seeds", "2", "--dropout", "[0.0, 0.3, 0.5]", "--json", grid=small)
    assert json.loads(more.stdout)["trained"] == 8, more.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    again = tune(head, tmp_path, "--seeds", "2", "--dropout", "[0.0, 0.3, 0.5]", grid=small)
    assert "12 runs, all were done already" in again.stdout
    refused = tune(head, tmp_path, "--seeds", "1", grid=small)
    assert refused.returncode == 6
    assert "8 of its 12 runs are not in this one" in refused.stderr


@pytest.mark.fault
def test_a_run_shared_by_workers_has_the_numbers_of_a_stack_though_a_worker_is_killed(
    head: RayHead, tmp_path: Path
) -> None:
    settings = {"epochs": 20, "precision": "float64", "batch_norm": True, "dropout": 0.3}
    train_without_ray(str(tmp_path / "stacks"), "smoke", seeds="1", **settings)
    command = [sys.executable, "jobs/tune.py", "--grid", "smoke", "--name", "g", "--epochs", "20", "--workers-per-run"]
    command += [
        "2",
        "--precision",
        "float64",
        "--batch-norm",
        "--dropout",
        "0.3",
        "--storage",
        str(tmp_path / "shared"),
    ]
    process = subprocess.Popen(command, env=environment(head), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not written_so_far(tmp_path / "shared", "runs/*/checkpoints/epoch-0002/checkpoint.json"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.kill(descendants(os.getpid(), title=b"RayTrainWorker")[0], signal.SIGKILL)
    _, log = process.communicate(timeout=250)
    assert process.returncode == 0, log
    assert "a worker was lost; its runs go on" in log
    stacked, shared = weights(tmp_path / "stacks"), weights(tmp_path / "shared")
    assert len(stacked) == 1
    assert stacked.keys() == shared.keys()
    for run, tensors in stacked.items():
        for name, value in tensors.items():
            torch.testing.assert_close(shared[run][name], value, rtol=0, atol=1e-9)


def test_asha_stops_runs_a_diverged_run_is_marked_and_the_grid_is_evaluated_without_it(
    head: RayHead, tmp_path: Path
) -> None:
    grid = ["--grid", "smoke", "--name", "g", "--epochs", "9", "--seeds", "3", "--num-workers", "2"]
    done = tune(
        head, tmp_path, "--scheduler", "asha", "--learning-rate", "[0.001, 1.0e+38]", "--no-batch-norm", grid=grid
    )
    assert done.returncode == 0, done.stderr
    rows = duckdb.sql(f"SELECT status, epochs_done, reason FROM '{tmp_path}/grids/g/runs.parquet'").fetchall()
    assert sum(status == "diverged" for status, _, _ in rows) == 6
    stopped = [(epochs, reason) for status, epochs, reason in rows if status == "stopped"]
    assert stopped
    assert all(epochs in (1, 3) and "not among the best" in reason for epochs, reason in stopped)
    decisions = json.loads((tmp_path / "grids/g/asha.json").read_text())
    # Whoever comes to the last rung is done, whatever is decided there.
    assert sum(not decision["goes_on"] and decision["epoch"] < 9 for decision in decisions) == len(stopped)

    arguments = ["evaluate", "--grid", "g", "--dataset", "digits", "--storage", str(tmp_path), "--json"]
    evaluated = subprocess.run(
        [sys.executable, "jobs/evaluate.py", *arguments[1:]],
        env=environment(head),
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert evaluated.returncode == 0, evaluated.stderr
    assert "6 of 12 runs have no checkpoint" in evaluated.stderr
    metrics = json.loads(evaluated.stdout)["metrics"]
    assert len(metrics) == 6
    assert {row["grid"] for row in metrics} == {"g"}


def test_an_error_in_a_worker_ends_the_grid_with_its_line_and_code(head: RayHead, tmp_path: Path) -> None:
    train_without_ray(str(tmp_path), "smoke", seeds="1", epochs=1)
    run = min(path.parts[-3] for path in tmp_path.glob("runs/*/best/checkpoint.json"))
    folder = tmp_path / "runs" / run
    (folder / "best/checkpoint.json").unlink()
    (folder / "checkpoints/epoch-0001/model.safetensors").write_bytes(b"damaged")
    again = tune(head, tmp_path, grid=["--grid", "smoke", "--name", "g", "--epochs", "1"])
    assert again.returncode == 3
    assert f"run '{run}'" in again.stderr.splitlines()[-1]
    assert "SHA-256 differs" in again.stderr.splitlines()[-1]


def test_optuna_goes_on_where_it_stopped_and_takes_only_settings_of_the_ranges(head: RayHead, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    file = tmp_path / "space.yaml"
    file.write_text(
        "dataset: digits\nepochs: 1\ntrain_limit: 300\nhidden_sizes: [[16, 8], [8]]\n"
        "dropout: {uniform: [0.1, 0.4]}\nlearning_rate: {loguniform: [1e-4, 1e-2]}\n"
    )
    grid = ["--grid", str(file), "--name", "g", "--seeds", "2", "--search", "optuna"]
    first = tune(head, tmp_path, "--num-samples", "3", "--json", grid=grid)
    assert json.loads(first.stdout)["trained"] == 6, first.stderr
    more = tune(head, tmp_path, "--num-samples", "5", "--json", grid=grid)
    assert json.loads(more.stdout)["trained"] == 4, more.stderr
    rows = duckdb.sql(
        f"SELECT dropout, learning_rate, count(*) FROM '{tmp_path}/grids/g/runs.parquet' "
        "WHERE status = 'finished' GROUP BY ALL"
    ).fetchall()
    assert len(rows) == 5
    assert all(0.1 <= dropout <= 0.4 and 1e-4 <= rate <= 1e-2 and seeds == 2 for dropout, rate, seeds in rows)
    done = tune(head, tmp_path, "--num-samples", "5", grid=grid)
    assert "all were done already" in done.stdout
