"""The user's own images through Ray's workers: bytes, memory, and a worker that dies."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from mnist_ray.cli.main import run_command
from mnist_ray.data.datasets import load_examples
from tests.support.processes import descendants
from tests.support.ray_head import RayHead
from tests.support.ray_jobs import Step, run_here, run_job

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
ACTOR = b"ray::PoolWorker"
SHARD_SIZE = 500

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.fault]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with a run `a`, and 4,000 files of 355 digits, every hundredth not an image."""
    root = tmp_path_factory.mktemp("predict")
    train = ["train", "--dataset", "digits", "--epochs", "1", "--name", "a", "--storage", str(root / "storage")]
    assert run_command(train) == 0
    (root / "originals").mkdir()
    pixels = load_examples("digits", "test", data_dir=root).images[:, 0].numpy()
    for number, image in enumerate(pixels):
        Image.fromarray(255 - image if number % 3 else image).save(root / f"originals/{number}.png")
    (root / "originals/bad.png").write_bytes(b"no image")
    link_files(root, 4_000)
    return root


def link_files(root: Path, count: int) -> None:
    for number in range(count):
        path = root / f"{count}/{number // 1000:02d}/{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(root / ("originals/bad.png" if number % 100 == 99 else f"originals/{number % 355}.png"), path)


def predict_watched(folder: Path, count: int, name: str) -> tuple[int, int]:
    """Predicts with two workers; returns the peak memory of the command's process and of an actor, in bytes."""
    command = [sys.executable, "-m", "mnist_ray", *arguments(folder, count, name), "--num-workers", "2"]
    peaks: dict[str, int] = defaultdict(int)
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            # The driver's own: Ray's object store, which it shares, is limited, and how much it touches varies.
            peaks["driver"] = max(peaks["driver"], memory(process.pid, "RssAnon"))
            peaks["actor"] = max(
                peaks["actor"], *(memory(pid, "VmHWM") for pid in descendants(process.pid, title=ACTOR)), 0
            )
            time.sleep(0.3)
        assert process.stdout is not None
        check_counts(process.stdout.read(), count)
    assert process.returncode == 0
    return peaks["driver"], peaks["actor"]


def arguments(folder: Path, count: int, name: str) -> list[str]:
    images = ["--images", str(folder / str(count)), "--storage", str(folder / "storage")]
    return ["predict", "--run", "a", *images, "--name", name, "--shard-size", str(SHARD_SIZE), "--json"]


def check_counts(output: str, count: int) -> dict[str, Any]:
    """Returns what a command printed; every hundredth file is not an image."""
    printed: dict[str, Any] = json.loads(output)
    assert (printed["num_images"], printed["num_errors"]) == (count * 99 // 100, count // 100)
    return printed


def memory(pid: int, kind: str) -> int:
    """Returns a process's memory in bytes, of a kind as Linux calls it in its status; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{kind}:"))


def test_two_workers_write_the_bytes_of_one_process_though_a_worker_dies(shared_head: RayHead, folder: Path) -> None:
    def at_work(_: str) -> list[int]:
        return descendants(shared_head.pid, title=ACTOR + b".work")

    loss: Step = (at_work, lambda workers: os.kill(workers[0], signal.SIGKILL))
    shared = run_job(shared_head, *arguments(folder, 4_000, "shared"), "--num-workers", "2", steps=[loss])
    alone = run_here(*arguments(folder, 4_000, "alone"))
    files = []
    for done in (shared, alone):
        assert done.code == 0, done.log
        uri = Path(check_counts(done.output, 4_000)["uri"])
        files.append({path.relative_to(uri): path.read_bytes() for path in uri.glob("*/*.parquet")})
    assert files[0] == files[1]
    assert len(files[0]) == 9


@pytest.mark.series
@pytest.mark.timeout(600)
def test_50000_files_need_the_memory_of_5000(folder: Path) -> None:
    link_files(folder, 5_000)
    link_files(folder, 50_000)
    small = predict_watched(folder, 5_000, "small")
    large = predict_watched(folder, 50_000, "large")
    # 45,000 more images are 35 MB of pixels; the driver holds a line for each of 450 more errors.
    for few, many in zip(small, large, strict=True):
        assert 0 < many < few + 25e6, (small, large)

    tables = folder / "storage/predictions/large/image_predictions"
    paths = [
        path
        for number in range(50_000 // SHARD_SIZE)
        for path in pq.read_table(tables / f"part-{number:05d}.parquet")["path"]
    ]
    assert [str(path) for path in paths] == [
        f"{number // 1000:02d}/{number:05d}.png" for number in range(50_000) if number % 100 != 99
    ]


def test_an_error_on_a_worker_ends_the_job_with_its_code_and_leaves_nothing(shared_head: RayHead, folder: Path) -> None:
    before = sorted(path.name for path in folder.glob("storage/*/*"))
    done = run_job(shared_head, *arguments(folder, 4_000, "strict"), "--strict", "--num-workers", "2")
    assert done.code == 3, done.log
    assert f"{SHARD_SIZE // 100} of the first {SHARD_SIZE} images of shard" in done.log.splitlines()[-1]
    assert sorted(path.name for path in folder.glob("storage/*/*")) == before
