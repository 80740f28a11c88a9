"""What a training step needs besides images, labels and weights."""

from dataclasses import dataclass, replace

from torch import Tensor

from mnist_ray.noise.step_streams import StepStreams


@dataclass(frozen=True)
class TrainingPass:
    """One step of the runs of an engine.

    Attributes:
      streams: each run's random streams for the step.
      rows: int64 [local_batch], this rank's row numbers in the global batch.
      global_batch_size: rows of the global batch, over all ranks.
      smoothing: label smoothing, a number or [runs, 1].
    """

    streams: StepStreams
    rows: Tensor
    global_batch_size: int
    smoothing: Tensor | float = 0.0

    def of(self, runs: slice) -> "TrainingPass":
        """Returns the pass of some of the runs."""
        smoothing = self.smoothing[runs] if isinstance(self.smoothing, Tensor) else self.smoothing
        return replace(self, streams=self.streams.of(runs), smoothing=smoothing)
