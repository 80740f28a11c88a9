"""Images of more than 8 bits: predict and evaluate scale them as they were scaled when the run was trained."""

import io
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mnist_ray.cli.main import run_command
from mnist_ray.data.datasets import load_examples
from mnist_ray.data.decoding import UnreadableImageError, decode_image
from mnist_ray.data.image_shape import MNIST_SHAPE, ImageForm
from mnist_ray.data.unlabelled import find_images
from mnist_ray.errors import CheckpointError, DataError
from mnist_ray.evaluation.plan import trained_wide_bits
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.storage.storage import open_storage
from tests.support.colour_images import colour_png
from tests.support.doing_lines import without_doing

GREY = ImageForm(MNIST_SHAPE)


def digits(split: Any) -> tuple[np.ndarray, list[int]]:
    examples = load_examples("digits", split, data_dir=Path("unused"))
    return examples.images[:, 0].numpy(), examples.labels.tolist()


def png(pixels: np.ndarray, **options: Any) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", **options)
    return content.getvalue()


def of_12_bits(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.uint16) << 4


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with the runs `wide`, trained on digits of 12 bits in 16, and `narrow`, on those of 8 bits."""
    root = tmp_path_factory.mktemp("wide")
    pixels, labels = digits("train")
    for name, some in {"wide": of_12_bits(pixels), "narrow": pixels}.items():
        table = pa.table({"image": [png(image) for image in some[:600]], "label": labels[:600]})
        pq.write_table(table, root / f"{name}.parquet")
        train = ["train", "--dataset", f"parquet:{root}/{name}.parquet", "--epochs", "2", "--name", name]
        assert run_command([*train, "--storage", str(root / "s")]) == 0
    return root / "s"


def predict(storage: Path, run: str, images: Path, *more: str) -> int:
    return run_command(["predict", "--run", run, "--images", str(images), "--storage", str(storage), *more])


def predicted(storage: Path, run: str, images: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Any, Any, str]:
    """Returns what --json says, the probabilities and what is said of the images on stderr."""
    capsys.readouterr()
    assert predict(storage, run, images, "--json", "--polarity", "as-trained") == 0
    shown = capsys.readouterr()
    said = json.loads(shown.out)
    parts = [pq.read_table(path) for path in sorted(Path(said["uri"]).glob("image_predictions/part-*.parquet"))]
    return said, np.array(pa.concat_tables(parts)["probabilities"].to_pylist()), without_doing(shown.err)


def folder(root: Path, contents: list[bytes]) -> Path:
    root.mkdir()
    for number, content in enumerate(contents):
        (root / f"{number:03d}.png").write_bytes(content)
    return root


def test_a_run_remembers_the_range_by_which_its_images_were_scaled(storage: Path) -> None:
    documents = [RunFolder(open_storage(str(storage)), run).best().document for run in ("wide", "narrow")]
    assert [document["wide_bits"] for document in documents] == [12, None]
    assert documents[0]["normalization"] == documents[1]["normalization"]


@pytest.mark.parametrize("make", ["grey", "colour", "parquet"])
def test_images_are_predicted_as_they_were_scaled_for_training(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], make: str
) -> None:
    pixels = digits("test")[0][:20]
    wide = of_12_bits(pixels)
    contents = [png(image) if make != "colour" else colour_png(np.stack([image] * 3, axis=2)) for image in wide]
    place = tmp_path / "wide.parquet"
    if make == "parquet":
        pq.write_table(pa.table({"image": contents}), place)
    else:
        place = folder(tmp_path / "wide", contents)
    said, found, notes = predicted(storage, "wide", place, capsys)
    _, expected, _ = predicted(storage, "wide", folder(tmp_path / "narrow", [png(image) for image in pixels]), capsys)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (said["num_images"], said["num_wide"], said["num_errors"]) == (20, 20, 0)
    assert (
        notes
        == "images: 20 of 20 images have more than 8 bits, scaled from 12 bits, as the training images of run 'wide'\n"
    )


def test_an_image_beyond_the_range_of_training_is_told_of_and_left_out(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = digits("test")[0]
    place = folder(tmp_path / "images", [png(of_12_bits(pixels[0])), png(of_12_bits(pixels[1]) * 16)])
    said, _, notes = predicted(storage, "wide", place, capsys)
    assert (said["num_images"], said["num_errors"]) == (1, 1)
    assert "the first is 001.png (its pixels exceed 12 bits" in notes


def test_a_run_of_8_bits_predicts_none_whose_range_is_unclear_and_says_how_others_were_scaled(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = digits("test")[0][0]
    full = pixels.astype(np.uint16) * 257
    place = folder(tmp_path / "images", [png(of_12_bits(pixels)), png(full), colour_png(np.stack([full] * 3, axis=2))])
    said, found, notes = predicted(storage, "narrow", place, capsys)
    assert (said["num_images"], said["num_wide"], said["num_errors"]) == (2, 2, 1)
    assert "000.png (its pixels use 12 bits of 16" in notes
    assert "2 of 2 images have more than 8 bits, scaled from the 16 bits that they use" in notes
    _, expected, _ = predicted(storage, "narrow", folder(tmp_path / "narrow", [png(pixels)]), capsys)
    np.testing.assert_allclose(found, np.concatenate([expected] * 2), atol=1e-6)


def test_evaluate_scales_another_set_by_the_range_of_training(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels, labels = digits("test")
    # This set's own range would be 10 bits, and make all four times as bright.
    dark = of_12_bits(pixels[:100]) >> 2
    pq.write_table(pa.table({"image": [png(image) for image in dark], "label": labels[:100]}), tmp_path / "a.parquet")
    evaluate = ["evaluate", "--run", "wide", "--dataset", f"parquet:{tmp_path}/a.parquet", "--storage", str(storage)]
    capsys.readouterr()
    assert run_command(evaluate) == 0
    assert "images of 28x28 grey of 12 bits -> 28x28 grey" in capsys.readouterr().err


def test_runs_that_scaled_their_images_differently_are_not_evaluated_together(storage: Path) -> None:
    wide, narrow = (RunFolder(open_storage(str(storage)), run).best() for run in ("wide", "narrow"))
    assert [trained_wide_bits(some) for some in ([wide], [narrow], [wide, narrow])] == [12, None, 12]
    other = replace(wide, run="other", document={**wide.document, "wide_bits": 16})
    with pytest.raises(CheckpointError, match="'wide' from 12 bits, 'other' from 16 bits; evaluate them one by one"):
        trained_wide_bits([narrow, other, wide])


def test_all_files_of_a_parquet_set_have_one_range(tmp_path: Path) -> None:
    pixels, labels = digits("train")
    for name, shift, some in (("train", 2, slice(0, 40)), ("test", 4, slice(40, 80))):
        contents = [png(image.astype(np.uint16) << shift) for image in pixels[some]]
        pq.write_table(pa.table({"image": contents, "label": labels[some]}), tmp_path / f"{name}.parquet")
    for split, expected in (("train", pixels[:40] >> 2), ("test", pixels[40:80])):
        examples = load_examples(f"parquet:{tmp_path}", split, data_dir=tmp_path)
        assert np.array_equal(examples.images[:, 0].numpy(), expected)
        assert examples.wide_bits == 12
        assert examples.conversion == "40 images of 28x28 grey of 12 bits -> 28x28 grey"


def test_colours_of_more_than_8_bits_become_the_luma_of_their_upper_8() -> None:
    values = np.full((28, 28, 3), 4095, dtype=np.uint16)
    values[0] = (4095, 0, 0)
    values[1] = (0, 0, 4095)
    values[2] = 17
    decoded = decode_image(colour_png(values), GREY, wide_bits=12)
    assert decoded.pixels[0, :4, 0].tolist() == [76, 29, 1, 255]
    assert decoded.kind == (28, 28, "RGB of 12 bits")
    with pytest.raises(UnreadableImageError, match="use 12 bits of 16"):
        decode_image(colour_png(values), GREY)
    opaque = np.concatenate([values, np.full((28, 28, 1), 65535, dtype=np.uint16)], axis=2)
    with pytest.raises(UnreadableImageError, match="may be black or use less than 16 bits"):
        decode_image(colour_png(opaque), GREY)
    assert decode_image(colour_png(opaque * np.array([16, 16, 16, 1], dtype=np.uint16)), GREY).pixels[0, 3, 0] == 255


def test_a_transparent_value_and_white_as_zero_are_as_for_8_bits(tmp_path: Path) -> None:
    values = np.full((28, 28), 2048, dtype=np.uint16)
    values[0], values[1] = 65535, 4095
    (tmp_path / "a.png").write_bytes(png(values, transparency=65535))
    values[0] = 0
    Image.fromarray(values).save(tmp_path / "b.tiff", tiffinfo={262: 0})
    (span,) = find_images(str(tmp_path)).spans(10)
    found = [some.pixels for some in span.read(GREY, 12)]
    assert [image[0, 0, :3, 0].tolist() for image in found if image is not None] == [[255, 255, 128], [255, 0, 127]]


def test_images_that_become_one_shade_are_told_of_and_refused_if_all_do(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stripes = np.zeros((28, 28, 4), dtype=np.uint8)
    stripes[::2, :, :3] = 90
    place = folder(tmp_path / "images", [png(stripes), png(digits("test")[0][0]), png(np.zeros((28, 28), np.uint8))])
    said, _, notes = predicted(storage, "narrow", place, capsys)
    assert said["num_one_shade"] == 1
    assert "images: 1 of 3 images became one shade: 000.png\n" in notes
    lost = folder(tmp_path / "lost", [png(stripes)] * 2)
    line = "all {} images become one shade in 28x28 grey ({}); convert them to grey yourself"
    for images, count, names in ((lost, 2, "000.png, 001.png"), (lost / "000.png", 1, "000.png")):
        assert predict(storage, "narrow", images) == 3
        assert line.format(count, names) in capsys.readouterr().err


def test_idx_images_that_become_one_shade_when_they_shrink_are_told_of(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stripes = np.zeros((2, 56, 56), dtype=np.uint8)
    stripes[0, ::4] = 1  # halved, less than half a shade
    stripes[1, 20:] = 255
    header = b"\0\0\x08\x03" + np.array(stripes.shape, dtype=">u4").tobytes()
    (tmp_path / "some.idx").write_bytes(header + stripes.tobytes())
    said, _, notes = predicted(storage, "narrow", tmp_path / "some.idx", capsys)
    assert said["num_one_shade"] == 1
    assert "images: 1 of 2 images became one shade: row 0 of some.idx\n" in notes


def test_an_idx_set_whose_images_become_one_shade_is_told_of_or_refused(tmp_path: Path) -> None:
    images = np.zeros((3, 56, 56), dtype=np.uint8)
    images[:2, ::4] = 1
    images[2, 20:] = 255
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x0801, 3) + bytes([0, 1, 0]))

    def put(some: np.ndarray) -> None:
        content = struct.pack(">4I", 0x0803, 3, 56, 56) + some.tobytes()
        (tmp_path / "train-images-idx3-ubyte").write_bytes(content)

    put(images)
    assert load_examples(f"idx:{tmp_path}", "train", data_dir=tmp_path, options=GREY.options).conversion == (
        "3 images of 56x56 grey -> 28x28 grey; 2 of 3 images became one shade: image 0, image 1"
    )
    put(images[[0, 1, 1]])
    with pytest.raises(DataError, match="all 3 images become one shade in 28x28 grey"):
        load_examples(f"idx:{tmp_path}", "train", data_dir=tmp_path, options=GREY.options)
