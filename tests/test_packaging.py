"""What an installed package has and says."""

import re
import subprocess
import sys
import zipfile
from email.parser import BytesParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(command, check=True)
    (path,) = folder.glob("mnist_ray-*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_is_typed_and_has_what_the_launcher_submits(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert {"mnist_ray/py.typed", "mnist_ray/_constraints.txt", "mnist_ray/_jobs/train.py"} <= names
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "mnist_ray").rglob("*.py")}
    assert sources <= names
    assert {name.split("/")[0] for name in names if not name.startswith("mnist_ray/")} == {
        next(name for name in names if name.endswith("/METADATA")).split("/")[0]
    }


def test_the_metadata_say_for_whom_it_is_and_link_to_nothing_that_is_not_there(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    metadata = BytesParser().parsebytes(wheel.read(name))
    classifiers = metadata.get_all("Classifier")
    assert classifiers is not None
    assert {"Typing :: Typed", "Operating System :: POSIX :: Linux", "Operating System :: MacOS"} <= set(classifiers)
    assert metadata["Description-Content-Type"] == "text/markdown"
    readme, text = (ROOT / "README.md").read_text(), str(metadata.get_payload())
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        line for line in readme.splitlines() if line.startswith("#")
    ]
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    assert len(re.findall(r"\]\(", readme)) > len(links) > 0
    assert "![" not in text


def test_windows_is_refused_in_one_line() -> None:
    patched = "import sys; sys.platform, sys.modules['fcntl'] = 'win32', None"
    code = f"{patched}; from mnist_ray.cli.process import main; main(['runs'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "mnist-ray: error: runs on Linux and macOS; on Windows, run it in WSL\n"
