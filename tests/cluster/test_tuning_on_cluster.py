"""The tuning job on a cluster: grids that are extended, searched, ended early, and trained in other ways."""

import json
import os
import signal
from pathlib import Path

import duckdb
import pytest
import torch

from tests.support.grid_runs import train_without_ray, weights
from tests.support.processes import descendants, written_so_far
from tests.support.ray_head import RayHead
from tests.support.ray_jobs import Step, run_here, run_job

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_an_extended_grid_trains_only_what_is_new_and_another_grid_of_the_name_is_refused(
    shared_head: RayHead, tmp_path: Path
) -> None:
    train_without_ray(str(tmp_path), "smoke", seeds="1")
    tune = ["tune", "--grid", "smoke", "--name", "g", "--num-workers", "1", "--storage", str(tmp_path)]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/best/checkpoint.json")}
    assert len(before) == 4
    extended = [*tune, "--seeds", "2", "--dropout", "[0.0, 0.3, 0.5]"]
    more = run_job(shared_head, *extended, "--json")
    assert json.loads(more.output)["trained"] == 8, more.log
    assert {path: path.stat().st_mtime_ns for path in before} == before
    again = run_job(shared_head, *extended)
    assert "12 runs, all were done already" in again.output
    refused = run_job(shared_head, *tune, "--seeds", "1")
    assert refused.code == 6
    assert "exists with other settings (" in refused.log


@pytest.mark.fault
@pytest.mark.series
def test_a_run_shared_by_workers_has_the_numbers_of_a_stack_though_a_worker_is_killed(
    shared_head: RayHead, tmp_path: Path
) -> None:
    settings = {"epochs": 20, "precision": "float64", "batch_norm": True, "dropout": 0.3}
    train_without_ray(str(tmp_path / "stacks"), "smoke", seeds="1", **settings)
    tune = ["tune", "--grid", "smoke", "--name", "g", "--epochs", "20", "--workers-per-run", "2"]
    tune += ["--precision", "float64", "--batch-norm", "--dropout", "0.3", "--storage", str(tmp_path / "shared")]
    loss: Step = (
        lambda _: (
            written_so_far(tmp_path / "shared", "runs/*/checkpoints/epoch-0002/checkpoint.json")
            and descendants(shared_head.pid, title=b"RayTrainWorker")
        ),
        lambda workers: os.kill(workers[0], signal.SIGKILL),
    )
    done = run_job(shared_head, *tune, steps=[loss])
    assert done.code == 0, done.log
    assert "a worker was lost; its runs go on" in done.log
    stacked, shared = weights(tmp_path / "stacks"), weights(tmp_path / "shared")
    assert len(stacked) == 1
    assert stacked.keys() == shared.keys()
    for run, tensors in stacked.items():
        for name, value in tensors.items():
            torch.testing.assert_close(shared[run][name], value, rtol=0, atol=1e-9)


def test_asha_stops_runs_a_diverged_run_is_marked_and_the_grid_is_evaluated_without_it(
    shared_head: RayHead, tmp_path: Path
) -> None:
    tune = ["tune", "--grid", "smoke", "--name", "g", "--epochs", "9", "--seeds", "3", "--num-workers", "2"]
    tune += ["--scheduler", "asha", "--learning-rate", "[0.001, 1.0e+38]", "--no-batch-norm"]
    done = run_job(shared_head, *tune, "--storage", str(tmp_path))
    assert done.code == 0, done.log
    rows = duckdb.sql(f"SELECT status, epochs_done, reason FROM '{tmp_path}/grids/g/runs.parquet'").fetchall()
    assert sum(status == "diverged" for status, _, _ in rows) == 6
    stopped = [(epochs, reason) for status, epochs, reason in rows if status == "stopped"]
    assert stopped
    assert all(epochs in (1, 3) and "not among the best" in reason for epochs, reason in stopped)
    decisions = json.loads((tmp_path / "grids/g/asha.json").read_text())
    # Whoever comes to the last rung is done, whatever is decided there.
    assert sum(not decision["goes_on"] and decision["epoch"] < 9 for decision in decisions) == len(stopped)

    evaluated = run_here(
        "evaluate", "--grid", "g", "--dataset", "digits", "--storage", str(tmp_path), "--json", "--no-report"
    )
    assert evaluated.code == 0, evaluated.log
    assert "6 of 12 runs have no checkpoint" in evaluated.log
    metrics = json.loads(evaluated.output)["metrics"]
    assert len(metrics) == 6
    assert {row["grid"] for row in metrics} == {"g"}


def test_an_error_in_a_worker_ends_the_grid_with_its_line_and_code(shared_head: RayHead, tmp_path: Path) -> None:
    train_without_ray(str(tmp_path), "smoke", seeds="1", epochs=1)
    run = min(path.parts[-3] for path in tmp_path.glob("runs/*/best/checkpoint.json"))
    folder = tmp_path / "runs" / run
    (folder / "best/checkpoint.json").unlink()
    (folder / "checkpoints/epoch-0001/model.safetensors").write_bytes(b"damaged")
    tune = ["tune", "--grid", "smoke", "--seeds", "1", "--name", "g", "--epochs", "1", "--storage", str(tmp_path)]
    again = run_job(shared_head, *tune)
    assert again.code == 3
    assert f"run '{run}'" in again.log.splitlines()[-1]
    assert "SHA-256 differs" in again.log.splitlines()[-1]


def test_optuna_goes_on_where_it_stopped_and_takes_only_settings_of_the_ranges(
    shared_head: RayHead, tmp_path: Path
) -> None:
    pytest.importorskip("optuna")
    file = tmp_path / "space.yaml"
    file.write_text(
        "dataset: digits\nepochs: 1\ntrain_limit: 300\nhidden_sizes: [[16, 8], [8]]\n"
        "dropout: {uniform: [0.1, 0.4]}\nlearning_rate: {loguniform: [1e-4, 1e-2]}\n"
    )
    tune = ["tune", "--grid", str(file), "--name", "g", "--seeds", "2", "--search", "optuna"]
    tune += ["--num-workers", "1", "--storage", str(tmp_path)]
    first = run_job(shared_head, *tune, "--num-samples", "2", "--json")
    assert json.loads(first.output)["trained"] == 4, first.log
    more = run_job(shared_head, *tune, "--num-samples", "3", "--json")
    assert json.loads(more.output)["trained"] == 2, more.log
    rows = duckdb.sql(
        f"SELECT dropout, learning_rate, count(*) FROM '{tmp_path}/grids/g/runs.parquet' "
        "WHERE status = 'finished' GROUP BY ALL"
    ).fetchall()
    assert len(rows) == 3
    assert all(0.1 <= dropout <= 0.4 and 1e-4 <= rate <= 1e-2 and seeds == 2 for dropout, rate, seeds in rows)
    done = run_job(shared_head, *tune, "--num-samples", "3")
    assert "all were done already" in done.output
