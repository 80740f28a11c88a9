"""Evaluation and prediction of a million images from Parquet, compared with a bare loop over the same files.

The images are synthetic: ten blurred figures, shifted, with noise on the ink, 28x28 pixels as lists of 784 uint8 with a
label, 50,000 per file, as pyarrow writes them by default. One run of the variant, trained briefly on 2,000 of them, is
evaluated on them (`mnist-ray evaluate --no-report`) and predicts them (`mnist-ray predict`), with one process
(--num-workers 1, no Ray) and with two Ray workers. Each command is timed from the start of its process to its exit,
including imports, Ray's start and end, the fingerprint of the data, and writing the tables.

  bare loop  decodes the file's pixels with pyarrow into a tensor, normalizes it and applies the same network and
             softmax, 1,000 images at a time; keeps and writes nothing. It has as many processes as the command has
             workers, each with a share of the files. They are started and warmed up before; only the loop is timed.

Each command runs with few and with many images. The third line is the difference: the rate without one-time costs (the
start of the command and of Ray), and the growth of memory. The ratios compare images/s with the bare loop on as many
processes, measured right before, and CPU time per image, over all processes of the command; a busy machine distorts CPU
time less. The peaks are peak resident memory in MiB (Linux only) of the launcher's process and of its largest Ray
worker, 0 without workers.

`python benchmarks/evaluate_scale.py` prints the table on stdout and its progress on stderr, and takes many minutes.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from commands import Child, Command, run_measured
from timing import Cell, print_results, spread
from torch import Tensor

from mnist_ray.evaluation.inference import load_network
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.storage.storage import open_storage
from mnist_ray.training.data import normalize

COMMANDS = ("evaluate", "predict")
RUN = "run"
NUM_TRAIN = 2000
ROWS_PER_FILE, ROWS_PER_GROUP = 50_000, 10_000
PIXELS = 28 * 28
BATCH_SIZE = 1000


def synthetic_images(rng: np.random.Generator, labels: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """Returns images of the classes, uint8 [n, 784]: bright figures on black, as sparse as handwriting."""
    rows, columns = np.mgrid[0:28, 0:28]
    # The figures of the classes are the same in every file.
    strokes = np.random.default_rng(0).uniform(8, 20, (10, 4, 2))
    distances = (rows - strokes[..., 0, None, None]) ** 2 + (columns - strokes[..., 1, None, None]) ** 2
    figures = np.exp(-distances / 6).max(axis=1)  # [10, 28, 28]
    shifts = [(down, right) for down in range(-3, 4) for right in range(-3, 4)]
    moved = np.stack([np.roll(figures, shift, axis=(1, 2)) for shift in shifts], axis=1)  # [10, shifts, 28, 28]
    table = np.where(moved > 0.2, 223 * moved, 0).astype(np.uint8).reshape(10, len(shifts), PIXELS)
    images = table[labels, rng.integers(len(shifts), size=len(labels))]
    noise = rng.integers(0, 32, images.shape, dtype=np.uint8)
    return np.where(images > 0, images + noise, images)


def write_files(folder: Path, count: int, *, seed: int) -> list[Path]:
    """Writes images with their labels as two or more Parquet files."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    paths = []
    for number, share in enumerate(np.array_split(np.arange(count), max(2, -(-count // ROWS_PER_FILE)))):
        labels = share % 10
        pixels = pa.array(synthetic_images(rng, labels).reshape(-1))
        columns = {"image": pa.FixedSizeListArray.from_arrays(pixels, PIXELS), "label": labels}
        paths.append(folder / f"{number:03d}.parquet")
        pq.write_table(pa.table(columns), paths[-1], row_group_size=ROWS_PER_GROUP)
    return paths


@dataclass(frozen=True)
class Figures:
    """A cost, or a difference of costs, in seconds and bytes."""

    seconds: float
    cpu_seconds: float
    peak: int = 0
    worker_peak: int = 0

    @classmethod
    def of_command(cls, command: Command) -> "Figures":
        return cls(command.seconds, command.cpu_seconds, command.peak_bytes, max(command.worker_peaks, default=0))

    def __sub__(self, other: "Figures") -> "Figures":
        return Figures(
            self.seconds - other.seconds,
            self.cpu_seconds - other.cpu_seconds,
            self.peak - other.peak,
            self.worker_peak - other.worker_peak,
        )


# Code of the bare loop's processes.


def bare_batches(paths: Sequence[str]) -> Iterator[Tensor]:
    """Yields the images of some files, uint8 [k, 1, 28, 28]."""
    for path in paths:
        for batch in pq.ParquetFile(path).iter_batches(BATCH_SIZE, columns=["image"], use_threads=False):
            pixels = batch.column(0).flatten().to_numpy()
            # Copy: torch doesn't accept read-only memory.
            yield torch.from_numpy(pixels.copy()).view(-1, 1, 28, 28)


def run_bare_loop(storage_uri: str) -> None:
    """Reads lists of files from stdin, loops over them and answers with the number of images and the CPU time."""
    torch.set_num_threads(1)
    checkpoint = RunFolder(open_storage(storage_uri), RUN).best()
    mean, std = (checkpoint.document["normalization"][name] for name in ("mean", "std"))
    network = load_network(checkpoint)
    for line in sys.stdin:
        count, started = 0, time.process_time()
        with torch.inference_mode():
            for images in bare_batches(json.loads(line)):
                torch.softmax(network(normalize(images, mean=mean, std=std, dtype=torch.float32)), dim=-1)
                count += len(images)
        print(json.dumps([count, time.process_time() - started]), flush=True)


def time_bare_loop(children: Sequence[Child], paths: Sequence[Path]) -> Figures:
    """Times processes that each loop over a share of the files."""
    started = time.perf_counter()
    for number, child in enumerate(children):
        child.ask([str(path) for path in paths[number :: len(children)]])
    cpu_seconds = sum(child.answer()[1] for child in children)
    return Figures(time.perf_counter() - started, cpu_seconds)


# Code that starts and times the commands.


@dataclass(frozen=True)
class Round:
    """The measurements of one round.

    Attributes:
      bare: the bare loop by command and number of processes, measured right before the command.
      commands: the costs by command, workers and images.
    """

    bare: dict[tuple[str, int], Figures]
    commands: dict[tuple[str, int, int], Command]


def run_command(name: str, workers: int, images: Path, storage: Path) -> Command:
    """Evaluates or predicts the images of a folder, then removes the results: a repetition would be a no-op."""
    where = {
        "evaluate": ("--run", RUN, "--dataset", f"parquet:{images}", "--no-report"),
        "predict": ("--run", RUN, "--images", f"parquet:{images / 'test'}"),
    }[name]
    done = run_measured(name, *where, "--num-workers", str(workers), "--storage", str(storage))
    shutil.rmtree(storage / {"evaluate": "evaluations", "predict": "predictions"}[name])
    return done


def measure_round(arguments: argparse.Namespace, folder: Path, files: Sequence[Path], children: list[Child]) -> Round:
    """Measures every command with every number of workers, and the bare loop before each."""
    bare, commands = {}, {}
    for workers in arguments.workers:
        for name in arguments.commands:
            bare[name, workers] = taken = time_bare_loop(children[:workers], files)
            cost = f"{taken.seconds:.1f} s, {taken.cpu_seconds:.1f} s of CPU"
            print(f"bare loop, {workers} processes: {cost}", file=sys.stderr)
            for count in arguments.images:
                done = run_command(name, workers, folder / str(count), folder / "storage")
                commands[name, workers, count] = done
    return Round(bare, commands)


def measure(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Cell]]:
    """Writes the images, trains the run, measures round by round, and returns the table's rows."""
    storage = folder / "storage"
    few, many = arguments.images
    for count in arguments.images:
        write_files(folder / str(count) / "train", NUM_TRAIN, seed=0)
        files = write_files(folder / str(count) / "test", count, seed=1)
    dataset = f"parquet:{folder / str(few)}"
    run_measured(
        "train", "--variant", arguments.variant, "--dataset", dataset, "--epochs", "1", "--name", RUN,
        "--storage", str(storage),
    )  # fmt: skip
    children = [Child(__file__, "--child", str(storage)) for _ in range(max(arguments.workers))]
    try:
        for child in children:
            child.ask([str(files[0])])
            child.answer()
        rounds = []
        for index in range(arguments.rounds):
            print(f"round {index + 1} of {arguments.rounds}, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
            rounds.append(measure_round(arguments, folder, files, children))
    finally:
        for child in children:
            child.end()
    rows: list[dict[str, Cell]] = []
    for workers in arguments.workers:
        loops = [one.bare[name, workers] for one in rounds for name in arguments.commands]
        rows.append(row_of("bare loop", workers, f"{many:,}", many, loops, many, loops))
        for name in arguments.commands:
            of_few = [Figures.of_command(one.commands[name, workers, few]) for one in rounds]
            of_many = [Figures.of_command(one.commands[name, workers, many]) for one in rounds]
            longer = [large - small for small, large in zip(of_few, of_many, strict=True)]
            loops = [one.bare[name, workers] for one in rounds]
            rows += [
                row_of(name, workers, f"{few:,}", few, of_few, many, loops),
                row_of(name, workers, f"{many:,}", many, of_many, many, loops),
                row_of(name, workers, f"{many - few:,} more", many - few, longer, many, loops),
            ]
    return rows


def row_of(
    name: str,
    workers: int,
    images: str,
    count: int,
    taken: Sequence[Figures],
    num_in_loop: int,
    loops: Sequence[Figures],
) -> dict[str, Cell]:
    """Returns a row of the table.

    Args:
      name: name of the command.
      workers: its number of workers.
      images: label of the row.
      count: number of images.
      taken: its cost in each round.
      num_in_loop: images of the bare loop.
      loops: the bare loop's cost in each round.
    """
    pairs = list(zip(taken, loops, strict=True))
    share = count / num_in_loop
    return {
        "command": name,
        "workers": str(workers),
        "images": images,
        "seconds": spread([one.seconds for one in taken]),
        "images_per_s": spread([count / one.seconds for one in taken]),
        "ratio_to_bare_loop": spread([share * loop.seconds / one.seconds for one, loop in pairs]),
        "ratio_of_cpu": spread([share * loop.cpu_seconds / one.cpu_seconds for one, loop in pairs]),
        "peak_mib": spread([one.peak / 2**20 for one in taken]),
        "worker_peak_mib": spread([one.worker_peak / 2**20 for one in taken]),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs=2, default=[100_000, 1_000_000], help="few and many (%(default)s)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of processes (%(default)s)")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=COMMANDS, help="what to measure (all)")
    parser.add_argument("--variant", default="dropout_batchnorm", help="of the run (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each command (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.child:
        run_bare_loop(arguments.child)
        return
    with tempfile.TemporaryDirectory(prefix="mnist-ray-scale-") as temporary:
        rows = measure(arguments, Path(temporary))
    print_results(rows, as_json=arguments.json)


if __name__ == "__main__":
    main()
