"""Seconds and memory of the joint comparison of many settings, on simulated answers.

Each case is measured in its own process, from the answers in memory to the pairs in columns, accuracy and log loss:

  160 settings x 5 seeds x 10,000 examples
  1,000 settings x 3 seeds x 10,000 examples

The time is the process's CPU time, the memory its peak resident memory before and after the comparison (Linux only).
`python benchmarks/compare.py` prints the table on stdout.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

# Not by `timing`, which imports torch: its memory would hide the comparison's.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mnist_ray.analysis.blocks import Scores, make_blocks
from mnist_ray.analysis.comparisons import compare

CASES = ((160, 5, 10_000), (1000, 3, 10_000))


def simulated(num_settings: int, num_seeds: int, num_examples: int) -> list[Scores]:
    """Returns settings of equal skill whose seeds differ a little."""
    generator = np.random.default_rng(0)
    difficulty = 3 * generator.logistic(size=num_examples) - 10
    settings = []
    for place in range(num_settings):
        skill = 0.15 * generator.standard_normal((num_seeds, 1))
        margin = skill + generator.logistic(size=(num_seeds, num_examples)) - difficulty
        loss = np.log1p(np.exp(-margin)).astype(np.float32)
        settings.append(Scores(str(place), tuple(range(num_seeds)), margin > 0, loss))
    return settings


def measure(case: Sequence[int]) -> dict[str, float]:
    """Returns seconds, and peak MiB before and after, of one comparison in this process."""
    num_settings, num_seeds, num_examples = case
    settings = simulated(num_settings, num_seeds, num_examples)
    before, started = peak_mib(), time.process_time()
    pairs = compare(make_blocks(settings))
    return {"pairs": len(pairs), "seconds": time.process_time() - started, "before": before, "after": peak_mib()}


def peak_mib() -> float:
    """Returns this process's peak resident memory; getrusage's is at least the parent's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--case", type=int, nargs=3, help="settings, seeds and examples; measure them in this process")
    arguments = parser.parse_args()
    if arguments.case:
        print(json.dumps(measure(arguments.case)))
        return
    from timing import Cell, print_results

    rows: list[dict[str, Cell]] = []
    for case in CASES:
        command = [sys.executable, str(Path(__file__)), "--case", *map(str, case)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        figures = json.loads(done.stdout)
        rows.append(
            {
                "settings x seeds x examples": " x ".join(f"{count:,}" for count in case),
                "pairs": figures["pairs"],
                "CPU seconds": figures["seconds"],
                "MiB before": figures["before"],
                "MiB peak": figures["after"],
            }
        )
    print_results(rows, as_json=arguments.json)


if __name__ == "__main__":
    main()
