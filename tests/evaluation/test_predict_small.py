"""Images in which the ink fills little of the frame: said for runs of the grey sets by name, and only for these."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mnist_ray.cli.main import run_command
from tests.support.colour_images import write_colour_folder
from tests.support.doing_lines import without_doing
from tests.support.predicting import png, predict, predicted, write

HINT = "less than 40% of the frame's width and height, in the training images more; crop to the digit"


def on_paper(digit: np.ndarray, side: int) -> bytes:
    """A digit in pencil in a corner of a sheet of paper, PNG."""
    noise = np.random.default_rng(0)
    sheet = 215 + noise.integers(-10, 11, (side, side))
    sheet[20:48, 30:58] -= digit // 2
    return png(sheet.clip(0, 255).astype(np.uint8))


def test_a_digit_that_fills_little_of_the_frame_is_to_be_cropped(
    storage: Path, digits: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "images", {f"far-{place}.png": on_paper(digits[place], 120) for place in range(3)})
    write(folder, {f"near-{place}.png": png(digits[place]) for place in range(5)})
    assert predict(storage, folder) == 0
    assert f"images: in 3 of 8 images the ink fills {HINT}" in capsys.readouterr().err.splitlines()
    assert predicted(storage, folder, "--shard-size", "3", capsys=capsys)[0]["num_small"] == 3
    assert predict(storage, folder / "far-0.png", "--json") == 0
    shown = capsys.readouterr()
    assert without_doing(shown.err).splitlines() == [f"images: the ink fills {HINT}"]
    assert json.loads(shown.out)["path"] == "far-0.png"


def test_nothing_is_said_of_digits_that_are_cropped(
    storage: Path, digits: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "images", {f"{place}.png": png(digits[place]) for place in range(50)})
    write(folder, {f"paper-{place}.png": on_paper(digits[place], 62) for place in range(5)})
    assert predict(storage, folder) == 0
    shown = capsys.readouterr()
    assert "ink" not in shown.err


def test_nothing_is_said_to_a_run_on_photos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, place = write_colour_folder(tmp_path / "photos", 4, width=16, height=16), str(tmp_path / "s")
    for color in ("rgb", "grey"):
        command = ["train", "--dataset", f"folder:{photos}", "--epochs", "1", "--color", color, "--name", color]
        assert run_command([*command, "--storage", place]) == 0
        small = np.full((64, 64), 30, dtype=np.uint8)
        small[30:34, 30:34] = 220
        Image.fromarray(small).save(tmp_path / "small.png")
        capsys.readouterr()
        for images in (tmp_path / "small.png", photos):
            assert run_command(["predict", "--run", color, "--images", str(images), "--storage", place]) == 0
            assert "ink" not in capsys.readouterr().err
