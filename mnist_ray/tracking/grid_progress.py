"""Terminal output while a grid trains: counts, the best setting so far, the pace and the time left."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType

from mnist_ray.grids.grid import GridRun
from mnist_ray.report.setting_names import names_of_runs
from mnist_ray.results.run_progress import RunProgress
from mnist_ray.text.doing import LINE_INTERVAL_S, Row, on_terminal
from mnist_ray.text.durations import duration
from mnist_ray.text.escape import say_line


class GridProgress(Row):
    """Counts a grid's runs; a row of their epochs on a terminal, or else a line at intervals."""

    def __init__(
        self,
        runs: Sequence[GridRun],
        before: Mapping[str, RunProgress],
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts the clock.

        Args:
          before: progress of each run before this command.
          now: the clock, in seconds.
        """
        super().__init__(0)
        self.progress = dict(before)
        self._runs = {run.run: run for run in runs}
        self._settings: dict[str, str] = {}
        self._before = dict(before)
        self._touched: set[str] = set()
        self._now, self._started = now, now()
        self._last_line = self._started
        self._count_epochs()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        # After an error before any training, print nothing but the error.
        if kind is None or self._touched:
            say_line(self.words())

    def add(self, runs: Iterable[GridRun], before: Mapping[str, RunProgress] | None = None) -> None:
        """Adds runs that weren't known at the start, with their progress before this command."""
        self._runs |= {run.run: run for run in runs}
        self._settings = {}
        self.progress |= before or {}
        self._before |= before or {}
        self._count_epochs()

    def update(self, rows: Iterable[RunProgress]) -> None:
        """Records the progress of some runs and shows it."""
        for row in rows:
            self.progress[row.run] = row
            self._touched.add(row.run)
        self._count_epochs()
        if not on_terminal() and self._now() - self._last_line >= LINE_INTERVAL_S:
            self._last_line = self._now()
            say_line(self.words())

    def counts(self) -> dict[str, int]:
        """Returns how many runs are finished, stopped, diverged, running and waiting."""
        status = Counter(row.status for row in self.progress.values())
        running = sum(1 for run in self._touched if self.progress[run].status == "unfinished")
        done = {name: status[name] for name in ("finished", "stopped", "diverged")}
        return {**done, "running": running, "waiting": len(self._runs) - sum(done.values()) - running}

    def seconds_left(self) -> float | None:
        """Returns the time left at the pace so far; None before any epoch is trained."""
        trained = sum(self.progress[run].epochs_done for run in self._touched)
        trained -= sum(row.epochs_done for run, row in self._before.items() if run in self._touched)
        elapsed = self._now() - self._started
        return ((self.total or 0) - self.done) * elapsed / trained if trained else None

    def runs_per_minute(self) -> float:
        """Returns the runs that ended per minute since this command started."""
        ended = sum(1 for run in self._touched if self.progress[run].status != "unfinished")
        return 60 * ended / max(self._now() - self._started, 1e-9)

    def best(self) -> RunProgress | None:
        """Returns the run with the highest validation accuracy so far."""
        rows = [row for row in self.progress.values() if row.best_val_accuracy is not None]
        return max(rows, key=lambda row: (row.best_val_accuracy or 0, row.run), default=None)

    def words(self) -> str:
        """Returns the progress as one line."""
        counts = self.counts()
        done = counts["finished"] + counts["stopped"] + counts["diverged"]
        parts = [f"{done}/{len(self._runs)} runs done"]
        parts += [f"{counts[name]} {name}" for name in ("running", "stopped", "diverged") if counts[name]]
        if best := self.best():
            parts.append(" ".join([f"best {best.best_val_accuracy:.4f}", *self._setting(best.run)]))
        if pace := self.runs_per_minute():
            parts.append(f"{pace:.1f} runs/min")
        left = self.seconds_left()
        if left and counts["running"] + counts["waiting"]:
            parts.append(f"{duration(left)} left")
        return ", ".join(parts)

    def _setting(self, run: str) -> list[str]:
        """Returns the name of a run's setting in parentheses; nothing if all runs have the same."""
        if not self._settings:
            self._settings = names_of_runs([*self._runs.values()])
        return [f"({self._settings[run]})"] if len({*self._settings.values()}) > 1 else []

    def _count_epochs(self) -> None:
        """Counts the epochs of all runs; runs that ended have none left."""
        total, done = 0, 0
        for name, run in self._runs.items():
            row = self.progress.get(name)
            total += run.config.epochs
            if row:
                done += row.epochs_done if row.status == "unfinished" else run.config.epochs
        self.total, self.done = total, done
