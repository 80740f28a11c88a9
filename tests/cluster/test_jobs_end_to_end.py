"""The same jobs on a real head: through the launcher and through plain `ray job submit`."""

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from shutil import copytree

import pytest
from PIL import Image

from mnist_ray.submission.job_api import JobClient, job_status
from tests.support.ray_head import RayHead
from tests.support.ray_jobs import launch, run_here

ROOT = Path(__file__).parents[2]

NET = """
import math
from torch import nn

def make_net(image_shape, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(image_shape), num_classes))
"""

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with a run `a`."""
    storage = tmp_path_factory.mktemp("trained")
    train = ["train", "--dataset", "digits", "--epochs", "1", "--name", "a", "--storage", str(storage)]
    assert run_here(*train).code == 0
    return storage


def submit_plainly(head: RayHead, *entrypoint: str, working_dir: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in head.environment.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", head.address]
    command += ["--working-dir", ".", "--", *entrypoint]
    return subprocess.run(
        command, cwd=working_dir, env=environment, capture_output=True, text=True, timeout=280, check=False
    )


def test_plain_ray_job_submit_trains_from_the_checkout_and_the_launcher_returns_a_jobs_own_exit_code(
    shared_head: RayHead, tmp_path: Path
) -> None:
    train = ["--dataset", "digits", "--epochs", "1", "--name", "a", "--storage", str(tmp_path)]
    done = submit_plainly(shared_head, "python", "jobs/train.py", "--variant", "baseline", *train)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "a is finished" in done.stdout
    assert (tmp_path / "runs/a/best/model.safetensors").is_file()

    conflict = launch(shared_head, "train", *train, "--set", "dropout=0.1")
    assert conflict.code == 6
    assert "exists with another config" in conflict.log
    job_id = conflict.output.strip()
    assert job_id.startswith("train-a-")
    listed = launch(shared_head, "jobs", "list", "--json")
    plain, launched = (next(row for row in json.loads(listed.output) if start in row["job"]) for start in ("ray", "a-"))
    assert (launched["job"], launched["status"], launched["run"]) == (job_id, "FAILED", "a")
    assert (plain["status"], plain["run"]) == ("SUCCEEDED", "a")
    logs = launch(shared_head, "jobs", "logs", job_id)
    assert "exists with another config" in logs.output


@pytest.mark.series
def test_the_launcher_itself_is_an_entry_point_that_runs_on_its_cluster(shared_head: RayHead, tmp_path: Path) -> None:
    train = ["mnist-ray", "train", "--dataset", "digits", "--epochs", "1", "--model", "net.py:make_net"]
    (tmp_path / "own").mkdir()
    (tmp_path / "own/net.py").write_text(NET)

    def submit(*entrypoint: str) -> subprocess.CompletedProcess[str]:
        return submit_plainly(shared_head, *entrypoint, working_dir=tmp_path / "own")

    relative = submit(*train)
    assert "--storage 'results': in a job on a cluster give s3://..., or an absolute path" in relative.stdout
    # The workers get the network's code, and the address of another cluster is not used.
    done = submit(*train, "--storage", str(tmp_path), "--address", "http://127.0.0.1:9")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "note: this process is a job on a cluster: the command runs here" in done.stdout
    (folder,) = (tmp_path / "runs").iterdir()
    lineage = json.loads((folder / "best/checkpoint.json").read_text())["lineage"]
    assert lineage["command_line"].startswith("mnist-ray train --dataset digits")
    # In a job, its own cluster is the one that is asked.
    asked = submit("mnist-ray", "jobs", "list", "--status", "succeeded", "--json")
    assert f'"run": "{folder.name}"' in asked.stdout, asked.stdout
    with urllib.request.urlopen(f"{shared_head.address}/api/train/v2/runs/v1", timeout=60) as answer:
        pages = json.load(answer)["train_runs"]
    assert {run["status"] for run in pages if run["name"] == folder.name} == {"FINISHED"}


def test_a_stopped_job_goes_on_when_it_is_submitted_again(shared_head: RayHead, tmp_path: Path) -> None:
    train = ["train", "--dataset", "digits", "--epochs", "40", "--name", "a", "--storage", str(tmp_path)]
    job_id = launch(shared_head, *train, "--no-wait").output.strip()
    history = tmp_path / "runs/a/history.parquet"
    while not history.is_file():
        assert job_status(JobClient(shared_head.address), job_id).status in ("PENDING", "RUNNING")
        time.sleep(0.05)
    assert launch(shared_head, "jobs", "stop", job_id).output == f"{job_id}: STOPPED\n"
    again = launch(shared_head, *train)
    assert (again.code, again.output) == (0, f"{job_id}.2\n"), again.log
    assert "a: epoch 1/40" not in again.log
    assert "a: epoch 40/40" in again.log


@pytest.mark.parametrize("pip", [[], pytest.param(["--pip"], marks=pytest.mark.series)], ids=["", "pip"])
def test_a_run_is_evaluated_by_a_job(shared_head: RayHead, tmp_path: Path, trained: Path, pip: list[str]) -> None:
    storage = ["--storage", str(copytree(trained, tmp_path / "storage"))]
    # With --pip: the cluster's Python has it all, pip finds nothing to do, and says so in a version of its own.
    evaluated = launch(shared_head, "evaluate", "--run", "a", "--dataset", "digits", *pip, *storage)
    assert evaluated.code == 0, evaluated.log
    # The job has the page's template, wherever it runs.
    assert list(tmp_path.glob("storage/reports/*/report.html"))
    (manifest,) = tmp_path.glob("storage/evaluations/*/_manifest.json")
    assert json.loads(manifest.read_text())["num_examples"] == 355


@pytest.mark.series
def test_images_are_predicted_by_a_job(shared_head: RayHead, tmp_path: Path, trained: Path) -> None:
    storage = ["--storage", str(copytree(trained, tmp_path / "storage"))]
    (tmp_path / "images").mkdir()
    for number in range(3):
        Image.new("L", (28, 28), 80 * number).save(tmp_path / f"images/{number}.png")
    # More than one shard: actors, beside other jobs on the cluster.
    images = ["--images", str(tmp_path / "images"), "--shard-size", "2"]
    predicted = launch(shared_head, "predict", "--run", "a", *images, "--name", "p", *storage)
    assert predicted.code == 0, predicted.log
    assert "3 images predicted, 1 of them inverted" in predicted.log
    assert len(list(tmp_path.glob("storage/predictions/p/image_predictions/part-*.parquet"))) == 2


def test_a_mistake_is_reported_before_a_job_is_submitted(shared_head: RayHead, tmp_path: Path) -> None:
    tune = ["tune", "--grid", "smoke", "--name", "g", "--storage", str(tmp_path)]
    refused = launch(shared_head, *tune, "--dropout", "[0.1, 1.5]")
    assert refused.code == 2
    assert refused.output == ""
    assert "dropout=1.5" in refused.log
