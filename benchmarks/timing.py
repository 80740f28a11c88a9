"""Measures the rates of several contenders for the same work, in turn, in one process.

The speed of a shared machine drifts within minutes, but contenders measured back to back drift together: trust the
ratio within a round.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

# Scripts run from a checkout without installation: each imports this module before mnist_ray.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Spread:
    """Median, smallest and largest of one figure over the rounds."""

    median: float
    low: float
    high: float


# The types of values in a table of results.
Cell = str | float | Spread


def interleave(
    contenders: Mapping[str, Callable[[], int]], *, rounds: int, chunk_seconds: float, clock: str, label: str
) -> dict[str, list[float]]:
    """Measures each contender once per round, starting each round with the next contender.

    Args:
      contenders: name -> a function that does some work and returns the number of items processed.
      rounds: measurements of each contender, after one untimed call.
      chunk_seconds: each measurement calls the function until this time has passed.
      clock: a key of CLOCKS.
      label: label of the progress lines on stderr.

    Returns:
      Items per second for each contender, one figure per round.
    """
    for run in contenders.values():
        run()
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for index in range(rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            rates[name].append(_rate(contenders[name], chunk_seconds, CLOCKS[clock]))
        latest = ", ".join(f"{name} {rates[name][-1]:,.0f}" for name in names)
        print(f"{label}: round {index + 1} of {rounds}: {latest} per second", file=sys.stderr)
    return rates


def _rate(run: Callable[[], int], chunk_seconds: float, now: Callable[[], float]) -> float:
    items = 0
    started = now()
    while (elapsed := now() - started) < chunk_seconds or not items:
        items += run()
    return items / elapsed


def spread(values: list[float]) -> Spread:
    """Summarizes a figure over the rounds."""
    return Spread(statistics.median(values), min(values), max(values))


def ratios(rates: Mapping[str, list[float]], name: str, reference: str) -> Spread:
    """Summarizes how many times faster one contender was than another, round by round."""
    return spread([ours / theirs for ours, theirs in zip(rates[name], rates[reference], strict=True)])


def add_timing_options(parser: argparse.ArgumentParser) -> None:
    """Adds the common timing options."""
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each contender (%(default)s)")
    parser.add_argument("--chunk-seconds", type=float, default=2.0, help="minimum time of a measurement (%(default)s)")
    parser.add_argument(
        "--clock", choices=list(CLOCKS), default="wall", help="cpu: this process's, for a busy machine (%(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, help="torch threads (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def print_results(rows: Sequence[Mapping[str, Cell]], *, as_json: bool, note: str = "") -> None:
    """Prints hardware and results as JSON, or as a table of medians, with the extremes of ratios.

    Args:
      rows: rows with the same columns.
      as_json: whether to print JSON.
      note: a remark on the results.
    """
    if as_json:
        plain = [
            {name: asdict(cell) if isinstance(cell, Spread) else cell for name, cell in row.items()} for row in rows
        ]
        print(json.dumps({"hardware": hardware(), "results": plain} | ({"note": note} if note else {}), indent=1))
        return
    print(", ".join(f"{name} {value}" for name, value in hardware().items()))
    lines = [list(rows[0]), *([_shown(name, cell) for name, cell in row.items()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    if note:
        print(note)


def _shown(name: str, cell: Cell) -> str:
    if isinstance(cell, str):
        return cell
    if not isinstance(cell, Spread):
        return f"{cell:,.0f}" if cell >= 1000 else f"{cell:.4g}"
    if name == "seconds":
        return f"{cell.median:,.1f}"
    if name.startswith("ratio"):
        return f"{cell.median:.2f} ({cell.low:.2f}-{cell.high:.2f})"
    return f"{cell.median:,.0f}"


def hardware() -> dict[str, str | int]:
    """Returns the hardware and versions that the absolute rates depend on."""
    return {
        "cpu": _cpu_model(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cpus": os.cpu_count() or 1,
        **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
