"""Describes a run to train; doesn't use Ray."""

from dataclasses import dataclass, field
from pathlib import Path

from mnist_ray.config.placement import ANYWHERE, Placement, on_cluster
from mnist_ray.config.settings import TrainConfig
from mnist_ray.results.lineage import command_line

# Restarts after dead workers, of a run and of a grid's stack.
MAX_FAILURES = 3


@dataclass(frozen=True)
class TrainJob:
    """A run, and where and how to train it; only the config affects the result.

    Attributes:
      config: all settings that affect the result.
      run: name of the run.
      storage_uri: URI of the storage for the run's folder.
      data_dir: folder of the data sets.
      num_workers: processes that share every batch; with least_workers, the most.
      resume: whether to go on with a run that exists.
      max_failures: how often Ray's workers are restarted after one dies; None for MAX_FAILURES, where Ray is needed
        anyway.
      command_line: the command line that started the run, for its lineage.
      log: trackers for the run.
      last_epoch: ends the run early after this epoch; None to train as the config says.
      placement: where the workers run.
      least_workers: fewest workers; the run then trains with as many as there are, up to num_workers, and goes on with
        fewer or more when nodes leave or come.
      data_config: a config whose settings choose the examples; None for config itself.
    """

    config: TrainConfig
    run: str
    storage_uri: str
    data_dir: Path
    num_workers: int = 1
    resume: bool = True
    max_failures: int | None = None
    command_line: str = field(default_factory=command_line)
    log: tuple[str, ...] = ()
    last_epoch: int | None = None
    placement: Placement = ANYWHERE
    least_workers: int | None = None
    data_config: TrainConfig | None = None

    def needs_ray(self) -> bool:
        """Tells whether the run is distributed or a dead worker must be restarted."""
        return self.num_workers > 1 or bool(self.max_failures) or on_cluster()
