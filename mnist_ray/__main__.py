"""The launcher: the console script mnist-ray, and `python -m mnist_ray`."""

import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs a command line, by default the process's own, and exits with its code."""
    try:
        from mnist_ray.cli import run_command
    except KeyboardInterrupt:
        # Ctrl-C before the command has begun: what it imports takes a moment.
        print("mnist-ray: stopped", file=sys.stderr)
        sys.exit(130)
    try:
        code = run_command(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        # Ctrl-C once more, just after the command has told that it stopped.
        code = 130
    if code in (130, 143):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.stdout.flush()
        sys.stderr.flush()
        # What a signal has cut off in Ray's and torch's native code must not be taken down in order: that can crash.
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
