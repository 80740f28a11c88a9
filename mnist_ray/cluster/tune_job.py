"""Describes a grid to train and divides its runs into stacks; doesn't use Ray."""

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mnist_ray.cluster.train_job import MAX_FAILURES
from mnist_ray.config.batches import images_at_once
from mnist_ray.config.placement import ANYWHERE, Placement
from mnist_ray.config.settings import STACK_SETTINGS, GridConfig, TrainConfig
from mnist_ray.data.datasets import DATASETS, stream_examples
from mnist_ray.data.image_shape import ImageShape
from mnist_ray.errors import ConfigError, RunFailedError
from mnist_ray.grids.asha import Rungs
from mnist_ray.grids.grid import GridRun, check_count, expand, stacks
from mnist_ray.grids.growth import Growth, check_comparable
from mnist_ray.grids.search import Search, random_samples, runs_of_samples
from mnist_ray.models.memory import bytes_of_run
from mnist_ray.results.lineage import command_line
from mnist_ray.results.run_progress import RunProgress, read_progress
from mnist_ray.storage.manifest import REQUESTS_AT_ONCE
from mnist_ray.storage.storage import Storage
from mnist_ray.training.data import data_settings
from mnist_ray.training.loop import VALIDATION_BATCH

# Measured with benchmarks/stack.py on CPUs with AVX2 and AVX-512: larger stacks gain little more or nothing.
CPU_STACK_SIZE = 8
MAX_GPU_STACK_SIZE = 160
# The rest is for the data, CUDA itself and the allocator's fragmentation.
_SHARE_OF_GPU_MEMORY = 0.7


@dataclass(frozen=True)
class TuneJob:
    """A grid, and where and how to train it; only the grid affects the results.

    Attributes:
      grid: axes, fixed settings and seeds.
      name: name of the grid.
      storage_uri: URI of the storage for its folder and its runs' folders.
      data_dir: folder of the data sets.
      num_workers: stacks, or runs, that train at once; None for all that the resources allow.
      stack_size: maximum runs in a stack; None for the measured default.
      gpus_per_stack: share of a GPU that a stack takes, if there are GPUs.
      workers_per_run: 0 to train stacks; otherwise the number of workers that train each run by itself.
      asha: rungs that end runs early, or None.
      max_failures: how often a stack is restarted after its worker dies.
      max_runs: maximum runs in the grid.
      search: how to choose settings, instead of every combination; None for a grid.
      growth: how the seeds are added one after the other, up to the grid's; None to train all of them.
      log: trackers for the runs.
      placement: where the workers run.
      command_line: the command line that started the grid, for the runs' lineage.

    Raises:
      ConfigError: two of the options exclude each other.
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
    max_failures: int = MAX_FAILURES
    max_runs: int = 1000
    search: Search | None = None
    growth: Growth | None = None
    log: tuple[str, ...] = ()
    placement: Placement = ANYWHERE
    command_line: str = field(default_factory=command_line)

    def __post_init__(self) -> None:
        if self.asha and self.workers_per_run:
            raise ConfigError("scheduler='asha': works on stacks; leave out --workers-per-run")
        if self.suggests and (self.asha or self.workers_per_run):
            raise ConfigError(
                "search='optuna': trains stacks to their ends; leave out --scheduler and --workers-per-run"
            )
        assert not self.growth or not (self.asha or self.suggests)

    @property
    def suggests(self) -> bool:
        """Whether settings are chosen one at a time, based on earlier results."""
        return self.search is not None and self.search.kind == "optuna"

    def samples(self) -> list[dict[str, Any]] | None:
        """Returns the settings of a random search, None for a grid, or none yet for Optuna."""
        if self.search is None:
            return None
        return [] if self.suggests else random_samples(self.grid, self.search)

    def runs(self, samples: Sequence[dict[str, Any]] | None) -> tuple[GridRun, ...]:
        """Returns the runs of the samples, or of the grid if samples is None.

        Raises:
          ConfigError: more runs than max_runs, or an invalid setting.
        """
        if samples is None:
            runs = expand(self.grid, name=self.name, max_runs=self.max_runs)
        else:
            check_count(len(samples) * len(self.grid.seeds), self.name, self.max_runs)
            runs = runs_of_samples(samples, self.grid, name=self.name)
        if self.growth:
            check_comparable(runs)
        return runs

    def trials_at_once(self, available: float, *, use_gpu: bool) -> int:
        """Returns how many trials run at once on the available CPUs or GPUs; 0 if none fits."""
        if self.workers_per_run:
            fit = int(available) // self.workers_per_run
        else:
            fit = int(available / (self.gpus_per_stack if use_gpu else 1))
        return min(fit, self.num_workers or fit)

    def trials(
        self, runs: Sequence[GridRun], at_once: int, *, gpu_memory: int | None = None
    ) -> list[tuple[GridRun, ...]]:
        """Returns the runs of each trial: a stack, or a single run if workers share runs.

        Without a given size, stacks have the best measured size, or less so that every worker gets one.

        Args:
          runs: all runs.
          at_once: trials that run at once.
          gpu_memory: bytes of the smallest GPU; None if stacks train on CPUs.
        """
        if self.workers_per_run or not runs:
            return [(run,) for run in runs]
        best = (
            CPU_STACK_SIZE
            if gpu_memory is None
            else gpu_stack_size(runs, int(gpu_memory * self.gpus_per_stack), self.data_dir)
        )
        return list(stacks(runs, size=self.stack_size or min(best, math.ceil(len(runs) / max(at_once, 1)))))

    def check_done(self, progress: Iterable[RunProgress]) -> None:
        """Checks that no run is unfinished.

        Raises:
          RunFailedError: some are.
        """
        num_unfinished = sum(row.status == "unfinished" for row in progress)
        if num_unfinished:
            raise RunFailedError(
                f"grid {self.name!r}: {num_unfinished} runs are not finished: a worker was lost more than "
                f"--max-failures {self.max_failures} times; the same command goes on with them"
            )


def gpu_stack_size(runs: Sequence[GridRun], memory: int, data_dir: Path) -> int:
    """Returns how many of the runs, in any combination, fit together into memory bytes of a GPU."""
    alike = {tuple(getattr(run.config, name) for name in STACK_SETTINGS): run.config for run in runs}
    kinds = {config: _images_and_classes(config, data_dir) for config in map(data_settings, alike.values())}
    largest = max(
        bytes_of_run(
            config,
            shape,
            num_classes=num_classes,
            validation_batch=images_at_once(VALIDATION_BATCH, math.prod(shape)),
        )
        for config in alike.values()
        for shape, num_classes in [kinds[data_settings(config)]]
    )
    return min(max(int(_SHARE_OF_GPU_MEMORY * memory) // largest, 1), MAX_GPU_STACK_SIZE)


def _images_and_classes(config: TrainConfig, data_dir: Path) -> tuple[ImageShape, int]:
    """Returns the shape of a config's images and the number of classes, without loading the images."""
    if config.dataset in DATASETS:
        named = DATASETS[config.dataset]
        return named.image_shape, len(named.class_names)
    examples = stream_examples(config.dataset, "train", data_dir=data_dir, options=config.image_options)
    return examples.image_shape, len(examples.class_names)


def read_all_progress(storage: Storage, runs: Sequence[GridRun]) -> dict[str, RunProgress]:
    """Returns each run's progress, read from the storage."""
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        rows = pool.map(lambda run: read_progress(storage, run.run), runs)
        return {row.run: row for row in rows}
