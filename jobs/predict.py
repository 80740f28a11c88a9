"""Entry point for `ray job submit -- python jobs/predict.py ...`, with the options of `mnist-ray predict`."""

import sys
from pathlib import Path

# The checkout is enough: nothing needs to be installed on the cluster's nodes.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mnist_ray.cli import run_command

if __name__ == "__main__":
    sys.exit(run_command(["predict", *sys.argv[1:]], in_job=True))
