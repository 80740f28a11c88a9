import sys
from pathlib import Path

import pytest

from mnist_ray.cluster.tune_job import TuneJob
from mnist_ray.grids.grid import read_grid
from mnist_ray.grids.search import Search
from mnist_ray.jobs.tune import tune
from mnist_ray.results.grid_folder import GridFolder
from mnist_ray.storage.storage import open_storage
from mnist_ray.training.data import load_data
from mnist_ray.training.train_stack import train_stack
from tests.support.grid_runs import CPU


def test_a_random_search_with_fewer_settings_than_samples_is_done_once_they_are_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whatever starts Optuna or Ray fails.
    monkeypatch.setitem(sys.modules, "mnist_ray.cluster.optuna", None)
    monkeypatch.setitem(sys.modules, "mnist_ray.cluster.tuner", None)
    settings = {"dropout": [0.0, 0.5], "dataset": "digits", "epochs": 1, "hidden_sizes": "8"}
    grid = read_grid(settings, seeds="1", overrides={}, source="test")
    job = TuneJob(grid, "g", str(tmp_path), tmp_path, search=Search("random", 16))
    storage, samples = open_storage(str(tmp_path)), job.samples()
    runs = job.runs(samples)
    assert len(runs) == 2
    GridFolder(storage, "g").claim(grid, runs, search=job.search, samples=samples)
    list(train_stack(runs, load_data(runs[0].config, tmp_path, CPU), storage=storage, device=CPU))
    outcome = tune(job)
    assert outcome.num_trained == 0
    assert [row["status"] for row in outcome.rows] == ["finished", "finished"]
