"""Terminal output while a single run trains: one line per epoch."""

from mnist_ray.config.settings import TrainConfig
from mnist_ray.results.history import EpochResult
from mnist_ray.text.escape import say_line
from mnist_ray.tracking.trackers import Tracking


class EpochLines:
    """Prints a line for each stored epoch and passes it to the trackers."""

    def __init__(self, run: str, config: TrainConfig, tracking: Tracking, *, num_before: int) -> None:
        """Starts after the epochs that earlier commands have trained."""
        self._run, self._config, self._tracking = run, config, tracking
        self._num_before = self._num_shown = num_before

    def show(self, history: tuple[EpochResult, ...]) -> None:
        """Shows the new epochs of a run's history."""
        if 0 < self._num_shown == self._num_before:
            say_line(f"{self._run}: went on after epoch {self._num_before}")
        for row in history[self._num_shown :]:
            say_line(self._line(row))
        self._num_shown = len(history)
        self._tracking.update([self._run])

    def _line(self, row: EpochResult) -> str:
        return (
            f"{self._run}: epoch {row.epoch}/{self._config.epochs}  "
            f"train loss {row.train_loss:.4f} acc {row.train_accuracy:.4f}  "
            f"val loss {row.val_loss:.4f} acc {row.val_accuracy:.4f}  "
            f"{row.examples / row.epoch_seconds:,.0f} examples/s"
        )
