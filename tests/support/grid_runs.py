"""The runs of a grid as they are without Ray: an independent reference, and a quick way to have some."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mnist_ray.cluster.tune_job import read_all_progress
from mnist_ray.config.settings import GridConfig
from mnist_ray.grids.grid import GridRun, expand, grid_settings, read_grid, stacks
from mnist_ray.grids.search import Search, random_samples, runs_of_samples
from mnist_ray.results.grid_folder import GridFolder
from mnist_ray.results.run_progress import RunProgress
from mnist_ray.storage.storage import open_storage
from mnist_ray.training.data import load_data
from mnist_ray.training.train_stack import train_stack

CPU = torch.device("cpu")


def train_without_ray(
    storage_uri: str,
    grid_name: str,
    *,
    seeds: str,
    goes_on: Callable[[RunProgress], bool] = lambda _: True,
    **settings: Any,
) -> None:
    """Trains a named grid, called g, in this process, and leaves its folder."""
    grid = read_grid(grid_settings(grid_name), seeds=seeds, overrides=settings, source="test")
    runs = expand(grid, name="g", max_runs=100)
    _train(storage_uri, grid, runs, goes_on)


def search_without_ray(storage_uri: str, settings: Mapping[str, Any], *, num_samples: int) -> None:
    """Trains the samples of a random search, called g, in this process, and leaves its folder."""
    grid = read_grid(settings, seeds=None, overrides={}, source="test")
    samples = random_samples(grid, Search("random", num_samples))
    _train(storage_uri, grid, runs_of_samples(samples, grid, name="g"), lambda _: True)


def _train(storage_uri: str, grid: GridConfig, runs: Sequence[GridRun], goes_on: Callable[[RunProgress], bool]) -> None:
    storage = open_storage(storage_uri)
    for stack in stacks(runs, size=3):
        data = load_data(stack[0].config, Path("unused"), CPU)
        list(train_stack(stack, data, storage=storage, device=CPU, goes_on=goes_on))
    folder = GridFolder(storage, "g")
    folder.claim(grid, runs)
    folder.write_runs(runs, read_all_progress(storage, runs))


def weights(storage: Path) -> dict[str, Mapping[str, torch.Tensor]]:
    """Returns the best weights of each run in a storage."""
    return {path.parts[-3]: load_file(path) for path in storage.glob("runs/*/best/model.safetensors")}
