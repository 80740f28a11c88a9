"""How a command is stopped from outside: by Ctrl-C, by SIGTERM, or because its job is given up.

Each raises one Stop in the main thread. Ray replaces it on its way by a plain KeyboardInterrupt, so the last one is
kept.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# How long a stopped command is left to clean up before the same signal may interrupt that.
_STOPPING_S = 15.0


class Stop(KeyboardInterrupt):
    """Ends the command.

    Attributes:
      code: exit code of the process.
      reason: what a person reads.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


_SIGNALS = {signal.SIGINT: (130, "stopped"), signal.SIGTERM: (143, "terminated")}


class _Stops:
    """The stops of this process: signals are the process's own, so there is one of these.

    Attributes:
      last: the one raised last since a command began; None before.
    """

    def __init__(self) -> None:
        self.last: Stop | None = None
        self._given_up: Stop | None = None
        self._raised_at: dict[int, float] = {}

    def begin(self) -> None:
        """Forgets the stops of the command before."""
        self.last = self._given_up = None
        self._raised_at.clear()

    def give_up(self, code: int, reason: str) -> None:
        """Stops the command from another thread."""
        self._given_up = Stop(code, reason)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Raises the stop of a signal; Python calls this in the main thread."""
        del frame
        now = time.monotonic()
        # A second one would cut off what the first has begun to take down. One that nothing came of may be repeated.
        if now - self._raised_at.get(number, -_STOPPING_S) >= _STOPPING_S:
            self._raised_at[number] = now
            self.last, self._given_up = self._given_up or Stop(*_SIGNALS[signal.Signals(number)]), None
            raise self.last


_stops = _Stops()
give_up = _stops.give_up


def last_stop() -> Stop | None:
    """Returns what stopped the command that runs; None if nothing has."""
    return _stops.last


@contextmanager
def stoppable() -> Iterator[None]:
    """Has signals stop the block; a process that was started with Ctrl-C ignored goes on ignoring it."""
    _stops.begin()
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        numbers.append(signal.SIGINT)
    before = [(number, signal.signal(number, _stops.handle)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


@contextmanager
def deferred() -> Iterator[None]:
    """Puts signals off until the block has ended; in the main thread alone, where they arrive.

    A handler that the block sets, as ray.init does, is taken back with its end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: dict[int, None] = {}
    before = [(number, signal.signal(number, lambda which, _: arrived.setdefault(which))) for number in _SIGNALS]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    for which in arrived:
        signal.raise_signal(which)
