"""The runs of a grid as they are without Ray: an independent reference, and a quick way to have some."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from mnist_ray.grid_training import train_stack
from mnist_ray.grids import expand, grid_settings, read_grid, stacks
from mnist_ray.storage import open_storage
from mnist_ray.training_data import load_data

CPU = torch.device("cpu")


def train_without_ray(storage: Path, grid_name: str, *, seeds: str, **settings: Any) -> None:
    """Trains a named grid, called g, in this process."""
    grid = read_grid(grid_settings(grid_name), seeds=seeds, overrides=settings, source="test")
    for stack in stacks(expand(grid, name="g", max_runs=100), size=3):
        data = load_data(stack[0].config, storage, CPU)
        list(train_stack(stack, data, storage=open_storage(str(storage)), device=CPU))


def weights(storage: Path) -> dict[str, Mapping[str, torch.Tensor]]:
    """Returns the best weights of each run in a storage."""
    return {path.parts[-3]: load_file(path) for path in storage.glob("runs/*/best/model.safetensors")}
