"""Small real evaluations for the tests of the report: digits, without Ray."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mnist_ray.config.settings import EvaluationConfig
from mnist_ray.data.datasets import load_examples, stream_examples
from mnist_ray.data.examples import ExampleStream
from mnist_ray.evaluation.plan import make_plan, manifest
from mnist_ray.evaluation.shards import ShardEvaluator, ShardStream
from mnist_ray.evaluation.tables import write_tables
from mnist_ray.grids.grid import expand, grid_settings, read_grid, stacks
from mnist_ray.results.checkpoint_folder import Checkpoint
from mnist_ray.results.grid_folder import GridFolder
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.results.run_progress import read_progress
from mnist_ray.storage.storage import Storage, open_storage
from mnist_ray.training.data import prepare_data
from mnist_ray.training.train_stack import train_stack

CPU = torch.device("cpu")


def evaluate_grid(
    uri: str, overrides: Mapping[str, Any], *, seeds: str = "2", class_names: Sequence[str] | None = None,
    shard_size: int | None = None,
) -> str:  # fmt: skip
    """Trains a grid on the digits, evaluates it and returns the evaluation's name.

    Args:
      uri: the storage.
      overrides: settings of the grid, a list is an axis.
      seeds: as for tune.
      class_names: instead of those of the digits; more than ten are classes without examples.
      shard_size: in examples, instead of the usual one.
    """
    grid = read_grid(grid_settings("smoke"), seeds=seeds, overrides={"epochs": 2, **overrides}, source="test")
    runs = expand(grid, name="g", max_runs=100)
    storage = open_storage(uri)
    folder = GridFolder(storage, "g")
    folder.claim(grid, runs)
    digits = load_examples("digits", "train", data_dir=Path("unused"))
    digits = replace(digits, class_names=tuple(class_names or digits.class_names))
    for stack in stacks(runs, size=8):
        for _ in train_stack(stack, prepare_data(stack[0].config, digits, device=CPU), storage=storage, device=CPU):
            pass
    folder.write_runs(runs, {run.run: read_progress(storage, run.run) for run in runs})
    return evaluate_runs(uri, [run.run for run in runs], grid="g", class_names=class_names, shard_size=shard_size)


def evaluate_runs(
    uri: str, runs: Sequence[str], *, grid: str | None = None, class_names: Sequence[str] | None = None,
    shard_size: int | None = None,
) -> str:  # fmt: skip
    """Evaluates runs on the test digits and returns the evaluation's name."""
    storage = open_storage(uri)
    examples = stream_examples("digits", "test", data_dir=Path("unused"))
    examples = replace(examples, class_names=tuple(class_names or examples.class_names))
    checkpoints = [RunFolder(storage, run).best() for run in runs]
    config = EvaluationConfig(dataset="digits", grid=grid, **({"shard_size": shard_size} if shard_size else {}))
    return commit_evaluation(storage, config, checkpoints, examples)


def commit_evaluation(
    storage: Storage, config: EvaluationConfig, checkpoints: Sequence[Checkpoint], examples: ExampleStream
) -> str:
    """Evaluates checkpoints in this process, commits the tables and returns the evaluation's name."""
    plan = replace(make_plan(config, checkpoints, examples), fingerprints=(examples.scan()[0],))
    pending = storage.pending_folder(f"evaluations/{plan.name}")
    plan = replace(plan, evaluated_at=pending.begun_at())
    evaluator = ShardEvaluator(plan, device=CPU)
    results = [evaluator.evaluate(shard, pending) for shard in ShardStream([examples], plan)]
    volatile = {"evaluated_at": plan.evaluated_at.isoformat()}
    document = {**manifest(plan, len(examples)), "volatile": volatile}
    assert pending.commit(write_tables(plan, results, pending), document)
    return plan.name
