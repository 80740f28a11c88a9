"""What a command does meanwhile: lines on stderr and, on a terminal, rows below them that move.

Lines come from say_line. Rows go with the end of what they are about, so a terminal keeps the same lines as a log.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from mnist_ray.text.durations import duration
from mnist_ray.text.escape import printable, say_line
from mnist_ray.text.meanwhile import meanwhile

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

Item = TypeVar("Item")

# Between lines in a log about something that takes long.
LINE_INTERVAL_S = 10.0
# Until a command that is most often quick says what takes it so long.
_WONDERING_S = 1.0
_REFRESHES_PER_S = 8
_BAR_WIDTH = 20
# Spinner, bar, percentage, and a space after each.
_WIDTH_BEFORE_WORDS = _BAR_WIDTH + 8


def on_terminal() -> bool:
    """Tells whether what is said goes to a terminal on which rows can move."""
    return meanwhile().isatty() and os.environ.get("TERM", "").lower() not in ("dumb", "unknown")


class _Display:
    """The rows on the terminal of this process; a singleton, because all its threads share the terminal."""

    def __init__(self) -> None:
        self.rows: tuple[Row, ...] = ()
        self._live: Live | None = None
        self._num_users = 0
        self._began = 0.0
        self._spinner: Any = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Shows the rows until the outermost block ends."""
        self._num_users += 1
        try:
            if self._live is None and on_terminal():
                self._start()
            yield
        finally:
            self._num_users -= 1
            if self._live and not self._num_users:
                live, self._live = self._live, None
                live.stop()

    def refresh(self) -> None:
        """Shows the rows now, if they are shown at all, and not only when it is time again."""
        if self._live:
            self._live.refresh()

    def _start(self) -> None:
        # rich takes a tenth of a second to import.
        from rich.console import Console
        from rich.live import Live
        from rich.spinner import Spinner

        self._began, self._spinner = time.monotonic(), Spinner("dots")
        # In a notebook, rich would display cells of its own.
        console = Console(file=meanwhile(), markup=False, emoji=False, highlight=False, force_jupyter=False)
        # Lines written to stderr meanwhile appear above the rows, broken between words; stdout is for results.
        self._live = Live(
            console=console, get_renderable=lambda: self._table(console.width), transient=True,
            refresh_per_second=_REFRESHES_PER_S, redirect_stdout=False,
        )  # fmt: skip
        self._live.start(refresh=True)

    def _table(self, width: int) -> "Table":
        """Returns the rows, or, if there is none, one with the time since the command began."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 1))
        if not self.rows:
            table.add_row(self._spinner, duration(time.monotonic() - self._began))
            return table
        for _ in range(3):
            table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis", max_width=max(width - _WIDTH_BEFORE_WORDS, 1))
        for row in self.rows:
            bar = ProgressBar(total=row.total, completed=row.done, width=_BAR_WIDTH, pulse=row.total is None)
            share = f"{100 * row.done / row.total:3.0f}%" if row.total else ""
            table.add_row(self._spinner, bar, share, Text(printable(row.words())))
        return table


_DISPLAY = _Display()


@contextmanager
def at_work(line: str) -> Iterator[None]:
    """Says what a command does first; on a terminal something moves below the lines until the block ends.

    Nothing may be written to stdout in the block.
    """
    say_line(line)
    with _DISPLAY.shown():
        yield


@contextmanager
def at_work_if_slow(line: str) -> Iterator[None]:
    """Says what a command does if the block takes long enough for a person to wonder."""
    timer = threading.Timer(_WONDERING_S, say_line, [line])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Row:
    """A row that shows on a terminal how far something is, from the begin of a block to its end.

    Attributes:
      total: what there is to do; None if unknown.
      done: how much of it is done.
    """

    def __init__(self, total: float | None) -> None:
        self.total, self.done = total, 0.0
        self._began = time.monotonic()

    def __enter__(self) -> Self:
        self._shown = _DISPLAY.shown()
        self._shown.__enter__()
        _DISPLAY.rows = (*_DISPLAY.rows, self)
        _DISPLAY.refresh()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _DISPLAY.rows = tuple(row for row in _DISPLAY.rows if row is not self)
        self._shown.__exit__(None, None, None)

    def words(self) -> str:
        """Returns what stands after the bar."""
        raise NotImplementedError

    def seconds_left(self) -> float | None:
        """Returns the time left at the pace so far; None if that is unknown."""
        if not self.total or not self.done:
            return None
        return (time.monotonic() - self._began) * (self.total - self.done) / self.done


class Count(Row):
    """A row that counts; in a log it is a line at intervals.

    Attributes:
      what: what is counted, such as 'images evaluated'.
    """

    def __init__(self, what: str, total: int | None) -> None:
        super().__init__(total)
        self.what = what
        self._said_at = self._began

    def reach(self, done: float) -> None:
        """Counts up to a number, unless the count is there already."""
        self.done = max(self.done, done)
        if time.monotonic() - self._said_at >= LINE_INTERVAL_S and not on_terminal():
            self._said_at = time.monotonic()
            say_line(self.words())

    def words(self) -> str:
        """See Row."""
        count = f"{self.done:,.0f} of {self.total:,} {self.what}" if self.total else f"{self.done:,.0f} {self.what}"
        left = self.seconds_left()
        return count if left is None else f"{count}, {duration(left)} left"


def counted(
    items: Iterable[Item], what: str, *, total: int | None = None, size: Callable[[Item], int] = lambda _: 1
) -> Iterator[Item]:
    """Yields the items and counts them; see Count.

    Args:
      what: what is counted.
      total: the count of all items.
      size: the count of one item.
    """
    with Count(what, total) as row:
        done = 0
        for item in items:
            done += size(item)
            row.reach(done)
            yield item


def count_on(what: str, more: float) -> None:
    """Counts on the row about something, if this process shows one: a part of the next item that it counts is done."""
    for row in _DISPLAY.rows:
        if isinstance(row, Count) and row.what == what:
            row.reach(row.done + more)
