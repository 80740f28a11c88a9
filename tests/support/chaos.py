"""Kills evaluations and grids again and again, while a reader looks whether it ever sees a part of one.

`make chaos` runs 50 kills on a local folder and 50 on an S3 server, and prints what it counted:

    python -m tests.support.chaos --kills 50
"""

import argparse
import contextlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import boto3
import duckdb

from mnist_ray.cli.main import run_command
from mnist_ray.results.parquet import read_parquet
from mnist_ray.storage.storage import Storage, open_storage
from tests.support.processes import descendants
from tests.support.s3_fixtures import running_s3_server
from tests.support.warm_processes import launched

NUM_EXAMPLES = 355
RUNS = ("a", "b")
TINY = ["--dataset", "digits", "--hidden-sizes", "8"]
GRID = ["tune", "--grid", "smoke", "--name", "g", "--epochs", "60", "--hidden-sizes", "16,8", "--num-workers", "2"]
WAIT_S = 120


@dataclass
class Counts:
    """What a series has seen."""

    kills: int = 0
    evaluations: int = 0
    reads: int = 0
    partial_reads: int = 0


def launcher(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "mnist_ray", *arguments]


def in_this_process(*arguments: str) -> None:
    """Runs a command that is to succeed, quietly."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = run_command(arguments)
    assert code == 0, said.getvalue()


def is_whole(storage: Storage, name: str) -> bool:
    """Reads all files of a committed evaluation, as a reader of its manifest does."""
    folder = f"evaluations/{name}"
    manifest = storage.read_manifest(folder)
    assert manifest is not None
    contents = {file["name"]: storage.read_committed(folder, file["name"]) for file in manifest["files"]}
    num_rows = {name: read_parquet(content).num_rows for name, content in contents.items()}
    predictions = sum(count for name, count in num_rows.items() if name.startswith("predictions"))
    return predictions == len(RUNS) * NUM_EXAMPLES and num_rows["metrics/part-0.parquet"] == len(RUNS)


def read_until(uri: str, stop: Path) -> None:
    """Reads whatever is committed until a file appears; prints the counts."""
    storage, counts = open_storage(uri), Counts()
    while not stop.exists():
        names = [name for name in storage.list_folders("evaluations") if storage.read_manifest(f"evaluations/{name}")]
        counts.partial_reads += sum(not is_whole(storage, name) for name in names[-3:])
        counts.reads += len(names[-3:])
        if storage.is_local and names:
            # One who knows nothing of manifests.
            glob = f"{uri}/evaluations/*/predictions/*.parquet"
            found = duckdb.execute(f"SELECT count(*) FROM '{glob}' GROUP BY evaluation").fetchall()
            total = sum(count for (count,) in found)
            counts.partial_reads += total % (len(RUNS) * NUM_EXAMPLES) != 0
            counts.reads += 1
    print(json.dumps(asdict(counts)))


def num_staged_bytes(storage: Storage, before: Set[str]) -> int:
    return sum(size for name, (_, size) in storage._backend.staged().items() if name not in before)


def kill_while_writing(arguments: Sequence[str], storage: Storage, num_bytes: int) -> bool:
    """Starts a command and kills it when it has written so many bytes; tells whether it was still running."""
    before = set(storage._backend.staged())
    deadline = time.monotonic() + WAIT_S
    with launched(*arguments) as (process, _):
        while process.is_alive() and num_staged_bytes(storage, before) < num_bytes:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        was_running = process.is_alive()
        process.kill()
    return was_running


def evaluations_under_fire(uri: str, kills: int, seed: int = 0) -> Counts:
    """Kills evaluations while they write, each of an id of its own, then lets some of them end."""
    storage, generator, counts = open_storage(uri), random.Random(seed), Counts()
    for run in RUNS:
        in_this_process(
            "train", *TINY, "--epochs", "1", "--seed", str(RUNS.index(run)), "--name", run, "--storage", uri
        )
    with tempfile.TemporaryDirectory() as scratch:
        stop = Path(scratch, "stop")
        command = [sys.executable, __file__, "--read", uri, "--stop", str(stop)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
            try:
                evaluate = ["evaluate", "--all-runs", "--dataset", "digits", "--no-report", "--storage", uri]
                evaluate += ["--shard-size", "5"]
                in_this_process(*evaluate)
                num_bytes = sum(file.size for file in storage.list_files("evaluations"))
                for number in range(kills):
                    # Another batch size, another evaluation.
                    another = [*evaluate, "--batch-size", str(number + 1)]
                    # One in six is killed with all its bytes written, about when it commits.
                    written = min(int(generator.uniform(0, 1.2) * num_bytes), num_bytes)
                    counts.kills += kill_while_writing(another, storage, written)
                    if number % 5 == 0:
                        in_this_process(*another)
            finally:
                stop.touch()
            assert reader.stdout is not None
            read = json.loads(reader.stdout.read())
        assert reader.returncode == 0
    counts.reads, counts.partial_reads = read["reads"], read["partial_reads"]
    committed = [name for name in storage.list_folders("evaluations") if storage.read_manifest(f"evaluations/{name}")]
    counts.partial_reads += sum(not is_whole(storage, name) for name in committed)
    counts.evaluations = len(committed)
    return counts


def grid_under_fire(uri: str, kills: int, seed: int = 0) -> tuple[int, bool]:
    """Kills a grid with all its processes, then lets it end; tells how often, and whether its runs are as without."""
    storage, generator = open_storage(uri), random.Random(seed)
    counted = sum(kill_grid([*launcher(*GRID), "--storage", uri], storage, generator) for _ in range(kills))
    subprocess.run([*launcher(*GRID), "--storage", uri], check=True, capture_output=True)
    with tempfile.TemporaryDirectory() as alone:
        subprocess.run([*launcher(*GRID), "--storage", alone], check=True, capture_output=True)
        other = open_storage(alone)
        paths = [f"runs/{run}/best/model.safetensors" for run in other.list_folders("runs")]
        same = all(storage.read_bytes(path) == other.read_bytes(path) for path in paths)
        return counted, same and storage.list_folders("runs") == other.list_folders("runs")


def kill_grid(command: Sequence[str], storage: Storage, generator: random.Random) -> bool:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    before, deadline = epochs(storage), time.monotonic() + WAIT_S
    while process.poll() is None and epochs(storage) == before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(generator.uniform(0, 0.5))
    was_running = process.poll() is None
    # Ray's own processes leave the group: all that descend from it.
    for pid in [process.pid, *descendants(process.pid, title=b"")]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    return was_running


def epochs(storage: Storage) -> list[str]:
    return [file.path for file in storage.list_files("runs") if file.path.endswith("checkpoint.json")]


@contextmanager
def place(kind: str) -> Iterator[str]:
    """Gives an empty storage."""
    with tempfile.TemporaryDirectory(prefix="mnist-ray-chaos-") as folder:
        if kind == "local":
            yield folder
            return
        with running_s3_server(Path(folder, "server.log")) as server:
            os.environ |= server.env
            client = boto3.Session().client("s3")
            client.create_bucket(Bucket="chaos")
            client.close()
            yield "s3://chaos/results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--storage", choices=("local", "s3"), action="append", help="one of them alone")
    parser.add_argument("--read", metavar="URI", help="be the reader")
    parser.add_argument("--stop", metavar="FILE")
    arguments = parser.parse_args()
    if arguments.read:
        read_until(arguments.read, Path(arguments.stop))
        return
    print(f"{'storage':8} {'kills':>6} {'evaluations':>12} {'reads':>7} {'partial':>8}")
    ok = True
    for kind in arguments.storage or ("local", "s3"):
        with place(kind) as uri:
            counts = evaluations_under_fire(uri, arguments.kills)
        ok &= counts.partial_reads == 0
        print(
            f"{kind:8} {counts.kills:6} {counts.evaluations:12} {counts.reads:7} {counts.partial_reads:8}", flush=True
        )
    with place("local") as uri:
        kills, same = grid_under_fire(uri, max(arguments.kills // 10, 1))
    print(f"a grid, killed {kills} times: {'the same runs' if same else 'OTHER RUNS'} as one that was left alone")
    sys.exit(not (ok and same))


if __name__ == "__main__":
    main()
