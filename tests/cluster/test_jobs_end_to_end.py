"""The same jobs on a real head: through the launcher and through plain `ray job submit`."""

import json
import subprocess
import sys
from pathlib import Path
from shutil import copytree

import pytest
from PIL import Image

from tests.support.ray_head import RayHead
from tests.support.ray_jobs import launch, run_here

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with a run `a`."""
    storage = tmp_path_factory.mktemp("trained")
    train = ["train", "--dataset", "digits", "--epochs", "1", "--name", "a", "--storage", str(storage)]
    assert run_here(*train).code == 0
    return storage


def submit_plainly(head: RayHead, *entrypoint: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in head.environment.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", head.address]
    command += ["--working-dir", ".", "--", *entrypoint]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False)


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


def test_the_launcher_itself_is_an_entry_point_that_runs_on_its_cluster(shared_head: RayHead, tmp_path: Path) -> None:
    train = ["mnist-ray", "train", "--dataset", "digits", "--epochs", "1"]
    relative = submit_plainly(shared_head, *train)
    assert "--storage 'results': in a job on a cluster give s3://..., or an absolute path" in relative.stdout
    # The address of a cluster in a job that runs on another one.
    done = submit_plainly(shared_head, *train, "--storage", str(tmp_path), "--address", "http://127.0.0.1:9")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "note: this process is a job on a cluster: the command runs here" in done.stdout
    (folder,) = (tmp_path / "runs").iterdir()
    lineage = json.loads((folder / "best/checkpoint.json").read_text())["lineage"]
    assert lineage["command_line"].startswith("mnist-ray train --dataset digits")
    jobs = json.loads(launch(shared_head, "jobs", "list", "--json").output)
    # In a job, its own cluster is the one that is asked.
    asked = submit_plainly(shared_head, "mnist-ray", "jobs", "list", "--json")
    assert f'"run": "{folder.name}"' in asked.stdout, asked.stdout
    assert {job["status"] for job in jobs if job["run"] == folder.name} == {"SUCCEEDED"}


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
