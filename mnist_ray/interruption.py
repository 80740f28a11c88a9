"""Stops a command from outside: on Ctrl-C, SIGTERM or SIGHUP (a closed terminal), or when its job is given up.

Each raises a Stop in the main thread. Ray may replace it with a plain KeyboardInterrupt, so the last Stop is kept.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# Time for a stopped command to clean up before the same signal may interrupt it again.
_STOPPING_S = 15.0


class Stop(KeyboardInterrupt):
    """Ends the command.

    Attributes:
      code: exit code of the process.
      reason: message for the user.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


_SIGNALS = {
    signal.SIGINT: (130, "stopped"),
    signal.SIGTERM: (143, "terminated"),
    signal.SIGHUP: (129, "hung up"),
}
# Exit codes of commands that a signal has ended: 128 + its number.
SIGNAL_CODES = frozenset(code for code, _ in _SIGNALS.values())


class _Stops:
    """The stops of this process; a singleton, because signal handlers are process-wide.

    Attributes:
      last: the last Stop raised since the command began, or None.
    """

    def __init__(self) -> None:
        self.last: Stop | None = None
        self._given_up: Stop | None = None
        self._raised_at: dict[int, float] = {}

    def begin(self) -> None:
        """Forgets the stops of the previous command."""
        self.last = self._given_up = None
        self._raised_at.clear()

    def give_up(self, code: int, reason: str) -> None:
        """Stops the command from another thread."""
        self._given_up = Stop(code, reason)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Raises the Stop for a signal; Python calls this in the main thread."""
        del frame
        now = time.monotonic()
        # A second signal would interrupt the cleanup; if the first had no effect, the user can repeat it later.
        if now - self._raised_at.get(number, -_STOPPING_S) >= _STOPPING_S:
            self._raised_at[number] = now
            self.last, self._given_up = self._given_up or Stop(*_SIGNALS[signal.Signals(number)]), None
            raise self.last


_stops = _Stops()
give_up = _stops.give_up


def last_stop() -> Stop | None:
    """Returns the Stop that ended the current command, or None."""
    return _stops.last


@contextmanager
def stoppable() -> Iterator[None]:
    """Lets signals stop the block; a process started with SIGINT or SIGHUP ignored, as by nohup, keeps ignoring it."""
    _stops.begin()
    if threading.current_thread() is not threading.main_thread():
        # Python delivers signals to the main thread, whose handlers stay.
        yield
        return
    numbers = [number for number in _SIGNALS if number == signal.SIGTERM or not _is_ignored(number)]
    before = [(number, signal.signal(number, _stops.handle)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


@contextmanager
def deferred() -> Iterator[None]:
    """Defers signals until the block ends; only in the main thread, where Python delivers them.

    Handlers that the block installs, as ray.init does, are removed at its end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: dict[int, None] = {}
    # Processes that the block starts inherit that a signal is ignored, but not a handler.
    numbers = [number for number in _SIGNALS if not _is_ignored(number)]
    before = [(number, signal.signal(number, lambda which, _: arrived.setdefault(which))) for number in numbers]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    for which in arrived:
        signal.raise_signal(which)


def ignore_signals() -> None:
    """Ignores all signals that stop a command, from now on."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _is_ignored(number: int) -> bool:
    return signal.getsignal(number) is signal.SIG_IGN
