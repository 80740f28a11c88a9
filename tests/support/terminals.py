"""A command on a terminal of its own, a pty, as a person starts it."""

import errno
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import pyte

# Generous: the machine may be busy.
_PATIENCE_S = 280.0
_LINES = 60
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A command that runs as the leader of a session on a terminal; it ends with the block.

    Attributes:
      process: of the command.
      raw: what it has written so far, with all control sequences.
    """

    def __init__(
        self,
        *command: str,
        environment: Mapping[str, str],
        columns: int = 100,
        leader: str = "",
        stdout: int | None = None,
    ) -> None:
        """Starts the command.

        Args:
          command: the program and its arguments.
          environment: all of its variables, except those of the size.
          columns: width of the terminal.
          leader: a script in which "$@" is the command, such as 'nohup "$@"'; the session's leader is then a shell.
          stdout: where standard output goes instead of the terminal.
        """
        self._columns = columns
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", _LINES, columns, 0, 0))
        # Exported, they would stand for the size of another terminal.
        own = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES")}
        words = ["sh", "-c", leader, "sh", *command] if leader else command
        self.process = subprocess.Popen(
            [sys.executable, "-c", _ON_TERMINAL, *words],
            env=own, stdin=slave, stdout=stdout or slave, stderr=slave, start_new_session=True,
        )  # fmt: skip
        os.close(slave)
        self.raw = ""
        self._is_open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    @property
    def text(self) -> str:
        """What it has written so far, without control sequences."""
        return _CONTROL.sub("", self.raw).replace("\r\n", "\n")

    @property
    def screen(self) -> list[str]:
        """The lines that stand on the terminal now, without those that are empty."""
        screen = pyte.Screen(self._columns, _LINES)
        pyte.Stream(screen).feed(self.raw)
        return [line.rstrip() for line in screen.display if line.strip()]

    def type(self, text: str) -> None:
        """Types a text, such as "\\x03" for Ctrl-C."""
        os.write(self._master, text.encode())

    def read_until(self, is_there: Callable[[str], object]) -> str:
        """Reads until the text fulfils a condition, and returns it."""
        deadline = time.monotonic() + _PATIENCE_S
        while not is_there(self.text):
            assert time.monotonic() < deadline, self.text
            assert self._read(), self.text
        return self.text

    def read_all(self) -> str:
        """Reads until the command has closed the terminal, and returns the text."""
        while self._read():
            pass
        return self.text

    def close(self) -> None:
        """Closes the terminal, as a person who closes the window."""
        if self._is_open:
            self._is_open = False
            os.close(self._master)

    def wait(self) -> int:
        """Waits for the end of the command and returns its exit code."""
        return self.process.wait(timeout=_PATIENCE_S)

    def _read(self) -> bool:
        """Reads what is there; False at the end."""
        if not select.select([self._master], [], [], 0.1)[0]:
            return True
        try:
            part = os.read(self._master, 1 << 16)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            # All processes have closed it.
            return False
        self.raw += part.decode(errors="replace")
        return bool(part)


# Makes the terminal the controlling one of the session, which is what brings SIGHUP when it is closed.
_ON_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""
