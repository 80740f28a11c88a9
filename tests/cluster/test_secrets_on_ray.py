"""Jobs of a real head and of a local Ray, from among secrets: none of them is in anything that Ray has or tells."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.tune.execution import class_cache

from mnist_ray.errors import ClusterError
from mnist_ray.submission.connect import connect
from mnist_ray.submission.job_api import jobs_list
from tests.support.processes import written_so_far
from tests.support.ray_head import RayHead, ray_head
from tests.test_security import CANARIES, FILES, files_below, leaks

ROOT = Path(__file__).parents[2]
TOKEN = CANARIES["RAY_AUTH_TOKEN"]
KEYS = {name: value for name, value in CANARIES.items() if name.startswith("AWS_")}
TRAIN = ["train", "--dataset", "digits", "--epochs", "1", "--train-limit", "300"]
TUNE = ["tune", "--grid", "smoke", "--epochs", "1", "--seeds", "1"]

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    # As a Kubernetes secret puts the keys there.
    with ray_head(token=TOKEN, variables=KEYS) as running:
        yield running


def told(head: RayHead, path: str) -> tuple[str, bytes]:
    request = urllib.request.Request(head.address + path, headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return path, response.read()


def test_a_cluster_with_a_token_refuses_others_and_says_where_to_give_it(head: RayHead, tmp_path: Path) -> None:
    where = "give this cluster's token in RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
    with pytest.raises(ClusterError) as missing:
        connect(head.address, environ={"HOME": str(tmp_path)})
    assert str(missing.value) == f"{head.address}: HTTP 401: a token is needed and none was found; {where}"
    with pytest.raises(ClusterError) as wrong:
        connect(head.address, environ={"RAY_AUTH_TOKEN": "wrong-token"})
    assert str(wrong.value) == f"{head.address}: HTTP 403: wrong token in RAY_AUTH_TOKEN; {where}"
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    gcs = f"http://{head.gcs_address}"
    with pytest.raises(ClusterError) as missing:
        connect(gcs, environ={"HOME": str(tmp_path)})
    assert str(missing.value) == f"{gcs}: refused: a token is needed and none was found; {where}"
    with pytest.raises(ClusterError) as wrong:
        connect(gcs, environ={"RAY_AUTH_TOKEN": "wrong-token"})
    assert str(wrong.value) == f"{gcs}: refused: wrong token in RAY_AUTH_TOKEN; {where}"
    assert connect(gcs, environ={"RAY_AUTH_TOKEN": TOKEN}).address == head.address
    client = connect(head.address, environ={"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")})
    assert isinstance(jobs_list(client), list)


def test_a_job_trains_a_grid_with_its_trackers_and_without_a_secret_in_anything_that_ray_has(
    head: RayHead, tmp_path: Path
) -> None:
    done = run_among_secrets(head, tmp_path, *TUNE, "--num-workers", "1", "--log", "tensorboard", "--log", "mlflow")
    assert "grid marker: 4 runs, 4 trained now" in done.stderr
    assert "training goes on without it" not in done.stderr
    storage = tmp_path / "storage"
    # The settings, one epoch and the kept epoch of each run.
    assert len(list(storage.glob("tensorboard/marker-s0-*/events.out.tfevents.*"))) == 12
    assert len(list(storage.glob("mlflow/artifacts/*/artifacts/best/model.safetensors"))) == 4
    checkpoints = list(storage.glob("runs/marker-s0-*/best/checkpoint.json"))
    assert len(checkpoints) == 4
    for path in checkpoints:
        command_line = json.loads(path.read_text())["lineage"]["command_line"]
        assert command_line.startswith("python -m mnist_ray tune --grid smoke --epochs 1")


@pytest.mark.series
def test_a_job_trains_a_run_without_a_secret_in_anything_that_ray_has(head: RayHead, tmp_path: Path) -> None:
    run_among_secrets(head, tmp_path, *TRAIN)


def run_among_secrets(head: RayHead, folder: Path, *job: str) -> subprocess.CompletedProcess[str]:
    """Runs a job called marker with secrets in its environment and files, and searches for them."""
    home = folder / "home"
    for name, secret in FILES.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(f"SECRET={secret}\n")
    environment = {**head.environment, **CANARIES, "HOME": str(home), "PYTHONPATH": str(ROOT), "AWS_REGION": "marker"}
    command = [sys.executable, "-m", "mnist_ray", *job, "--name", "marker"]
    command += ["--storage", str(folder / "storage"), "--address", head.address]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    job_id = done.stdout.strip()

    paths = [f"/api/jobs/{job_id}", f"/api/jobs/{job_id}/logs", "/api/jobs/"]
    # The dashboard lists the runs of Ray Train; it has no such list before the first one.
    paths += ["/api/train/v2/runs/v1"] if job[0] == "train" else []
    pages = [told(head, path) for path in paths]
    # What isn't secret is there for everybody.
    assert json.loads(pages[0][1])["runtime_env"]["env_vars"]["AWS_REGION"] == "marker"
    assert leaks(iter([*pages, ("printed", (done.stdout + done.stderr).encode())]), marker="marker") == []
    assert leaks(files_below(folder / "storage"), marker="marker") == []
    # The logs of all of its processes, and the packages that it has unpacked.
    session = Path(head.environment["HOME"]).parent
    found = list(files_below(session))
    assert any("mnist_ray/submission/submit.py" in name for name, _ in found)
    assert any(name.endswith("raylet.out") for name, _ in found)
    assert leaks(iter(found), marker="marker") == []
    return done


@pytest.mark.series
def test_no_secret_is_in_the_folder_of_a_local_ray_that_tunes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mnist_ray", *TUNE, "--epochs", "500", "--storage", str(tmp_path / "storage")]
    with tempfile.TemporaryDirectory(prefix="rl", dir="/tmp") as name:
        environment = {**os.environ, **CANARIES, "HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "RAY_TMPDIR": name}
        with subprocess.Popen([*command, "--name", "g"], env=environment, stderr=subprocess.PIPE, text=True) as process:
            while not written_so_far(tmp_path, "storage/runs/*/checkpoints/epoch-0001/checkpoint.json"):
                assert process.poll() is None, process.stderr and process.stderr.read()
                time.sleep(0.01)
            found = list(files_below(Path(name)))
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=100) == 130
        assert list(Path(name).iterdir()) == []
    # The log that told them, which tells of the workers' other variables.
    (log,) = [content for path, content in found if path.endswith("runtime_env_agent.log")]
    assert b"PL_DISABLE_FORK" in log
    assert leaks(iter(found), marker="PL_DISABLE_FORK") == []


def test_tune_copies_the_keys_by_the_name_that_they_are_taken_from() -> None:
    # What the command replaces; without it the keys would have to be kept from another place.
    assert {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")} >= KEYS.keys()


def test_no_secret_is_in_the_command_line_of_a_process(head: RayHead) -> None:
    lines = []
    for folder in Path("/proc").glob("[0-9]*"):
        # One that has ended has none.
        with contextlib.suppress(OSError):
            lines.append((folder.name, (folder / "cmdline").read_bytes()))
    assert leaks(iter(lines), marker=head.gcs_address.rpartition(":")[2]) == []
