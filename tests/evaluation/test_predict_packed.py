"""Predictions for the images of IDX and Parquet files."""

import gzip
import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from mnist_ray.data.image_shape import MNIST_SHAPE, ImageForm
from mnist_ray.data.unlabelled import find_images
from tests.support.predicting import (
    UNKNOWN,
    expected_probabilities,
    idx_bytes,
    padded,
    parquet,
    png,
    predicted,
    write,
)


def test_idx_and_parquet_files_give_the_predictions_of_the_same_images_in_a_folder(
    storage: Path, digits: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = digits[:50].copy()
    some[::7] = 255 - some[::7]
    files = [png(pixels) for pixels in some]
    as_pixels = pa.FixedSizeListArray.from_arrays(pa.array(some.reshape(-1)), 784)
    as_struct = pa.array([{"bytes": content, "path": None} for content in files])
    write(tmp_path / "folder", {f"{place:02d}.png": content for place, content in enumerate(files)})
    write(
        tmp_path,
        {
            "some-idx3-ubyte": idx_bytes(some),
            "packed.gz": gzip.compress(idx_bytes(some)),
            "bytes.parquet": parquet(pa.table({"image": files, "other": files}), row_group_size=8),
            "struct.parquet": parquet(pa.table({"image": as_struct}), row_group_size=50),
            "pixels.parquet": parquet(pa.table({"image": as_pixels})),
            "two/_metadata": b"not read",
            "two/1.parquet": parquet(pa.table({"image": files[:30]})),
            "two/2.parquet": parquet(pa.table({"image": files[30:]})),
        },
    )
    shards = ["--shard-size", "20", "--num-workers", "1"]
    said, in_folder, _ = predicted(storage, tmp_path / "folder", *shards, capsys=capsys)
    assert said["num_inverted"] == 8
    expected = expected_probabilities(storage, digits[:50])
    np.testing.assert_allclose([row["probabilities"] for row in in_folder], expected, atol=1e-5)
    for place in ("some-idx3-ubyte", "packed.gz", "bytes.parquet", "struct.parquet", "pixels.parquet", "two"):
        said, rows, errors = predicted(storage, tmp_path / place, *shards, capsys=capsys)
        assert errors == [], place
        # Other cuts into batches may round differently, in the last bits.
        found = [row["probabilities"] for row in rows]
        np.testing.assert_allclose(found, [row["probabilities"] for row in in_folder], atol=1e-6, err_msg=place)
        names = {"two": ["1.parquet"] * 30 + ["2.parquet"] * 20}.get(place, [place] * 50)
        assert [row["path"] for row in rows] == names
        numbers = [*range(30), *range(20)] if place == "two" else [*range(50)]
        assert [row["row"] for row in rows] == numbers
        assert [row["inverted"] for row in rows] == [row["inverted"] for row in in_folder]


def test_tiny_images_of_a_packed_idx_file_are_read_a_few_at_once(tmp_path: Path) -> None:
    write(tmp_path, {"tiny.gz": gzip.compress(idx_bytes(np.zeros((100_000, 1, 1), dtype=np.uint8)))})
    (span,) = find_images(str(tmp_path / "tiny.gz")).spans(4096)
    count = largest = 0
    for images in itertools.islice(span.read(ImageForm(MNIST_SHAPE)), 3):
        assert images.pixels is not None
        count += len(images)
        largest = max(largest, images.pixels.nbytes)
    assert 0 < count < 5000
    assert largest <= 1 << 20


def test_images_of_another_size_in_an_idx_file_are_resized(
    storage: Path, digits: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    large = np.kron(digits[:3], np.ones((1, 2, 3), dtype=np.uint8))
    write(tmp_path, {"large.idx": idx_bytes(large)})
    said, rows, _ = predicted(storage, tmp_path / "large.idx", capsys=capsys)
    assert said["num_converted"] == 3
    expected = expected_probabilities(storage, np.stack([padded(Image.fromarray(pixels)) for pixels in large]))
    np.testing.assert_allclose([row["probabilities"] for row in rows], expected, atol=1e-5)


def test_bad_rows_of_parquet_are_listed_by_their_number(
    storage: Path, digits: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = png(digits[0])
    as_pixels = [digits[0].reshape(-1).tolist(), None, [1, 2], [None] * 784, digits[1].reshape(-1).tolist()]
    write(
        tmp_path,
        {
            "bytes.parquet": parquet(pa.table({"image": [good, None, b"", good]}), row_group_size=1),
            "pixels.parquet": parquet(pa.table({"image": pa.array(as_pixels, pa.list_(pa.uint8()))})),
        },
    )
    _, rows, errors = predicted(storage, tmp_path / "bytes.parquet", capsys=capsys)
    assert [row["row"] for row in rows] == [0, 3]
    assert [(row["row"], row["error"]) for row in errors] == [(1, "null"), (2, UNKNOWN)]
    _, rows, errors = predicted(storage, tmp_path / "pixels.parquet", capsys=capsys)
    assert [row["row"] for row in rows] == [0, 4]
    assert [(row["row"], row["error"]) for row in errors] == [(1, "null"), (2, "2 pixels instead of 784"), (3, "null")]
