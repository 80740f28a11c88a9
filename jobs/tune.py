"""Entry point for `ray job submit -- python jobs/tune.py ...`, with the options of `mnist-ray tune`."""

import sys
from pathlib import Path

# The checkout is enough: nothing needs to be installed on the cluster's nodes.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mnist_ray.cli.job_entry import main

if __name__ == "__main__":
    main("tune")
