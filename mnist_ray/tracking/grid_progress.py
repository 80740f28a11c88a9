"""Terminal output while a grid trains: counts, the best run so far, the pace and the time left."""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from mnist_ray.grids.grid import GridRun
from mnist_ray.results.run_progress import RunProgress
from mnist_ray.text.durations import duration
from mnist_ray.text.escape import printable

_LINE_INTERVAL_S = 10.0


class GridProgress:
    """Counts a grid's runs; shows a live table on a terminal, or else a line at intervals."""

    def __init__(
        self,
        runs: Sequence[GridRun],
        before: Mapping[str, RunProgress],
        *,
        now: Callable[[], float] = time.monotonic,
        console: Console | None = None,
    ) -> None:
        """Starts the clock.

        Args:
          before: progress of each run before this command.
          now: the clock, in seconds.
          console: where to show the progress; stderr by default.
        """
        self.progress = dict(before)
        self._epochs = {run.run: run.config.epochs for run in runs}
        self._before = dict(before)
        self._touched: set[str] = set()
        self._now, self._started = now, now()
        self._last_line = self._started
        self._console = console or Console(file=sys.stderr)
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(self._table(), console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
        # After an error before any training, print nothing but the error.
        if kind is None or self._touched:
            self.say(self.line())

    def add(self, runs: Iterable[GridRun], before: Mapping[str, RunProgress] | None = None) -> None:
        """Adds runs that weren't known at the start, with their progress before this command."""
        for run in runs:
            self._epochs[run.run] = run.config.epochs
        self.progress |= before or {}
        self._before |= before or {}

    def update(self, rows: Iterable[RunProgress]) -> None:
        """Records the progress of some runs and shows it."""
        for row in rows:
            self.progress[row.run] = row
            self._touched.add(row.run)
        if self._live:
            self._live.update(self._table())
        elif self._now() - self._last_line >= _LINE_INTERVAL_S:
            self._last_line = self._now()
            self.say(self.line())

    def say(self, line: str) -> None:
        """Shows a line, above the live table if there is one."""
        self._console.print(printable(line), highlight=False, markup=False, emoji=False, soft_wrap=True)

    def counts(self) -> dict[str, int]:
        """Returns how many runs are finished, stopped, diverged, running and waiting."""
        status = Counter(row.status for row in self.progress.values())
        running = sum(1 for run in self._touched if self.progress[run].status == "unfinished")
        done = {name: status[name] for name in ("finished", "stopped", "diverged")}
        return {**done, "running": running, "waiting": len(self._epochs) - sum(done.values()) - running}

    def seconds_left(self) -> float | None:
        """Returns the time left at the pace so far; None before any epoch is trained."""
        trained = sum(self.progress[run].epochs_done for run in self._touched)
        trained -= sum(row.epochs_done for run, row in self._before.items() if run in self._touched)
        elapsed = self._now() - self._started
        left = sum(
            epochs - (self.progress[run].epochs_done if run in self.progress else 0)
            for run, epochs in self._epochs.items()
            if run not in self.progress or self.progress[run].status == "unfinished"
        )
        return left * elapsed / trained if trained else None

    def runs_per_minute(self) -> float:
        """Returns the runs that ended per minute since this command started."""
        ended = sum(1 for run in self._touched if self.progress[run].status != "unfinished")
        return 60 * ended / max(self._now() - self._started, 1e-9)

    def best(self) -> RunProgress | None:
        """Returns the run with the highest validation accuracy so far."""
        rows = [row for row in self.progress.values() if row.best_val_accuracy is not None]
        return max(rows, key=lambda row: (row.best_val_accuracy or 0, row.run), default=None)

    def line(self) -> str:
        """Returns the progress as one line."""
        counts = self.counts()
        done = counts["finished"] + counts["stopped"] + counts["diverged"]
        parts = [f"{done}/{len(self._epochs)} runs done"]
        parts += [f"{counts[name]} {name}" for name in ("running", "stopped", "diverged") if counts[name]]
        if best := self.best():
            parts.append(f"best {best.best_val_accuracy:.4f} ({best.run})")
        parts.append(f"{self.runs_per_minute():.1f} runs/min")
        left = self.seconds_left()
        if left and counts["running"] + counts["waiting"]:
            parts.append(f"{duration(left)} left")
        return ", ".join(parts)

    def _table(self) -> Table:
        counts, best, left = self.counts(), self.best(), self.seconds_left()
        table = Table(box=None, pad_edge=False)
        for name in ("done", "running", "waiting", "stopped", "diverged", "best so far", "runs/min", "time left"):
            table.add_column(name, justify="right")
        table.add_row(
            f"{counts['finished']}/{len(self._epochs)}",
            *(str(counts[name]) for name in ("running", "waiting", "stopped", "diverged")),
            f"{best.best_val_accuracy:.4f} {best.run}" if best else "-",
            f"{self.runs_per_minute():.1f}",
            duration(left) if left is not None else "-",
        )
        return table
