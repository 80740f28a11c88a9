"""Terminal output while a single run trains: a line for each epoch, and a row within it."""

from types import TracebackType
from typing import Self

from mnist_ray.config.settings import TrainConfig
from mnist_ray.results.history import EpochResult
from mnist_ray.text.doing import Row, on_terminal
from mnist_ray.text.durations import duration
from mnist_ray.text.escape import say_line
from mnist_ray.tracking.trackers import Tracking
from mnist_ray.training.watching import EpochProgress


class EpochLines:
    """Prints a line for each stored epoch and passes it to the trackers; on a terminal a row shows the epoch's steps.

    The row ends with the block.
    """

    def __init__(self, run: str, config: TrainConfig, tracking: Tracking, *, num_before: int) -> None:
        """Starts after the epochs that earlier commands have trained."""
        self._run, self._config, self._tracking = run, config, tracking
        self._num_before = self._num_shown = num_before
        self._row: _EpochRow | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._row:
            self._row.__exit__(kind, error, trace)

    def show(self, history: tuple[EpochResult, ...]) -> None:
        """Shows the new epochs of a run's history."""
        if 0 < self._num_shown == self._num_before:
            say_line(f"{self._run}: goes on after epoch {self._num_before}")
        for row in history[self._num_shown :]:
            say_line(self._line(row))
        self._num_shown = len(history)
        self._tracking.update([self._run])

    def show_within(self, progress: EpochProgress) -> None:
        """Shows how far the run is within an epoch."""
        if self._row is None:
            self._row = _EpochRow(self._config.epochs, progress)
            self._row.__enter__()
        self._row.show(progress)

    def _line(self, row: EpochResult) -> str:
        # The run's name would make the line too long for a terminal, on which a single run trains at a time.
        name = "" if on_terminal() else f"{self._run}: "
        return (
            f"{name}epoch {row.epoch}/{self._config.epochs}  "
            f"train loss {row.train_loss:.4f} acc {row.train_accuracy:.4f}  "
            f"val loss {row.val_loss:.4f} acc {row.val_accuracy:.4f}  "
            f"{row.examples / row.epoch_seconds:,.0f} examples/s"
        )


class _EpochRow(Row):
    """The steps of an epoch, with the loss so far and the time that the run will take."""

    def __init__(self, num_epochs: int, first: EpochProgress) -> None:
        super().__init__(first.num_steps)
        self._num_epochs, self._progress = num_epochs, first

    def show(self, progress: EpochProgress) -> None:
        """Shows the latest progress."""
        self._progress, self.done = progress, progress.step

    def words(self) -> str:
        """See Row."""
        now = self._progress
        text = f"epoch {now.epoch}/{self._num_epochs}: loss {now.loss:.4f}"
        if now.step_seconds is None:
            return text
        num_left = (self._num_epochs - now.epoch + 1) * now.num_steps - now.step
        return f"{text}, {duration(now.step_seconds * num_left)} left for all epochs"
