"""docs/python.md followed as it stands: as one script, and by a type checker."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pages import blocks

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/python.md").read_text()


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The page's code in one file, without `if __name__ == "__main__"`."""
    path = tmp_path / "page.py"
    path.write_text("\n".join(blocks(PAGE, "python")))
    return path


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.ray
@pytest.mark.slow
def test_the_page_is_a_script_that_prints_only_what_it_prints(script: Path, tmp_path: Path) -> None:
    done = run("page.py", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    answer, *rest = done.stdout.splitlines()
    assert answer.startswith("Dropout: ")
    assert any(line.startswith("dropout-digits-") and "'val_accuracy'" in line for line in rest)
    assert rest[-1] == "config: dropout=1.5: must be less than 1"
    # The second time everything is there.
    script.write_text(script.read_text().replace('Path("photos").mkdir()\n', ""))
    assert run("page.py", folder=tmp_path).stdout == done.stdout


@pytest.mark.slow
@pytest.mark.series
def test_the_page_passes_a_strict_type_checker(script: Path, tmp_path: Path) -> None:
    checked = run("-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "page.py", folder=tmp_path)
    assert checked.stdout == "Success: no issues found in 1 source file\n", checked.stdout
    script.write_text("import mnist_ray\nmnist_ray.train(dropout='much', epohcs=3)\nmnist_ray.compare('latest')\n")
    checked = run("-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), "page.py", folder=tmp_path)
    for part in ('incompatible type "str"; expected "float"', '"epohcs"', 'expected "Evaluation"'):
        assert part in checked.stdout
