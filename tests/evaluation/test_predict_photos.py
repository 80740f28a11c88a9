"""Photos whose grounds differ: predict answers for them as evaluate does, and says the accuracy."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageDraw

from mnist_ray.cli.main import run_command
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.storage.storage import open_storage

CLASSES = ("bars", "cross", "disc", "ring", "stripe")
SIDE = 100
# How far from the middle each of 10 x 10 parts of a photo is, 0 to 1.
LIGHT = np.maximum(*np.meshgrid(*[np.abs(np.linspace(-1, 1, 10))] * 2))


def draw(kind: str, generator: np.random.Generator, *, shade: int, canvas: Image.Image) -> Image.Image:
    """Draws a shape of a class, about in the middle, on a canvas."""
    pen = ImageDraw.Draw(canvas)
    x, y = (50 + int(shift) for shift in generator.integers(-6, 7, 2))
    size = int(generator.integers(28, 36))
    if kind == "disc":
        pen.ellipse((x - size, y - size, x + size, y + size), fill=shade)
    elif kind == "ring":
        pen.ellipse((x - size, y - size, x + size, y + size), outline=shade, width=10)
    elif kind == "cross":
        pen.line((x - size, y - size, x + size, y + size), fill=shade, width=12)
        pen.line((x - size, y + size, x + size, y - size), fill=shade, width=12)
    elif kind == "stripe":
        pen.rectangle((x - size, y - 8, x + size, y + 8), fill=shade)
    else:
        for left in (x - size, x, x + size - 8):
            pen.rectangle((left, y - size, left + 8, y + size), fill=shade)
    return canvas


def bright_on_texture(kind: str, generator: np.random.Generator) -> Image.Image:
    """A bright shape on a coarse pattern of greys."""
    coarse = generator.integers(0, 130, (10, 10)) + LIGHT * generator.uniform(-20, 60)
    canvas = Image.fromarray(np.clip(coarse, 0, 160).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return draw(kind, generator, shade=int(generator.integers(200, 256)), canvas=canvas)


def dark_on_greys(kind: str, generator: np.random.Generator) -> Image.Image:
    """A dark shape on a ground of any grey, with borders that are darker or brighter than its middle."""
    border = np.kron(LIGHT, np.ones((10, 10))) * generator.uniform(-80, 20)
    pixels = generator.integers(150, 240) + border + generator.normal(0, 6, (SIDE, SIDE))
    canvas = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return draw(kind, generator, shade=int(generator.integers(10, 60)), canvas=canvas)


def write_photos(root: Path, make: Any, count: int, *, seed: int) -> Path:
    generator = np.random.default_rng(seed)
    for kind in CLASSES:
        (root / kind).mkdir(parents=True)
        for number in range(count):
            make(kind, generator).save(root / kind / f"{number:03d}.jpg", quality=90)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("make", [bright_on_texture, pytest.param(dark_on_greys, marks=pytest.mark.series)])
def test_held_out_photos_are_predicted_as_well_as_evaluated_and_their_accuracy_is_printed(
    make: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_photos(tmp_path / "photos", make, 100, seed=0)
    held_out = write_photos(tmp_path / "held out", make, 40, seed=1)
    storage = str(tmp_path / "storage")
    of_photos = ["--dataset", f"folder:{photos}", "--storage", storage]
    train = [
        "train",
        "--variant",
        "cnn",
        "--epochs",
        "8",
        "--name",
        "a",
        "--set",
        "global_batch_size=32",
        "--image-size",
        "28",
    ]
    assert run_command([*train, *of_photos]) == 0
    assert run_command(["evaluate", "--run", "a", *of_photos]) == 0
    (metrics,) = (tmp_path / "storage/evaluations").glob("*/metrics/part-0.parquet")
    (evaluated,) = pq.read_table(metrics)["accuracy"].to_pylist()
    share = RunFolder(open_storage(storage), "a").best().document["bright_ground_share"]

    capsys.readouterr()
    predict = ["predict", "--run", "a", "--images", str(held_out), "--storage", storage]
    assert run_command([*predict, "--json"]) == 0
    captured = capsys.readouterr()
    said = json.loads(captured.out)
    assert said["num_labelled"] == said["num_images"] == 200
    assert said["accuracy"] > 0.9
    assert abs(said["accuracy"] - evaluated) <= 0.02
    assert 0.02 < share < 0.98
    assert said["num_inverted"] == 0
    assert f"images: none is inverted: {share:.1%} of the training images of run 'a'" in captured.err
    assert run_command(predict) == 0
    assert f"accuracy {said['accuracy']:.4f} on 200 images" in capsys.readouterr().out
    assert run_command([*predict, "--polarity", "dark-on-bright"]) == 2
    assert "--polarity as-trained" in capsys.readouterr().err
