"""Plans what a command would train and estimates its time by a probe of a few steps, without Ray."""

import heapq
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from mnist_ray.cluster.tune_job import TuneJob, read_all_progress
from mnist_ray.config.placement import Workers
from mnist_ray.config.settings import GridConfig, TrainConfig
from mnist_ray.data.training_data import TrainingData
from mnist_ray.grids.grid import GridRun
from mnist_ray.grids.search import random_samples
from mnist_ray.models.device import choose_device
from mnist_ray.models.network_check import check_networks
from mnist_ray.models.networks import make_network
from mnist_ray.models.stack import why_not_stacked
from mnist_ray.results.grid_folder import GridFolder
from mnist_ray.results.run_claim import check_config
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.results.run_progress import RunProgress, read_progress
from mnist_ray.storage.storage import Storage, open_storage
from mnist_ray.text.escape import say_line
from mnist_ray.training.data import cached_data
from mnist_ray.training.loop import Training

_PROBE_STEPS = 30
# What the time of a stack's step depends on -> examples per second, and why its runs are not stacked.
_Probes = dict[object, tuple[float, str | None]]


@dataclass(frozen=True)
class StackEstimate:
    """One stack of a plan.

    Attributes:
      runs: the runs that train together.
      samples_per_s: examples per second, summed over its runs, as measured here.
      seconds: time for all epochs of all runs.
      not_stacked: why its runs train one after the other as torch modules; None if they train as one program.
    """

    runs: tuple[GridRun, ...]
    samples_per_s: float
    seconds: float
    not_stacked: str | None


@dataclass(frozen=True)
class GridPlan:
    """An estimate of training a grid on this machine.

    Attributes:
      num_runs: runs in the grid.
      num_done: runs that are already done.
      at_once: stacks, or runs, that train at once.
      device: "cpu" or "cuda".
      stacks: the stacks to train, in order.
      seconds: training time from the first step to the last.
      first_look: of a grid that is trained until it is settled: what its first look needs, so the least that it takes.
    """

    num_runs: int
    num_done: int
    at_once: int
    device: str
    stacks: list[StackEstimate]
    seconds: float
    first_look: "GridPlan | None" = None


def plan_grid(job: TuneJob) -> GridPlan:
    """Plans what a grid would train here and estimates the time by a probe; trains nothing.

    The probe uses one worker even if several share a run: the cost or gain of sharing a batch depends on the network.

    Raises:
      MnistRayError: the grid, its data or its storage is invalid.
    """
    samples = job.samples()
    if job.search and job.suggests:
        # Optuna's suggestions are unknown until then; random settings take about as long.
        samples = GridFolder(open_storage(job.storage_uri), job.name).samples()
        random = [sample for sample in random_samples(job.grid, job.search) if sample not in samples]
        samples += random[: max(job.search.num_samples - len(samples), 0)]
    runs = job.runs(samples)
    shorter = GridFolder(open_storage(job.storage_uri), job.name).shorter_runs(runs)
    workers = Workers(job.workers_per_run or 1, job.workers_per_run or 1)
    probes: _Probes = {}
    if job.growth is None or not job.growth.settles:
        return _plan(runs, job, probes, shorter=shorter, workers=workers)
    first_look, last_look = (
        _plan(
            [run for run in runs if run.config.seed in job.grid.seeds[:num_seeds]],
            job,
            probes,
            shorter={},
            workers=workers,
        )
        for num_seeds in (job.growth.looks[0], job.growth.looks[-1])
    )
    return replace(last_look, first_look=first_look)


def plan_run(config: TrainConfig, run: str, storage_uri: str, data_dir: Path, workers: Workers) -> GridPlan:
    """Estimates the time of a single run here, which the workers share; see plan_grid."""
    grid = GridConfig(axes={}, ranges={}, fixed={}, seeds=(config.seed,))
    folder = RunFolder(open_storage(storage_uri), run)
    gets_more_epochs = False
    if folder.storage.exists(folder.path("config.json")):
        check_config(folder.storage, run, config)
        gets_more_epochs = folder.config() != config
    shorter = {run: run} if gets_more_epochs else {}
    job = TuneJob(grid, run, storage_uri, data_dir)
    return _plan((GridRun(run, config),), job, {}, shorter=shorter, workers=workers)


def _plan(
    runs: Sequence[GridRun], job: TuneJob, probes: _Probes, *, shorter: Mapping[str, str], workers: Workers
) -> GridPlan:
    """Plans some runs.

    Args:
      probes: that were made before; gets those that are made.
      shorter: see GridFolder.shorter_runs.
      workers: that share each run.
    """
    progress = _progress(open_storage(job.storage_uri), runs, shorter)
    missing = [run for run in runs if progress[run.run].status == "unfinished"]
    device = choose_device()
    use_gpu = device.type == "cuda"
    at_once = job.trials_at_once(torch.cuda.device_count() if use_gpu else os.cpu_count() or 1, use_gpu=use_gpu)
    gpu_memory = torch.cuda.get_device_properties(device).total_memory if use_gpu else None
    trials = job.trials(missing, at_once, gpu_memory=gpu_memory)
    estimates = _estimate(trials, progress, job.data_dir, device, probes, workers)
    seconds = makespan([stack.seconds for stack in estimates], max(at_once, 1))
    at_once = min(at_once, len(estimates))
    return GridPlan(len(runs), len(runs) - len(missing), at_once, device.type, estimates, seconds)


def _progress(storage: Storage, runs: Sequence[GridRun], shorter: Mapping[str, str]) -> dict[str, RunProgress]:
    """Returns each run's progress: with the epochs of a shorter run that it will go on with."""
    progress = read_all_progress(storage, runs)
    for run in runs:
        if run.run in shorter:
            begun = read_progress(storage, shorter[run.run])
            is_longer = begun.epochs_done > progress[run.run].epochs_done or run.run == begun.run
            if is_longer and begun.status == "finished":
                progress[run.run] = replace(begun, run=run.run, status="unfinished")
    return progress


def _estimate(
    trials: Sequence[tuple[GridRun, ...]],
    progress: dict[str, RunProgress],
    data_dir: Path,
    device: torch.device,
    probes: _Probes,
    workers: Workers,
) -> list[StackEstimate]:
    """Estimates each stack; stacks with the same cost key share a probe. Says what check_networks notes."""
    notes: dict[str, None] = {}
    estimates = []
    for runs in trials:
        data = cached_data(runs[0].config, data_dir, device)
        key = _cost_key(runs)
        if key not in probes:
            if not probes:
                say_line(f"timing a few steps of training on {device}")
            notes |= dict.fromkeys(check_networks([run.config for run in runs], data, num_workers=workers.most))
            network = make_network(runs[0].config, data.image_shape, len(data.class_names))
            probes[key] = probe(runs, data, device), _shared(workers) or why_not_stacked(network)
        rate, reason = probes[key]
        epochs = sum(run.config.epochs - progress[run.run].epochs_done for run in runs)
        estimates.append(StackEstimate(runs, rate, epochs * len(data.labels) / rate, reason))
    for note in notes:
        say_line(note)
    return estimates


def _shared(workers: Workers) -> str | None:
    """Returns that several workers share a run, as a clause; None if each run has one."""
    if workers.most == 1:
        return None
    counts = f"{workers.least} to {workers.most}" if workers.least < workers.most else f"{workers.most}"
    return f"{counts} workers share a run"


def _cost_key(runs: Sequence[GridRun]) -> tuple[object, ...]:
    """Returns all settings that the time of a step depends on."""
    first = runs[0].config
    return (
        len(runs), len({run.config.seed for run in runs}), any(run.config.dropout for run in runs), first.model,
        first.hidden_sizes, first.batch_norm, first.optimizer, first.augmentation, first.global_batch_size,
        first.precision, first.dataset, first.image_size, first.color, first.model_settings, first.code_sha256,
    )  # fmt: skip


def probe(runs: Sequence[GridRun], data: TrainingData, device: torch.device) -> float:
    """Trains a stack for some steps on the first examples and returns examples per second, summed over its runs."""
    configs = [run.config.model_copy(update={"epochs": 2, "warmup_epochs": 0.0}) for run in runs]
    count = min(_PROBE_STEPS * configs[0].global_batch_size, len(data.labels))
    # Validation is part of an epoch's time, so the probe's validation set is in proportion.
    validation = max(round(count * len(data.validation_labels) / len(data.labels)), 1)
    few = replace(
        data,
        images=data.images[:count],
        labels=data.labels[:count],
        validation_images=data.validation_images[:validation],
        validation_labels=data.validation_labels[:validation],
    )
    training = Training(configs, few, device=device)
    # The first epoch warms up and, on a GPU, records the step as a CUDA graph.
    training.train_epoch()
    started = time.perf_counter()
    num_trained = len(training.train_epoch()) if training.active else 0
    return max(num_trained, 1) * count / max(time.perf_counter() - started, 1e-9)


def makespan(seconds: Sequence[float], num_workers: int) -> float:
    """Returns when the last job ends if each starts, in order, on the worker that is free first."""
    free = [0.0] * num_workers
    for taken in seconds:
        heapq.heapreplace(free, free[0] + taken)
    return max(free)
