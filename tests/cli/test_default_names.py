"""Runs without a name: what the commands call them, and what happens if the name is taken."""

import json
from pathlib import Path

import pytest

from mnist_ray.cli.main import run_command
from tests.support.colour_images import write_colour_folder


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two folders of images that are called alike, and differ."""
    for number, owner in enumerate(("anna", "ben")):
        write_colour_folder(tmp_path / owner / "photos", 4, width=8, height=8, seed=number)
    return tmp_path


def test_a_name_that_another_data_set_has_taken_is_a_conflict(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = str(photos / "s")

    def train(owner: str, *arguments: str) -> int:
        command = ["train", "--dataset", f"folder:{photos}/{owner}/photos", "--epochs", "1", "--storage", storage]
        return run_command([*command, *arguments])

    assert train("anna", "--json") == 0
    assert json.loads(capsys.readouterr().out)["run"] == "baseline-photos-epochs1-s0"
    assert train("ben") == 6
    assert error_line(capsys) == (
        "mnist-ray: error: run 'baseline-photos-epochs1-s0': the name is taken by a run on another data set "
        f"(folder:{photos}/anna/photos there, folder:{photos}/ben/photos here); choose another with --name"
    )
    # Another setting is another run.
    assert train("anna", "--weight-decay", "1e-4", "--json") == 0
    assert json.loads(capsys.readouterr().out)["run"] == "baseline-photos-wd1e-4-epochs1-s0"
