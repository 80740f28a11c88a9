"""A job of a real head, submitted from among secrets: none of them is in anything that the head has or tells."""

import contextlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_head import RayHead, ray_head
from test_security import CANARIES, FILES, files_below, leaks

ROOT = Path(__file__).parent.parent.parent
TOKEN = CANARIES["RAY_AUTH_TOKEN"]

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head(token=TOKEN) as running:
        yield running


def told(head: RayHead, path: str) -> tuple[str, bytes]:
    request = urllib.request.Request(head.address + path, headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return path, response.read()


def test_no_secret_is_in_a_jobs_description_its_logs_or_rays_own_folder(head: RayHead, tmp_path: Path) -> None:
    home = tmp_path / "home"
    for name, secret in FILES.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(f"SECRET={secret}\n")
    environment = {**head.environment, **CANARIES, "HOME": str(home), "PYTHONPATH": str(ROOT), "AWS_REGION": "marker"}
    command = [sys.executable, "-m", "mnist_ray", "train", "--dataset", "digits", "--epochs", "1", "--name", "marker"]
    command += ["--train-limit", "300", "--storage", str(tmp_path / "storage"), "--address", head.address]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    job_id = done.stdout.strip()

    pages = [told(head, path) for path in (f"/api/jobs/{job_id}", f"/api/jobs/{job_id}/logs", "/api/jobs/")]
    # What isn't secret is there for everybody.
    assert json.loads(pages[0][1])["runtime_env"]["env_vars"]["AWS_REGION"] == "marker"
    assert leaks(iter([*pages, ("printed", (done.stdout + done.stderr).encode())]), marker="marker") == []
    assert leaks(files_below(tmp_path / "storage"), marker="marker") == []
    # The logs of all of its processes, and the packages that it has unpacked.
    session = Path(head.environment["HOME"]).parent
    found = list(files_below(session))
    assert any("mnist_ray/cluster/submission.py" in name for name, _ in found)
    assert any(name.endswith("raylet.out") for name, _ in found)
    assert leaks(iter(found), marker="marker") == []


def test_no_secret_is_in_the_command_line_of_a_process(head: RayHead) -> None:
    lines = []
    for folder in Path("/proc").glob("[0-9]*"):
        # One that has ended has none.
        with contextlib.suppress(OSError):
            lines.append((folder.name, (folder / "cmdline").read_bytes()))
    assert leaks(iter(lines), marker=head.gcs_address.rpartition(":")[2]) == []
