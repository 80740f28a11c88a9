"""The launcher's process: its standard streams, its end, its exit code."""

import io
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any, NoReturn, TextIO

from mnist_ray.errors import StorageError

_STDOUT, _STDERR = 1, 2
# How long what was printed before a signal may take.
_FLUSH_S = 0.5


class _Stream(io.FileIO):
    """A standard stream; a full disk under it is an error with one line and an exit code, as of a storage."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            # A reader that has seen enough, such as head.
            raise
        except OSError as error:
            if self.fileno() == _STDERR:
                # Where its line would go to.
                _to_nowhere(_STDERR)
            name = "standard error" if self.fileno() == _STDERR else "standard output"
            raise StorageError(f"{name}: {error.strerror}; what was printed is not complete") from error


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs a command line, by default the process's own, and exits with its code."""
    try:
        from mnist_ray.cli.main import run_command
    except KeyboardInterrupt:
        # Ctrl-C before the command has begun: what it imports takes a moment.
        print("mnist-ray: stopped", file=sys.stderr)
        sys.exit(130)
    sys.stdout, sys.stderr = _stream(_STDOUT, sys.stdout), _stream(_STDERR, sys.stderr)
    try:
        code = run_command(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        # Ctrl-C once more, just after the command has told that it stopped.
        code = 130
    except SystemExit as error:
        code = int(error.code or 0)
    except StorageError as error:
        # The line of another error could not be written.
        code = error.exit_code
    if code in (130, 143):
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        # A reader that has stopped reading keeps whoever writes to it.
        flush = threading.Thread(target=_flush, args=(code,), daemon=True)
        flush.start()
        flush.join(_FLUSH_S)
        sys.stderr.flush()
        # What a signal has cut off in Ray's and torch's native code must not be taken down in order: that can crash.
        os._exit(code)
    sys.exit(_flush(code))


def _stream(number: int, given: TextIO | None) -> TextIO:
    """Returns a standard stream with the encoding and buffering that Python has chosen for it."""
    if given is None:
        # Closed by whoever started the process: no file that is opened later may get its number.
        _to_nowhere(number)
        return open(number, "w", encoding="utf-8", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(_Stream(given.fileno(), "wb", closefd=False)),
        encoding=given.encoding, errors=given.errors, newline="\n",
        line_buffering=bool(getattr(given, "line_buffering", False)),
        write_through=bool(getattr(given, "write_through", False)),
    )  # fmt: skip


def _to_nowhere(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != number:
        os.dup2(nowhere, number)
        os.close(nowhere)


def _flush(code: int) -> int:
    """Writes what is still buffered, and returns the exit code: another one if a command that succeeded can't."""
    try:
        sys.stdout.flush()
    except (BrokenPipeError, StorageError) as error:
        # What stays in the buffer goes nowhere: the interpreter would try it again at its end, and complain.
        _to_nowhere(_STDOUT)
        if code == 0 and isinstance(error, StorageError):
            print(f"mnist-ray: error: {error}", file=sys.stderr)
        return code or getattr(error, "exit_code", 1)
    return code
