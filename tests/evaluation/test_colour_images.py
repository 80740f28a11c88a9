"""Own images in colour and of other sizes, from training to prediction, by the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mnist_ray.cli.main import run_command
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.storage.storage import open_storage
from tests.support.colour_images import COLOURS, colour_images, write_colour_folder
from tests.support.predicting import line_of, predict, predicted

SMALL = ("--epochs", "6", "--name", "a", "--set", "global_batch_size=32")


def train(root: Path, dataset: str, *more: str) -> int:
    return run_command(["train", "--dataset", dataset, "--storage", str(root / "s"), *SMALL, *more])


def best(root: Path) -> Any:
    return RunFolder(open_storage(str(root / "s")), "a").best()


@pytest.mark.parametrize("variant", ["baseline", "cnn"])
def test_classes_that_only_colour_tells_apart_are_learned_in_colour(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], variant: str
) -> None:
    dataset = f"folder:{write_colour_folder(tmp_path / 'images', 60)}"
    assert train(tmp_path, dataset, "--variant", variant) == 0
    checkpoint = best(tmp_path)
    assert checkpoint.document["metrics"]["val_accuracy"] == 1.0
    assert checkpoint.image_shape == (3, 32, 32)
    assert "4 classes (blue, cyan, red, yellow); 172 training, 20 validation" in capsys.readouterr().err
    assert run_command(["evaluate", "--run", "a", "--storage", str(tmp_path / "s"), "--json"]) == 0
    (metrics,) = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["accuracy"] == 1.0


def test_in_grey_they_are_guesses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = f"folder:{write_colour_folder(tmp_path / 'images', 60)}"
    assert train(tmp_path, dataset, "--color", "grey") == 0
    assert best(tmp_path).image_shape == (1, 32, 32)
    assert best(tmp_path).document["metrics"]["val_accuracy"] < 0.5
    assert "192 images of 32x32 RGB -> 32x32 grey" in capsys.readouterr().err


def test_a_run_in_colour_predicts_images_of_any_size_and_colours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, f"folder:{write_colour_folder(tmp_path / 'images', 30)}") == 0
    photos = tmp_path / "photos"
    for name, images in colour_images(2, width=96, height=64, seed=1).items():
        (photos / name).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(photos / name / f"{number}.png")
    Image.new("L", (40, 40), 100).save(photos / "red" / "grey.png")
    said, rows, errors = predicted(tmp_path / "s", photos, capsys=capsys)
    assert errors == []
    assert (said["num_images"], said["num_converted"], said["num_inverted"]) == (9, 9, 0)
    assert [row["predicted_label_name"] for row in rows if "grey" not in row["path"]] == sorted([*COLOURS] * 2)
    assert predict(tmp_path / "s", photos / "red" / "0.png") == 0
    shown = capsys.readouterr()
    assert "red/0.png" not in shown.out
    assert "0.png: red, probability" in shown.out
    assert "(converted to 32x32 RGB)" in shown.out
    assert predict(tmp_path / "s", photos, "--polarity", "dark-on-bright") == 2
    assert "takes images in colour, which have no polarity" in line_of(capsys)
