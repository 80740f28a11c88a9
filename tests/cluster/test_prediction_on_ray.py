"""50,000 of the user's own images through Ray's workers: bytes, memory, and a worker that dies."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from mnist_ray.cli.main import run_command
from mnist_ray.data.datasets import load_examples
from tests.support.processes import descendants

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
ACTOR = b"ray::PoolWorker"

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.fault]


@dataclass(frozen=True)
class Predicted:
    """What a command left: its tables' bytes by name, and the peak memory of its process and of an actor, bytes."""

    files: dict[str, bytes]
    driver_peak: int
    actor_peak: int


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with a run `a`, and 5,000 files of 355 digits, every hundredth not an image."""
    root = tmp_path_factory.mktemp("predict")
    train = ["train", "--dataset", "digits", "--epochs", "1", "--name", "a", "--storage", str(root / "storage")]
    assert run_command(train) == 0
    (root / "originals").mkdir()
    pixels = load_examples("digits", "test", data_dir=root).images[:, 0].numpy()
    for number, image in enumerate(pixels):
        Image.fromarray(255 - image if number % 3 else image).save(root / f"originals/{number}.png")
    (root / "originals/bad.png").write_bytes(b"no image")
    link_files(root, 5_000)
    return root


def link_files(root: Path, count: int) -> None:
    for number in range(count):
        path = root / f"{count}/{number // 1000:02d}/{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(root / ("originals/bad.png" if number % 100 == 99 else f"originals/{number % 355}.png"), path)


def predict(folder: Path, count: int, name: str, *more: str, killing: bool = False) -> Predicted:
    arguments = ["predict", "--run", "a", "--images", str(folder / str(count)), "--storage", str(folder / "storage")]
    command = [sys.executable, "-m", "mnist_ray", *arguments, "--name", name, "--shard-size", "1000", "--json", *more]
    peaks: dict[str, int] = defaultdict(int)
    log = folder / f"{name}.log"
    with (
        open(log, "wb") as errors,
        subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
    ):
        while process.poll() is None:
            actors = descendants(process.pid, title=ACTOR)
            # The driver's own: Ray's object store, which it shares, is limited, and how much it touches varies.
            peaks["driver"] = max(peaks["driver"], memory(process.pid, "RssAnon"))
            peaks["actor"] = max(peaks["actor"], *(memory(pid, "VmHWM") for pid in actors), 0)
            at_work = descendants(process.pid, title=ACTOR + b".work")
            if killing and at_work:
                os.kill(at_work[0], signal.SIGKILL)
                killing = False
            time.sleep(0.3)
        assert process.stdout is not None
        shown = process.stdout.read()
    assert process.returncode == 0, log.read_text()
    assert not killing
    said = json.loads(shown)
    assert (said["num_images"], said["num_errors"]) == (count * 99 // 100, count // 100)
    found = {path.name: path.read_bytes() for path in Path(said["uri"]).glob("*.parquet")}
    return Predicted(found, peaks["driver"], peaks["actor"])


def memory(pid: int, kind: str) -> int:
    """Returns a process's memory in bytes, of a kind as Linux calls it in its status; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{kind}:"))


def test_two_workers_write_the_bytes_of_one_process_though_a_worker_dies(folder: Path) -> None:
    shared = predict(folder, 5_000, "shared", "--num-workers", "2", killing=True)
    alone = predict(folder, 5_000, "alone", "--num-workers", "1")
    assert alone.actor_peak == 0
    assert shared.actor_peak > 0
    assert shared.files == alone.files
    assert len(shared.files) == 6


@pytest.mark.series
@pytest.mark.timeout(600)
def test_50000_files_need_the_memory_of_5000(folder: Path) -> None:
    link_files(folder, 50_000)
    small = predict(folder, 5_000, "small", "--num-workers", "2")
    large = predict(folder, 50_000, "large", "--num-workers", "2")
    # 45,000 more images are 35 MB of pixels; the driver holds a line for each of 450 more errors.
    assert large.driver_peak - small.driver_peak < 25e6, (small.driver_peak, large.driver_peak)
    assert large.actor_peak - small.actor_peak < 25e6, (small.actor_peak, large.actor_peak)

    paths = [
        path
        for number in range(50)
        for path in pq.read_table(folder / f"storage/predictions/large/predictions-{number:05d}.parquet")["path"]
    ]
    assert [str(path) for path in paths] == [
        f"{number // 1000:02d}/{number:05d}.png" for number in range(50_000) if number % 100 != 99
    ]


def test_an_error_on_a_worker_ends_the_job_with_its_code_and_leaves_nothing(folder: Path) -> None:
    storage = folder / "storage"
    arguments = ["predict", "--run", "a", "--images", str(folder / "5000"), "--storage", str(storage), "--strict"]
    command = [sys.executable, "-m", "mnist_ray", *arguments, "--shard-size", "1000", "--num-workers", "2"]
    before = sorted(path.name for path in storage.glob("*/*"))
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 3, done.stderr
    assert "10 of the first 1000 images of shard" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in storage.glob("*/*")) == before
