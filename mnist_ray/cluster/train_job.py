"""A run to be trained; no Ray here."""

from dataclasses import dataclass, field
from pathlib import Path

from mnist_ray.config.placement import ANYWHERE, Placement, on_cluster
from mnist_ray.config.settings import TrainConfig
from mnist_ray.results.lineage import command_line


@dataclass(frozen=True)
class TrainJob:
    """A run and where and how it is done; nothing here but the config changes the result.

    Attributes:
      config: all that the result depends on.
      run: name of the run.
      storage_uri: where the run's folder goes.
      data_dir: folder of the data sets.
      num_workers: processes that share every batch.
      resume: go on with a run that was interrupted.
      max_failures: how often the workers are started again after one died.
      command_line: the one that asked for the run, for its lineage.
      log: trackers that the run is written to.
      last_epoch: ends the run after this epoch, as one that was stopped; None for the config's own end.
      placement: on which machines.
    """

    config: TrainConfig
    run: str
    storage_uri: str
    data_dir: Path
    num_workers: int = 1
    resume: bool = False
    max_failures: int = 0
    command_line: str = field(default_factory=command_line)
    log: tuple[str, ...] = ()
    last_epoch: int | None = None
    placement: Placement = ANYWHERE

    def needs_ray(self) -> bool:
        """Tells whether there is something to distribute, or a worker to start again when it dies."""
        return self.num_workers > 1 or self.max_failures > 0 or on_cluster()
