"""A grid to be trained, and how its runs are divided among stacks; no Ray here."""

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mnist_ray.config.placement import ANYWHERE, Placement
from mnist_ray.config.settings import STACK_SETTINGS, GridConfig
from mnist_ray.errors import ConfigError, RunFailedError
from mnist_ray.grids.asha import Rungs
from mnist_ray.grids.grid import GridRun, check_count, expand, stacks
from mnist_ray.grids.search import Search, random_samples, runs_of_samples
from mnist_ray.models.memory import bytes_of_run
from mnist_ray.results.lineage import command_line
from mnist_ray.results.run_progress import RunProgress, read_progress
from mnist_ray.storage.manifest import REQUESTS_AT_ONCE
from mnist_ray.storage.storage import Storage
from mnist_ray.training.loop import VALIDATION_BATCH

# Measured with benchmarks/stack.py: more runs no longer fit into a core's cache together.
CPU_STACK_SIZE = 4
MAX_GPU_STACK_SIZE = 160
# The rest is for the data, CUDA itself and what its allocator leaves unused.
_SHARE_OF_GPU_MEMORY = 0.7
# EMNIST's balanced split has 47, and no data set of ours more; more classes add next to nothing to a run's memory.
MAX_CLASSES = 47


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
      command_line: the one that asked for the grid, for the runs' lineage.

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
    command_line: str = field(default_factory=command_line)

    def __post_init__(self) -> None:
        if self.asha and self.workers_per_run:
            raise ConfigError("scheduler='asha': works on stacks; leave out --workers-per-run")
        if self.suggests and (self.asha or self.workers_per_run):
            raise ConfigError(
                "search='optuna': trains stacks to their ends; leave out --scheduler and --workers-per-run"
            )

    @property
    def suggests(self) -> bool:
        """Whether settings are chosen one after the other, by what became of those before."""
        return self.search is not None and self.search.kind == "optuna"

    def samples(self) -> list[dict[str, Any]] | None:
        """Returns the settings of a random search, None for a grid; those of optuna show as it goes."""
        if self.search is None:
            return None
        return [] if self.suggests else random_samples(self.grid, self.search)

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

    def check_done(self, progress: Iterable[RunProgress]) -> None:
        """Checks that every run has come to its end.

        Raises:
          RunFailedError: some haven't.
        """
        num_unfinished = sum(row.status == "unfinished" for row in progress)
        if num_unfinished:
            raise RunFailedError(
                f"grid {self.name!r}: {num_unfinished} runs are not finished: a worker was lost more than "
                f"--max-failures {self.max_failures} times; the same command goes on with them"
            )


def gpu_stack_size(runs: Sequence[GridRun], memory: int) -> int:
    """Returns how many of the runs, whichever, train together in some bytes of GPU memory."""
    alike = {tuple(getattr(run.config, name) for name in STACK_SETTINGS): run.config for run in runs}
    largest = max(
        bytes_of_run(config, num_classes=MAX_CLASSES, validation_batch=VALIDATION_BATCH) for config in alike.values()
    )
    return min(max(int(_SHARE_OF_GPU_MEMORY * memory) // largest, 1), MAX_GPU_STACK_SIZE)


def read_all_progress(storage: Storage, runs: Sequence[GridRun]) -> dict[str, RunProgress]:
    """Returns how far each run is, as the storage tells."""
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        found = pool.map(lambda run: read_progress(storage, run.run), runs)
        return {row.run: row for row in found}
