"""The launcher's process: standard streams, shutdown and exit code."""

import errno
import io
import os
import sys
import threading
from collections.abc import Sequence
from typing import Any, NoReturn, TextIO

from mnist_ray.config.placement import in_job
from mnist_ray.errors import StorageError

_STDOUT, _STDERR = 1, 2
# Time limit for flushing stdout after a signal.
_FLUSH_S = 0.5


class _Stream(io.FileIO):
    """A standard stream that reports a full disk as a StorageError: one line and an exit code.

    What is written to a terminal that has been closed is dropped: SIGHUP ends the command, unless it is ignored.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number, "wb", closefd=False)
        # A closed terminal no longer says that it was one.
        self._is_terminal = self.isatty()

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            # The reader has closed the pipe, as head does.
            raise
        except OSError as error:
            if self._is_terminal and error.errno == errno.EIO:
                _to_nowhere(self.fileno())
                return len(data)
            if self.fileno() == _STDERR:
                # The error's own line would fail in the same way.
                _to_nowhere(_STDERR)
            name = "standard error" if self.fileno() == _STDERR else "standard output"
            raise StorageError(f"{name}: {error.strerror}; what was printed is not complete") from error


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs a command line, by default this process's arguments, and exits with its code."""
    # Before anything that needs a POSIX system is imported.
    if sys.platform == "win32":
        print("mnist-ray: error: runs on Linux and macOS; on Windows, run it in WSL", file=sys.stderr)
        sys.exit(2)
    try:
        from mnist_ray.cli.main import run_command
        from mnist_ray.interruption import SIGNAL_CODES, ignore_signals
    except KeyboardInterrupt:
        # Ctrl-C during the imports, before the command begins.
        print("mnist-ray: stopped", file=sys.stderr)
        sys.exit(130)
    sys.stdout, sys.stderr = _stream(_STDOUT, sys.stdout), _stream(_STDERR, sys.stderr)
    try:
        code = run_command(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        # A second Ctrl-C, just after the command has reported the first.
        code = 130
    except SystemExit as error:
        code = int(error.code or 0)
    except StorageError as error:
        # Printing another error failed.
        code = error.exit_code
    if code in SIGNAL_CODES:
        ignore_signals()
        # Flushing blocks if the reader of a pipe has stopped reading.
        flush = threading.Thread(target=_flush, args=(code,), daemon=True)
        flush.start()
        flush.join(_FLUSH_S)
        sys.stderr.flush()
        # An orderly exit can crash in native code of Ray or torch that the signal has interrupted.
        os._exit(code)
    sys.exit(_flush(code))


def _stream(number: int, given: TextIO | None) -> TextIO:
    """Returns a standard stream with Python's choice of buffering and encoding, or Ray's in a cluster's job."""
    if given is None:
        # The parent process has closed it: no file opened later may get its descriptor.
        _to_nowhere(number)
        return open(number, "w", encoding="utf-8", closefd=False)
    # Ray decodes a job's log as strict UTF-8: one invalid byte would make the whole log unreadable.
    encoding, errors = ("utf-8", "backslashreplace") if in_job() else (given.encoding, given.errors)
    return io.TextIOWrapper(
        io.BufferedWriter(_Stream(given.fileno())),
        encoding=encoding, errors=errors, newline="\n",
        line_buffering=bool(getattr(given, "line_buffering", False)),
        write_through=bool(getattr(given, "write_through", False)),
    )  # fmt: skip


def _to_nowhere(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)


def _flush(code: int) -> int:
    """Flushes stdout and returns the exit code; a failed flush turns 0 into an error code."""
    try:
        sys.stdout.flush()
    except (BrokenPipeError, StorageError) as error:
        # Discard the buffer: otherwise the interpreter retries at exit and prints an error.
        _to_nowhere(_STDOUT)
        if code == 0 and isinstance(error, StorageError):
            print(f"mnist-ray: error: {error}", file=sys.stderr)
        return code or getattr(error, "exit_code", 1)
    return code
