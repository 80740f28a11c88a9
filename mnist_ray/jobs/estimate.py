"""What a command would train, and how long it would take, judged by a probe of a few steps; no Ray here."""

import heapq
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mnist_ray.config.placement import ANYWHERE, Placement
from mnist_ray.config.settings import GridConfig, TrainConfig
from mnist_ray.errors import ConfigError
from mnist_ray.grids.asha import Rungs
from mnist_ray.grids.grid import STACK_FIELDS, GridRun, check_count, expand, stacks
from mnist_ray.grids.search import Search, random_samples, runs_of_samples
from mnist_ray.models.memory import bytes_of_run
from mnist_ray.results.grid_folder import GridFolder
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.results.run_progress import RunProgress, read_progress
from mnist_ray.storage.storage import Storage, open_storage
from mnist_ray.training.data import TrainingData, load_data
from mnist_ray.training.loop import VALIDATION_BATCH, StackTraining

# Measured with benchmarks/stack.py: more runs no longer fit into a core's cache together.
CPU_STACK_SIZE = 4
MAX_GPU_STACK_SIZE = 160
# The rest is for the data, CUDA itself and what its allocator leaves unused.
_SHARE_OF_GPU_MEMORY = 0.7
# EMNIST's balanced split has 47, and no data set of ours more; more classes add next to nothing to a run's memory.
MAX_CLASSES = 47
_REQUESTS_AT_ONCE = 16
_PROBE_STEPS = 30


@dataclass(frozen=True)
class TuneJob:
    """A grid and where and how it is trained; only the grid changes the results.

    Attributes:
      grid: axes, fixed settings and seeds.
      name: name of the grid.
      storage_uri: where its folder and those of its runs go.
      data_dir: folder of the data sets.
      num_workers: stacks, or runs, that train at once; None for as many as the resources allow.
      stack_size: most runs in a stack; None for the measured default.
      gpus_per_stack: share of a GPU that a stack takes, where there are GPUs.
      workers_per_run: 0 to train stacks; else each run by itself, on so many workers.
      asha: rungs that end runs early, or None.
      max_failures: how often a stack is started again after its worker died.
      max_runs: most runs that the grid may have.
      search: how settings are chosen, instead of every combination; None for a grid.
      log: trackers that the runs are written to.
      placement: on which machines.

    Raises:
      ConfigError: two of them don't go together.
    """

    grid: GridConfig
    name: str
    storage_uri: str
    data_dir: Path
    num_workers: int | None = None
    stack_size: int | None = None
    gpus_per_stack: float = 1.0
    workers_per_run: int = 0
    asha: Rungs | None = None
    max_failures: int = 3
    max_runs: int = 1000
    search: Search | None = None
    log: tuple[str, ...] = ()
    placement: Placement = ANYWHERE

    def __post_init__(self) -> None:
        if self.asha and self.workers_per_run:
            raise ConfigError("scheduler='asha': works on stacks; leave out --workers-per-run")
        if self.search and self.search.kind == "optuna" and (self.asha or self.workers_per_run):
            raise ConfigError(
                "search='optuna': trains stacks to their ends; leave out --scheduler and --workers-per-run"
            )

    def samples(self) -> list[dict[str, Any]] | None:
        """Returns the settings of a random search, None for a grid; those of optuna show as it goes."""
        if self.search is None:
            return None
        return random_samples(self.grid, self.search) if self.search.kind == "random" else []

    def runs(self, samples: Sequence[dict[str, Any]] | None) -> tuple[GridRun, ...]:
        """Returns the runs of some samples, or of the grid.

        Raises:
          ConfigError: more runs than max_runs, or an invalid setting.
        """
        if samples is None:
            return expand(self.grid, name=self.name, max_runs=self.max_runs)
        check_count(len(samples) * len(self.grid.seeds), self.name, self.max_runs)
        return runs_of_samples(samples, self.grid, name=self.name)

    def trials_at_once(self, available: float, *, use_gpu: bool) -> int:
        """Returns how many trials run at once, on so many CPUs or GPUs; 0 where not even one fits."""
        if self.workers_per_run:
            fit = int(available) // self.workers_per_run
        else:
            fit = int(available / (self.gpus_per_stack if use_gpu else 1))
        return min(fit, self.num_workers or fit)

    def trials(
        self, runs: Sequence[GridRun], at_once: int, *, gpu_memory: int | None = None
    ) -> list[tuple[GridRun, ...]]:
        """Returns the runs of each trial: a stack, or a single run if workers share runs.

        Stacks are as large as given, or as measured to be best but so small that every worker gets one.

        Args:
          runs: all runs.
          at_once: trials that run at once.
          gpu_memory: bytes of the smallest GPU; None if stacks train on CPUs.
        """
        if self.workers_per_run or not runs:
            return [(run,) for run in runs]
        best = CPU_STACK_SIZE if gpu_memory is None else gpu_stack_size(runs, int(gpu_memory * self.gpus_per_stack))
        return list(stacks(runs, size=self.stack_size or min(best, math.ceil(len(runs) / max(at_once, 1)))))


def gpu_stack_size(runs: Sequence[GridRun], memory: int) -> int:
    """Returns how many of the runs, whichever, train together in some bytes of GPU memory."""
    alike = {tuple(getattr(run.config, name) for name in STACK_FIELDS): run.config for run in runs}
    largest = max(
        bytes_of_run(config, num_classes=MAX_CLASSES, validation_batch=VALIDATION_BATCH) for config in alike.values()
    )
    return min(max(int(_SHARE_OF_GPU_MEMORY * memory) // largest, 1), MAX_GPU_STACK_SIZE)


@dataclass(frozen=True)
class StackEstimate:
    """One stack of a plan.

    Attributes:
      runs: what trains together.
      samples_per_s: examples a second of all its runs together, as measured here.
      seconds: for all epochs of all runs.
    """

    runs: tuple[GridRun, ...]
    samples_per_s: float
    seconds: float


@dataclass(frozen=True)
class GridPlan:
    """What training a grid would take on this machine.

    Attributes:
      num_runs: runs of the grid.
      num_done: runs that are done already.
      at_once: stacks, or runs, that train at once.
      device: "cpu" or "cuda".
      stacks: what would be trained, in order.
      seconds: of training, from the first step to the last.
    """

    num_runs: int
    num_done: int
    at_once: int
    device: str
    stacks: list[StackEstimate]
    seconds: float


def plan_grid(job: TuneJob) -> GridPlan:
    """Says what a grid would train here, and how long it would take, judged by a probe; trains nothing.

    With workers_per_run the probe is one worker's: what sharing a batch costs or gains depends on the network.

    Raises:
      MnistRayError: the grid, its data or its storage are not as they must be.
    """
    samples = job.samples()
    if job.search and job.search.kind == "optuna":
        # What it will suggest nobody knows; random settings take as long.
        samples = GridFolder(open_storage(job.storage_uri), job.name).samples()
        random = [sample for sample in random_samples(job.grid, job.search) if sample not in samples]
        samples += random[: max(job.search.num_samples - len(samples), 0)]
    return _plan(job.runs(samples), job)


def plan_run(config: TrainConfig, run: str, storage_uri: str, data_dir: Path) -> GridPlan:
    """Says how long a single run would take here; see plan_grid."""
    grid = GridConfig(axes={}, ranges={}, fixed={}, seeds=(config.seed,))
    folder = RunFolder(open_storage(storage_uri), run)
    if folder.storage.exists(folder.path("config.json")):
        folder.check_config(config)
    return _plan((GridRun(run, config),), TuneJob(grid, run, storage_uri, data_dir))


def _plan(runs: Sequence[GridRun], job: TuneJob) -> GridPlan:
    progress = read_all_progress(open_storage(job.storage_uri), runs)
    missing = [run for run in runs if progress[run.run].status == "unfinished"]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    use_gpu = device.type == "cuda"
    if not use_gpu:
        torch.set_num_threads(1)
    at_once = job.trials_at_once(torch.cuda.device_count() if use_gpu else os.cpu_count() or 1, use_gpu=use_gpu)
    gpu_memory = torch.cuda.get_device_properties(device).total_memory if use_gpu else None
    estimates = _estimate(job.trials(missing, at_once, gpu_memory=gpu_memory), progress, job.data_dir, device)
    seconds = makespan([stack.seconds for stack in estimates], max(at_once, 1))
    at_once = min(at_once, len(estimates))
    return GridPlan(len(runs), len(runs) - len(missing), at_once, device.type, estimates, seconds)


def read_all_progress(storage: Storage, runs: Sequence[GridRun]) -> dict[str, RunProgress]:
    """Returns how far each run is, as the storage tells."""
    with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
        found = pool.map(lambda run: read_progress(storage, run.run), runs)
        return {row.run: row for row in found}


def _estimate(
    trials: Sequence[tuple[GridRun, ...]], progress: dict[str, RunProgress], data_dir: Path, device: torch.device
) -> list[StackEstimate]:
    """Estimates each stack; those that differ in nothing that costs time share one probe."""
    rates: dict[object, float] = {}
    estimates = []
    for runs in trials:
        data = load_data(runs[0].config, data_dir, device)
        key = _cost_key(runs)
        if key not in rates:
            rates[key] = probe(runs, data, device)
        epochs = sum(run.config.epochs - progress[run.run].epochs_done for run in runs)
        estimates.append(StackEstimate(runs, rates[key], epochs * len(data.labels) / rates[key]))
    return estimates


def _cost_key(runs: Sequence[GridRun]) -> tuple[object, ...]:
    """Returns what the time of a step depends on."""
    first = runs[0].config
    return (
        len(runs), len({run.config.seed for run in runs}), any(run.config.dropout for run in runs), first.model,
        first.hidden_sizes, first.batch_norm, first.optimizer, first.augmentation, first.global_batch_size,
        first.precision, first.dataset,
    )  # fmt: skip


def probe(runs: Sequence[GridRun], data: TrainingData, device: torch.device) -> float:
    """Trains a stack for some steps on the first examples and returns the examples a second of all runs together."""
    configs = [run.config.model_copy(update={"epochs": 2, "warmup_epochs": 0.0}) for run in runs]
    count = min(_PROBE_STEPS * configs[0].global_batch_size, len(data.labels))
    # Validation takes its share of an epoch: the probe's validation set is in proportion.
    validation = max(round(count * len(data.validation_labels) / len(data.labels)), 1)
    few = replace(
        data,
        images=data.images[:count],
        labels=data.labels[:count],
        validation_images=data.validation_images[:validation],
        validation_labels=data.validation_labels[:validation],
    )
    training = StackTraining(configs, few, device=device)
    # The first epoch warms up, and records the step on a GPU.
    training.train_epoch()
    started = time.perf_counter()
    num_trained = len(training.train_epoch()) if training.active else 0
    return max(num_trained, 1) * count / max(time.perf_counter() - started, 1e-9)


def makespan(seconds: Sequence[float], num_workers: int) -> float:
    """Returns when the last of some jobs ends, each started in order on the worker that is free first."""
    free = [0.0] * num_workers
    for taken in seconds:
        heapq.heapreplace(free, free[0] + taken)
    return max(free)
