"""The launcher: the console script mnist-ray, and `python -m mnist_ray`."""

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Runs the command line and exits with its code."""
    try:
        from mnist_ray.cli import run_command
    except KeyboardInterrupt:
        # Ctrl-C before the command has begun: what it imports takes a moment.
        print("mnist-ray: stopped", file=sys.stderr)
        sys.exit(130)
    sys.exit(run_command(sys.argv[1:]))


if __name__ == "__main__":
    main()
