"""Shell completion, by the protocol that the shells' scripts speak, and in a real bash."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

MNIST_RAY = Path(sys.executable).parent / "mnist-ray"


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    for folder in (
        "runs/cnn-a",
        "runs/cnn-b",
        "runs/mlp",
        "grids/g1",
        "evaluations/cnn-a-on-x",
        "evaluations/mine",
    ):
        (tmp_path / "results" / folder).mkdir(parents=True)
    return tmp_path


def completions(folder: Path, line: str) -> list[str]:
    """The values for the last word of a line, as bash gets them."""
    words = line.split(" ")
    variables = {"_MNIST_RAY_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        [str(MNIST_RAY)], env={**os.environ, **variables}, cwd=folder, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return [value.removeprefix("plain,") for value in done.stdout.split()]


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("mnist-ray comp", ["compare", "completion"]),
        ("mnist-ray train --variant drop", ["dropout", "dropout_batchnorm"]),
        ("mnist-ray tune --dataset f", ["fashion_mnist", "folder:"]),
        ("mnist-ray train --optimizer ad", ["adam", "adamw"]),
        ("mnist-ray tune --schedule c", ["constant", "cosine"]),
        ("mnist-ray train --model ", ["mlp", "cnn", "resnet"]),
        ("mnist-ray train --fit s", ["stretch"]),
        ("mnist-ray train --device ", ["cpu", "gpu"]),
        ("mnist-ray evaluate --split ", ["train", "test"]),
        ("mnist-ray train --lr", ["--lr"]),
        ("mnist-ray tune --batch", ["--batch-norm", "--batch-size"]),
        ("mnist-ray train --use", []),
        ("mnist-ray tune --grid re", ["regularization"]),
        ("mnist-ray evaluate --run cnn", ["cnn-a", "cnn-b"]),
        ("mnist-ray evaluate --grid ", ["g1"]),
        ("mnist-ray export m", ["mlp"]),
        ("mnist-ray compare ", ["cnn-a-on-x", "mine", "latest"]),
        ("mnist-ray query --evaluation m", ["mine"]),
        ("mnist-ray rm run mlp cnn", ["cnn-a", "cnn-b"]),
        ("mnist-ray rm evaluation ", ["cnn-a-on-x", "mine", "latest"]),
        ("mnist-ray rm prediction ", []),
        ("mnist-ray predict --storage nothing --run ", []),
        ("mnist-ray predict --storage s3://bucket/x --run ", []),
        ("mnist-ray predict --storage :// --run ", []),
    ],
)
def test_values_are_offered(storage: Path, line: str, values: list[str]) -> None:
    assert completions(storage, line) == values


def test_only_names_that_a_shell_leaves_whole_are_offered(storage: Path) -> None:
    for name in ("a b", "x\ny", "$(id)", "'", "-n"):
        (storage / "results/runs" / name).mkdir()
    assert completions(storage, "mnist-ray export ") == ["cnn-a", "cnn-b", "mlp"]


def test_names_are_those_of_the_storage_on_the_line(storage: Path) -> None:
    (storage / "results").rename(storage / "elsewhere")
    assert completions(storage, "mnist-ray reproduce ") == []
    assert completions(storage, "mnist-ray reproduce --storage elsewhere c") == ["cnn-a", "cnn-b"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_is_printed(shell: str) -> None:
    printed = subprocess.run([str(MNIST_RAY), "completion", shell], capture_output=True, text=True, check=True)
    assert f"{shell}_complete" in printed.stdout
    assert "mnist-ray" in printed.stdout


def test_bash_completes_with_the_script(storage: Path) -> None:
    script = """source <(mnist-ray completion bash)
        COMP_WORDS=(mnist-ray evaluate --run cnn) COMP_CWORD=3
        _mnist_ray_completion mnist-ray
        printf '%s\\n' "${COMPREPLY[@]}"
        complete -p mnist-ray"""
    path = f"{MNIST_RAY.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-c", script], env={**os.environ, "PATH": path}, cwd=storage, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[:2] == ["cnn-a", "cnn-b"], done.stderr
    assert "_mnist_ray_completion mnist-ray" in done.stdout
