"""Seconds, memory and bytes of an evaluation of 160 runs x 10,000 images, and of its report.

The runs are the grid `regularization` with five seeds, trained briefly on a few images: their accuracies don't matter
here, but their probabilities compress like real networks'. Two commands, each in its own process, are timed from start
to exit:

  evaluate  mnist-ray evaluate --no-report, which writes the tables, on one CPU
  report    mnist-ray report, which reads them and writes the page and its charts

The peak is the process's peak resident memory (Linux only). The bytes per prediction are measured for all columns of
the part files, and for the column `probabilities` alone in three encodings, all with zstd: as stored (plain), with the
bytes of each float separated (BYTE_STREAM_SPLIT), and rounded to 16 bits.

`python benchmarks/report.py` prints the table on stdout and its progress on stderr, and takes a few minutes. Without
MNIST's files it evaluates scikit-learn's digits, repeated to 10,000.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from commands import run_measured
from timing import Cell, print_results
from tutorial_data import add_data_option, write_idx

from mnist_ray.cluster.tune_job import read_all_progress
from mnist_ray.data.datasets import load_examples
from mnist_ray.data.examples import Examples
from mnist_ray.data.idx import USUAL_NAMES
from mnist_ray.errors import DataError
from mnist_ray.grids.grid import expand, grid_settings, read_grid, stacks
from mnist_ray.results.evaluation_folder import open_evaluation
from mnist_ray.results.grid_folder import GridFolder
from mnist_ray.storage.storage import open_storage
from mnist_ray.training.data import load_data
from mnist_ray.training.train_stack import train_stack

GRID, GRID_NAME = "regularization", "grid"
NUM_DIGITS = 10_000
STACK_SIZE = 4
CPU = torch.device("cpu")


def find_dataset(data_dir: Path, folder: Path) -> str:
    """Returns mnist if its files exist; otherwise writes the digits, repeated, as IDX files into the folder."""
    try:
        load_examples("mnist", "test", data_dir=data_dir, download=False)
    except DataError as error:
        print(f"no MNIST ({error}): using the digits", file=sys.stderr)
    else:
        return "mnist"
    train, test = (load_examples("digits", split, data_dir=data_dir) for split in ("train", "test"))
    write_idx(folder, USUAL_NAMES["train"], train)
    write_idx(folder, USUAL_NAMES["test"], repeated(test, NUM_DIGITS))
    return f"idx:{folder}"


def repeated(examples: Examples, count: int) -> Examples:
    """Repeats the examples up to the given number."""
    rows = torch.arange(count) % len(examples)
    return replace(examples, images=examples.images[rows], labels=examples.labels[rows])


def train_grid(arguments: argparse.Namespace, dataset: str, storage_uri: str) -> int:
    """Trains the grid's runs briefly in this process and returns their number."""
    settings = {"dataset": dataset, "epochs": arguments.epochs, "train_limit": arguments.train_limit}
    grid = read_grid(grid_settings(GRID), seeds=str(arguments.seeds), overrides=settings, source=GRID)
    runs = expand(grid, name=GRID_NAME, max_runs=1000)
    storage = open_storage(storage_uri)
    folder = GridFolder(storage, GRID_NAME)
    folder.claim(grid, runs)
    for stack in stacks(runs, size=STACK_SIZE):
        data = load_data(stack[0].config, arguments.data_dir, CPU)
        for _ in train_stack(stack, data, storage=storage, device=CPU):
            pass
    folder.write_runs(runs, read_all_progress(storage, runs))
    print(f"{len(runs)} runs trained", file=sys.stderr)
    return len(runs)


def bytes_by_encoding(probabilities: Sequence[pa.Table]) -> dict[str, int]:
    """Returns the size of Parquet files with one column, probabilities, in each encoding.

    Args:
      probabilities: the parts of the column, one per file.
    """
    rounded = [_rounded(part) for part in probabilities]
    split = {"probabilities.list.element": "BYTE_STREAM_SPLIT"}
    return {
        "plain": sum(_size(part) for part in probabilities),
        "BYTE_STREAM_SPLIT": sum(_size(part, column_encoding=split) for part in probabilities),
        "float16": sum(_size(part) for part in rounded),
        "float16, BYTE_STREAM_SPLIT": sum(_size(part, column_encoding=split) for part in rounded),
    }


def _rounded(part: pa.Table) -> pa.Table:
    column = part["probabilities"].combine_chunks()
    values = column.flatten().to_numpy().astype(np.float16)
    return pa.table({"probabilities": pa.ListArray.from_arrays(column.offsets, pa.array(values))})


def _size(part: pa.Table, **options: Any) -> int:
    sink = pa.BufferOutputStream()
    pq.write_table(part, sink, compression="zstd", use_dictionary=False, write_page_checksum=True, **options)
    return int(sink.getvalue().size)


def measure(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Cell]]:
    """Trains, evaluates and reports into a folder; returns a row per figure."""
    dataset, storage = find_dataset(arguments.data_dir, folder), str(folder / "storage")
    num_runs = train_grid(arguments, dataset, storage)
    common = ("--storage", storage)
    evaluated = run_measured(
        "evaluate", "--grid", GRID_NAME, "--dataset", dataset, "--data-dir", str(arguments.data_dir), "--no-report",
        *common,
    )  # fmt: skip
    evaluation = open_evaluation(open_storage(storage), evaluated.said["evaluation"])
    reported = run_measured("report", evaluation.name, *common)
    num_predictions = num_runs * evaluation.num_examples
    stored = [len(evaluation.storage.read_bytes(path)) for path in evaluation.stored_paths("predictions")]
    sizes = bytes_by_encoding(list(evaluation.parts("predictions", columns=["probabilities"])))
    page = len(Path(reported.said["report"]).read_bytes())
    figures: list[tuple[str, float, str]] = [
        ("runs", num_runs, ""),
        ("images", evaluation.num_examples, ""),
        ("evaluate", evaluated.seconds, "s"),
        ("evaluate, peak", evaluated.peak_bytes / 2**20, "MiB"),
        ("report", reported.seconds, "s"),
        ("report, peak", reported.peak_bytes / 2**20, "MiB"),
        ("report.html", page / 2**20, "MiB"),
        ("a prediction, all columns", sum(stored) / num_predictions, "bytes"),
        *((f"its probabilities, {name}", size / num_predictions, "bytes") for name, size in sizes.items()),
    ]
    return [{"what": what, "figure": float(figure), "unit": unit} for what, figure, unit in figures]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--seeds", type=int, default=5, help="runs of each of the grid's 32 settings (%(default)s)")
    parser.add_argument("--epochs", type=int, default=2, help="epochs of each run (%(default)s)")
    parser.add_argument("--train-limit", type=int, default=6000, help="training images of each run (%(default)s)")
    parser.add_argument("--folder", type=Path, help="empty folder in which to keep runs, tables and page")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        rows = measure(arguments, arguments.folder or Path(temporary))
    print_results(rows, as_json=arguments.json)


if __name__ == "__main__":
    main()
