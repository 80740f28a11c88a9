"""What a checkpoint says of its making."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import pytest

from mnist_ray.results import lineage


def test_a_command_line_can_be_typed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    arguments = ["/home/ada/venv/bin/mnist-ray", "train", "--storage", "/home/ada/results", "--set", "dropout=0.3; ls"]
    assert lineage.command_line(arguments) == "mnist-ray train --storage ~/results --set 'dropout=0.3; ls'"
    assert lineage.command_line(["mnist-ray", "--data-dir", "/home/adam"]) == "mnist-ray --data-dir /home/adam"


def test_a_home_folder_with_spaces_stays_one_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert lineage.command_line(["x", "/home/ada/my results"]) == "x ~/'my results'"


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("/home/ada", "~"),
        ("--storage=/home/ada/results", "--storage=~/results"),
        ("folder:/home/ada/images", "folder:~/images"),
        ("file:///home/ada/results", "file://~/results"),
        ("/mnt/home/ada/results", "/mnt/home/ada/results"),
        ("http://me:secret@head:8265", "'http://***@head:8265'"),
        ("s3://bucket/prefix", "s3://bucket/prefix"),
    ],
)
def test_a_command_line_names_no_home_folder_and_no_password(
    argument: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert lineage.command_line(["mnist-ray", argument]) == f"mnist-ray {text}"


def test_a_job_tells_the_command_line_of_its_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/mnist_ray/__main__.py", "train"])
    assert lineage.command_line() == "python -m mnist_ray train"
    monkeypatch.setenv("MNIST_RAY_COMMAND_LINE", "mnist-ray train --address http://head:8265")
    assert lineage.command_line() == "mnist-ray train --address http://head:8265"


def test_lineage_names_this_machine_and_its_libraries() -> None:
    found = lineage.lineage(command_line="mnist-ray train", num_workers=2, gpu=None)
    assert found["python"] == platform.python_version()
    assert found["libraries"]["torch"] == version("torch")
    assert found["libraries"]["ray"] == version("ray")
    assert found["num_cpus"] == os.cpu_count()
    assert found["cpu"]
    assert found["gpu"] is None
    assert found["num_workers"] == 2


def test_lineage_names_no_person_and_no_host() -> None:
    text = str(lineage.lineage(command_line=lineage.command_line(["x"]), num_workers=1, gpu=None))
    assert platform.node() not in text
    assert str(Path.home()) == "/root" or str(Path.home()) not in text
