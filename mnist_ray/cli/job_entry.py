"""What jobs/*.py do first, on a cluster's node: make sure that it has what mnist-ray needs, then run the command.

Imports nothing but the standard library before that, and is written for Pythons too old for the rest.
"""

import os
import sys

from mnist_ray.config.requirements import JOB_VARIABLE, missing_requirements


def main(command: str) -> None:
    """Runs a command of the launcher with this process's arguments, as a job on a cluster, and ends the process."""
    missing = missing_requirements()
    if missing:
        print("mnist-ray: error: " + missing, file=sys.stderr)
        sys.exit(5)
    os.environ[JOB_VARIABLE] = "1"
    from mnist_ray.cli.process import main as run

    run([command] + sys.argv[1:])  # noqa: RUF005
