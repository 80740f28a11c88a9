"""The same jobs on a real head: through the launcher and through plain `ray job submit`."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.support.ray_head import RayHead, ray_head

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head() as running:
        yield running


def run(head: RayHead, *command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**head.environment, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=280)


def launcher(head: RayHead, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mnist_ray", *arguments]
    return run(head, *command, "--address", head.address)


def test_plain_ray_job_submit_trains_from_the_checkout(head: RayHead, tmp_path: Path) -> None:
    environment = {name: value for name, value in head.environment.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", head.address]
    command += ["--working-dir", ".", "--", "python", "jobs/train.py", "--variant", "baseline", "--dataset", "digits"]
    command += ["--epochs", "2", "--name", "plain", "--storage", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "plain is finished" in done.stdout
    assert (tmp_path / "runs/plain/best/model.safetensors").is_file()


def test_the_launcher_submits_follows_and_returns_the_jobs_own_exit_code(head: RayHead, tmp_path: Path) -> None:
    storage = ["--storage", str(tmp_path)]
    train = ["train", "--dataset", "digits", "--epochs", "2", "--name", "a", "--num-workers", "2", *storage]
    done = launcher(head, *train)
    assert done.returncode == 0, done.stderr
    assert "a is finished" in done.stderr
    job_id = done.stdout.strip()
    lineage = json.loads((tmp_path / "runs/a/best/checkpoint.json").read_text())["lineage"]
    assert lineage["command_line"].startswith("python -m mnist_ray train --dataset digits --epochs 2 --name a")

    conflict = launcher(head, *train, "--set", "dropout=0.1")
    assert conflict.returncode == 6
    assert "exists with another config" in conflict.stderr

    # The cluster's Python has it all: pip finds nothing to do, and says so in a version of its own.
    evaluated = launcher(head, "evaluate", "--run", "a", "--dataset", "digits", "--pip", *storage)
    assert evaluated.returncode == 0, evaluated.stderr
    # The job has the page's template, wherever it runs.
    assert list(tmp_path.glob("reports/*/report.html"))
    (manifest,) = tmp_path.glob("evaluations/*/_manifest.json")
    assert json.loads(manifest.read_text())["num_examples"] == 355

    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.new("L", (28, 28), 80 * number).save(tmp_path / f"images/{number}.png")
    # More than one shard: actors, beside other jobs on the cluster.
    images = ["--images", str(tmp_path / "images"), "--shard-size", "2"]
    predicted = launcher(head, "predict", "--run", "a", *images, "--name", "p", *storage)
    assert predicted.returncode == 0, predicted.stderr
    assert "3 images predicted, 1 of them inverted" in predicted.stderr
    assert len(list(tmp_path.glob("predictions/p/predictions-*.parquet"))) == 2

    listed = launcher(head, "jobs", "list", "--json")
    jobs = {row["job"]: row for row in json.loads(listed.stdout)}
    assert jobs[job_id]["status"] == "SUCCEEDED"
    assert jobs[job_id]["run"] == "a"
    assert job_id.startswith("train-a-")
    logs = launcher(head, "jobs", "logs", job_id)
    assert "a is finished" in logs.stdout

    too_many = launcher(head, *train[:-3], "900", *storage)
    assert too_many.returncode == 5
    assert too_many.stderr.count("\n") == 1, too_many.stderr


def test_a_grid_is_trained_by_a_job_and_a_mistake_is_told_before_it_is_submitted(head: RayHead, tmp_path: Path) -> None:
    tune = ["tune", "--grid", "smoke", "--epochs", "1", "--name", "g", "--storage", str(tmp_path)]
    tune += ["--log", "tensorboard", "--log", "mlflow"]
    done = launcher(head, *tune)
    assert done.returncode == 0, done.stderr
    assert "grid g: 4 runs, 4 trained now" in done.stderr
    assert "training goes on without it" not in done.stderr
    # The settings and one epoch of each run.
    assert len(list(tmp_path.glob("tensorboard/g-s0-*/events.out.tfevents.*"))) == 8
    assert len(list(tmp_path.glob("mlflow/artifacts/*/artifacts/best/model.safetensors"))) == 4
    assert len(list(tmp_path.glob("runs/g-s0-*/best/checkpoint.json"))) == 4
    again = launcher(head, *tune)
    assert again.returncode == 0, again.stderr
    assert "all were done already" in again.stderr

    refused = launcher(head, *tune, "--dropout", "[0.1, 1.5]")
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert "dropout=1.5" in refused.stderr
