"""Common entry point of jobs/*.py on a cluster: checks that the node has what mnist-ray needs, then runs the command.

Until the check it imports only the standard library and runs on Pythons that are too old for the rest.
"""

import os
import sys

from mnist_ray.config.requirements import JOB_VARIABLE, missing_requirements


def main(command: str) -> None:
    """Runs a launcher command as a cluster job with this process's arguments, then exits."""
    missing = missing_requirements()
    if missing:
        print("mnist-ray: error: " + missing, file=sys.stderr)
        sys.exit(5)
    os.environ[JOB_VARIABLE] = "1"
    from mnist_ray.cli.process import main as run

    run([command] + sys.argv[1:])  # noqa: RUF005
