import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mnist_ray.config import requirements as job

ROOT = Path(__file__).parents[2]


def test_what_a_job_checks_is_what_the_package_requires() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = dict(
        re.fullmatch(r"([a-z0-9.-]+)(?:\[.*\])?>=([\d.]+)", text).groups() for text in project["dependencies"]
    )
    assert required == job.REQUIREMENTS
    assert project["requires-python"] == ">={}.{}".format(*job.PYTHON)
    assert job.missing_requirements() == ""


@pytest.mark.parametrize("script", ["train", "tune", "evaluate", "predict"])
def test_a_node_without_the_packages_ends_a_job_with_5_and_their_names(script: str) -> None:
    # -S: without the installed packages.
    command = [sys.executable, "-I", "-S", str(ROOT / f"jobs/{script}.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.startswith(
        "mnist-ray: error: this cluster's node lacks torch>=2.11, torchvision>=0.26, ray>=2.56,"
    )
    assert done.stderr.endswith("pillow>=10; submit with --pip, or install them on the nodes\n")


def test_an_older_package_and_an_older_python_are_named_with_their_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "REQUIREMENTS", {"click": "99.1"})
    assert re.fullmatch(
        r"this cluster's node lacks click>=99\.1 \(has 8\.[\d.]+\); submit with --pip, or install them on the nodes",
        job.missing_requirements(),
    )
    monkeypatch.setattr(job, "PYTHON", (99, 0))
    here = "{}.{}".format(*sys.version_info[:2])
    assert job.missing_requirements() == (
        f"this cluster's node has Python {here} and mnist-ray needs 99.0 or newer; use another image"
    )
