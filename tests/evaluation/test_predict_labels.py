"""Predictions for images whose folder or row says their class."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mnist_ray.data import parquet_file
from mnist_ray.data.datasets import load_examples
from tests.support.doing_lines import without_doing
from tests.support.predicting import parquet, png, predict, predicted, write


def test_folders_named_as_the_classes_give_labels_and_accuracy(
    storage: Path, digits: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = load_examples("digits", "test", data_dir=Path("unused")).labels[:40].tolist()
    files = {f"{label}/deep/{place:02d}.png": png(digits[place]) for place, label in enumerate(labels)}
    folder = write(tmp_path / "images", {**files, "3/junk.png": b"junk"})
    said, rows, _ = predicted(storage, folder, "--shard-size", "7", capsys=capsys)
    assert [row["label"] for row in rows] == [int(row["path"][0]) for row in rows] == sorted(labels)
    share = sum(row["label"] == row["predicted_label"] for row in rows) / 40
    assert (said["num_labelled"], said["accuracy"]) == (40, share)
    assert share > 0.8
    assert predict(storage, folder) == 0
    shown = capsys.readouterr().out
    assert f"accuracy {share:.4f} on 40 images, whose folders name their classes" in shown

    write(folder, {"other/7.png": png(digits[0])})
    said, rows, _ = predicted(storage, folder, capsys=capsys)
    assert (said["num_labelled"], said["accuracy"]) == (40, None)
    assert [row["path"] for row in rows if row["label"] is None] == ["other/7.png"]
    assert predict(storage, folder) == 0
    captured = capsys.readouterr()
    assert "accuracy" not in captured.out
    assert (
        "images: no accuracy, as 1 of 41 images are in no folder that is named as a class of the run, the first is "
        "other/7.png"
    ) in captured.err


@pytest.mark.parametrize("kind", ["integers", "strings", "dictionary", "pixels"])
def test_the_labels_of_parquet_give_labels_and_accuracy(
    storage: Path, digits: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, kind: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(parquet_file, "ROWS_PER_BATCH", 9)
    labels = load_examples("digits", "test", data_dir=Path("unused")).labels[:40].tolist()
    images = [pixels.reshape(-1).tolist() if kind == "pixels" else png(pixels) for pixels in digits[:40]]
    column = pa.array(labels if kind in ("integers", "pixels") else [str(label) for label in labels])
    image_column = pa.array(images, pa.list_(pa.uint8()) if kind == "pixels" else pa.binary())
    table = {"label": column.dictionary_encode() if kind == "dictionary" else column, "image": image_column}
    write(tmp_path, {"a.parquet": parquet(pa.table(table), row_group_size=16)})
    said, rows, _ = predicted(storage, tmp_path / "a.parquet", "--shard-size", "7", "--num-workers", "1", capsys=capsys)
    assert [row["label"] for row in rows] == labels
    share = sum(row["label"] == row["predicted_label"] for row in rows) / 40
    assert (said["num_labelled"], said["accuracy"]) == (40, share)
    assert share > 0.8
    assert predict(storage, tmp_path / "a.parquet") == 0
    assert f"accuracy {share:.4f} on 40 images, whose column label names their classes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("labels", "num_labelled", "first"),
    [([3, None, 77], 1, "row 1"), (["three", "one", "x"], 0, "row 0"), ([[3], [1], [2]], 0, None)],
)
def test_labels_that_are_no_class_give_no_accuracy_and_are_told_of(
    storage: Path, digits: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: list[Any],
    num_labelled: int, first: str | None,
) -> None:  # fmt: skip
    table = pa.table({"image": [png(pixels) for pixels in digits[:3]], "label": labels})
    write(tmp_path, {"a.parquet": parquet(table)})
    said, rows, _ = predicted(storage, tmp_path / "a.parquet", capsys=capsys)
    assert [row["label"] for row in rows] == [3, None, None] if num_labelled else [None] * 3
    assert (said["num_labelled"], said["accuracy"]) == (num_labelled, None)
    assert predict(storage, tmp_path / "a.parquet") == 0
    captured = capsys.readouterr()
    assert "accuracy" not in captured.out
    line = (
        f"no accuracy, as {3 - num_labelled} of 3 images have no label that is a class of the run, the first is {first}"
    )
    assert (f"images: {line} of a.parquet\n" if first else "") == without_doing(captured.err)


def test_images_in_no_folder_of_a_class_have_no_label_and_no_word_about_accuracy(
    storage: Path, digits: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "images", {"7": png(digits[0]), "x/7/1.png": png(digits[1])})
    said, rows, _ = predicted(storage, folder, capsys=capsys)
    assert [row["label"] for row in rows] == [None, None]
    assert (said["num_labelled"], said["accuracy"]) == (0, None)
    assert predict(storage, folder) == 0
    captured = capsys.readouterr()
    assert "accuracy" not in captured.out + captured.err
