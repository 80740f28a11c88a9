"""Predictions for the user's own images, as a person meets them; all in this process."""

import gzip
import io
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mnist_ray.cli.main import run_command
from mnist_ray.data.datasets import load_examples
from mnist_ray.results.schemas import TABLES
from tests.support.doing_lines import without_doing
from tests.support.predicting import (
    UNKNOWN,
    encoded,
    expected_probabilities,
    idx_bytes,
    left_in,
    line_of,
    padded,
    parquet,
    png,
    predict,
    predicted,
    write,
)


def test_images_of_every_sort_get_the_probabilities_of_their_pixels(
    storage: Path, digits: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grey = [Image.fromarray(pixels) for pixels in digits[:7]]
    transparent = Image.merge("LA", [Image.new("L", (28, 28), 0), grey[3]])  # black ink, opaque where there is ink
    large = grey[5].resize((112, 84), Image.Resampling.BICUBIC)
    jpeg = encoded(grey[4], "JPEG", quality=95)
    folder = write(
        tmp_path / "images",
        {
            "a.png": png(digits[0]),
            "b/inverted.png": png(255 - digits[1]),
            "b.colour.bmp": encoded(grey[2].convert("RGB"), "BMP"),
            "c rgba.png": encoded(transparent.convert("RGBA"), "PNG"),
            "d.jpg": jpeg,
            "e-large.tiff": encoded(large, "TIFF"),
            "Grüße/no suffix": png(digits[6]),
            "z-black.png": png(np.zeros((1, 1), dtype=np.uint8)),
            "z-white.gif": encoded(Image.new("P", (1, 1)), "GIF", palette=bytes([255] * 768)),
        },
    )
    said, rows, errors = predicted(storage, folder, capsys=capsys)
    assert errors == []
    paths = ["Grüße/no suffix", "a.png", "b.colour.bmp", "b/inverted.png", "c rgba.png", "d.jpg", "e-large.tiff"]
    assert [row["path"] for row in rows] == [*paths, "z-black.png", "z-white.gif"]
    assert {row["row"] for row in rows} == {None}
    inverted = {row["path"] for row in rows if row["inverted"]}
    assert inverted == {"b/inverted.png", "c rgba.png", "z-white.gif"}
    assert (said["num_images"], said["num_inverted"], said["num_converted"], said["num_errors"]) == (9, 3, 5, 0)

    of_jpeg = np.asarray(Image.open(io.BytesIO(jpeg)))
    pixels = np.stack([digits[6], digits[0], digits[2], digits[1], digits[3], of_jpeg, padded(large)])
    pixels = np.concatenate([pixels, np.zeros((2, 28, 28), dtype=np.uint8)])
    expected = expected_probabilities(storage, pixels)
    np.testing.assert_allclose([row["probabilities"] for row in rows], expected, atol=1e-5)
    assert [row["predicted_label"] for row in rows] == expected.argmax(1).tolist()
    assert [row["predicted_label_name"] for row in rows] == [str(label) for label in expected.argmax(1)]
    np.testing.assert_allclose([row["confidence"] for row in rows], expected.max(1), atol=1e-5)


def test_what_cannot_be_read_is_counted_listed_and_left_out(
    storage: Path, digits: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = png(digits[0])
    flipped = bytearray(good)
    flipped[50] ^= 255
    folder = write(
        tmp_path / "images",
        {
            "good.png": good,
            "bad/cut.png": good[:-40],
            "bad/flipped.png": bytes(flipped),
            "bad/empty.jpg": b"",
            "bad/notes.txt": b"hello",
            "bad/float.tiff": encoded(Image.fromarray(np.ones((9, 9), dtype=np.float32)), "TIFF"),
            "bad/two\nlines.png": good,
            ".hidden.png": b"junk",
            "Thumbs.db": b"junk",
        },
    )
    (folder / "bad/dangling.png").symlink_to("nowhere")
    (folder / "bad/linked.png").symlink_to("../good.png")
    (folder / "bad" / os.fsdecode(b"latin-\xe9.png")).write_bytes(good)
    os.mkfifo(folder / "bad/pipe.png")
    said, rows, errors = predicted(storage, folder, capsys=capsys)
    assert [row["path"] for row in rows] == ["bad/linked.png", "good.png"]
    reasons = {row["path"]: row["error"] for row in errors}
    assert list(reasons) == [
        "bad/cut.png", "bad/empty.jpg", "bad/flipped.png", "bad/float.tiff", "bad/latin-\\udce9.png", "bad/notes.txt",
        "bad/two\nlines.png",
    ]  # fmt: skip
    assert reasons["bad/cut.png"] == "image file is truncated"
    assert reasons["bad/empty.jpg"] == reasons["bad/notes.txt"] == UNKNOWN
    assert reasons["bad/float.tiff"] == "floating-point pixels have no agreed range"
    assert "name" in reasons["bad/two\nlines.png"]
    assert {row["run"] for row in errors} == {"a"}
    assert (said["num_images"], said["num_errors"], said["num_left_out"]) == (2, 7, 2)

    assert predict(storage, folder) == 0
    shown = capsys.readouterr()
    assert without_doing(shown.err) == (
        "images: skipping 1 FIFO (bad/pipe.png), 1 link that leads nowhere (bad/dangling.png)\n"
        "images: 7 of 9 images cannot be read, the first is bad/cut.png (image file is truncated); all are in "
        "the table image_errors\n"
    )
    assert "2 images predicted, 0 of them inverted, 0 converted to 28x28 grey; 7 could not be read" in shown.out


def test_strict_ends_with_3_and_stores_nothing(
    storage: Path, digits: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "images", {f"{place}.png": png(digits[place]) for place in range(5)})
    write(folder, {"3.png": b"junk", "4.png": b"junk"})
    before = left_in(storage)
    strict = ["--strict", "--shard-size", "2", "--num-workers", "1"]
    assert predict(storage, folder, *strict) == 3
    assert f"images={folder}: 1 of the first 2 images of shard 1 cannot be read, the first is 3.png ({UNKNOWN})" in (
        line_of(capsys)
    )
    assert left_in(storage) == before
    write(folder, {name: png(digits[0]) for name in ("3.png", "4.png")})
    assert predict(storage, folder, *strict) == 0


def test_a_folder_without_any_image_leaves_its_errors_and_says_so(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "texts", {"a.txt": b"a", "b.txt": b"b"})
    said, rows, errors = predicted(storage, folder, capsys=capsys)
    assert rows == []
    assert [row["path"] for row in errors] == ["a.txt", "b.txt"]
    assert said["num_images"] == 0
    assert len(list(Path(said["uri"]).glob("image_predictions/part-*.parquet"))) == 1
    assert predict(storage, folder) == 0
    assert "no image could be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("empty", "there are no files in {root}/empty; check the path"),
        ("hidden", "there are no files in {root}/hidden; check the path"),
        ("nowhere", "there is no such file or folder; check the path"),
        ("folder:a.png", "a.png is not a folder"),
        ("idx:nowhere", "there is no such IDX file"),
        ("mixed", "holds Parquet files (a.parquet) and others (b.png); say which with parquet:URI or folder:URI"),
        ("labels-idx1-ubyte", "starts with 0x00000801, not with the magic number 0x00000803"),
        ("cut-idx3-ubyte", "cut short: the header announces 3 x 28 x 28 elements"),
        ("long-idx3-ubyte", "but more bytes follow"),
        ("cut.gz", "damaged .gz file"),
        ("more.gz", "more bytes follow than were announced"),
        ("no-image-column.parquet", "needs one column 'image'; it has the columns label"),
        ("no-rows.parquet", "has no rows; at least one image is needed"),
        ("cut.parquet", "damaged Parquet file"),
        ("junk.png", f"no readable image: {UNKNOWN}"),
    ],
)
def test_a_place_without_readable_images_ends_with_3_and_one_line(
    storage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    place: str, message: str,
) -> None:  # fmt: skip
    images = idx_bytes(np.zeros((3, 28, 28), dtype=np.uint8))
    table = pa.table({"image": [b"x" * 500] * 3})
    files = {
        "a.png": b"junk",
        "hidden/.a.png": b"junk",
        "mixed/a.parquet": parquet(table),
        "mixed/b.png": b"junk",
        "labels-idx1-ubyte": b"\0\0\x08\x01\0\0\0\x01\x05",
        "cut-idx3-ubyte": images[:-1],
        "long-idx3-ubyte": images + b"\0",
        "cut.gz": gzip.compress(images)[:-9],
        "more.gz": gzip.compress(images + b"\0"),
        "no-image-column.parquet": parquet(pa.table({"label": [1]})),
        "no-rows.parquet": parquet(table[:0]),
        "cut.parquet": parquet(table)[:-9],
        "junk.png": b"junk",
    }
    root = write(tmp_path, files)
    (root / "empty").mkdir()
    monkeypatch.chdir(root)
    before = left_in(storage)
    assert predict(storage, place) == 3
    assert message.format(root=root) in line_of(capsys)
    assert left_in(storage) == before


def test_shards_are_cut_in_the_order_of_the_paths(
    storage: Path, digits: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["a/1.png", "a/b/2.png", "a-0.png", "a.png", "a0.png", "b.png", "B.png"]
    folder = write(tmp_path / "images", {name: png(digits[place]) for place, name in enumerate(names)})
    said, rows, _ = predicted(storage, folder, "--shard-size", "3", "--num-workers", "1", capsys=capsys)
    assert [row["path"] for row in rows] == sorted(names)
    parts = sorted(Path(said["uri"]).glob("image_predictions/part-*.parquet"))
    assert [path.name for path in parts] == [f"part-{number:05d}.parquet" for number in range(3)]
    assert [pq.read_metadata(path).num_rows for path in parts] == [3, 3, 1]


def test_a_single_image_is_answered_on_the_terminal(
    storage: Path, digits: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, {"one.png": png(255 - digits[0])})
    expected = expected_probabilities(storage, digits[:1])[0]
    before = left_in(storage)
    capsys.readouterr()
    assert predict(storage, tmp_path / "one.png") == 0
    shown = capsys.readouterr()
    assert without_doing(shown.err) == ""
    label = str(expected.argmax())
    assert shown.out.splitlines()[0] == f"one.png: {label}, probability {expected.max():.4f} (inverted)"
    for name, value in enumerate(expected):
        assert [str(name), f"{value:.4f}"] in [line.split() for line in shown.out.splitlines()]
    assert predict(storage, tmp_path / "one.png", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["predicted_label_name"], said["inverted"]) == (label, True)
    np.testing.assert_allclose(said["probabilities"], expected, atol=1e-5)
    assert predict(storage, tmp_path / "one.png", "--name", "x") == 2
    assert "--name 'x': leave it out" in line_of(capsys)
    assert left_in(storage) == before


def test_a_single_image_has_the_columns_and_values_of_the_table(
    storage: Path, digits: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "images", {"one.png": png(digits[0])})
    (row,) = predicted(storage, folder, capsys=capsys)[1]
    assert predict(storage, folder / "one.png", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert {name: said.pop(name) for name in row} == row
    assert list(row) == list(TABLES["image_predictions"].names)
    assert said == {"images": f"{folder}/one.png", "class_names": [str(name) for name in range(10)]}


def test_the_classes_of_a_folder_are_counted(
    storage: Path, digits: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "images", {f"{place}.png": png(digits[place]) for place in range(30)})
    said, rows, _ = predicted(storage, folder, "--shard-size", "7", capsys=capsys)
    counts = Counter(row["predicted_label_name"] for row in rows)
    assert list(said["classes"].values()) == sorted(counts.values(), reverse=True)
    assert said["classes"] == counts
    assert predict(storage, folder) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    first = lines.index(["predicted", "class", "images"]) + 2
    assert lines[first : first + len(counts)] == [[name, str(count)] for name, count in said["classes"].items()]


def test_the_same_images_again_change_nothing_and_others_are_a_conflict(
    storage: Path, digits: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "my images", {"1.png": png(digits[0])})
    first, *_ = predicted(storage, folder, capsys=capsys)
    assert first["predictions"].startswith("a-my-images-")
    assert not first["already_done"]
    again, *_ = predicted(storage, folder, capsys=capsys)
    assert again == {**first, "already_done": True}
    named, *_ = predicted(storage, folder, "--name", "mine", capsys=capsys)
    assert named["predictions"] == "mine"

    write(folder, {"1.png": png(digits[1])})
    other, *_ = predicted(storage, folder, capsys=capsys)
    assert not other["already_done"]
    assert other["predictions"] != first["predictions"]
    before = left_in(storage)
    assert predict(storage, folder, "--name", "mine") == 6
    assert "mine: exists with other content" in line_of(capsys)
    assert predict(storage, folder, "--name", "mine", "--polarity", "dark-on-bright") == 6
    assert "predictions 'mine': exist with another polarity (auto there, dark-on-bright here)" in line_of(capsys)
    assert left_in(storage) == before


def test_polarity_can_be_said(
    storage: Path, digits: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "images", {"1.png": png(digits[0]), "2.png": png(255 - digits[0])})
    for polarity, expected in (
        ("bright-on-dark", [False, False]),
        ("as-trained", [False, False]),
        ("dark-on-bright", [True, True]),
    ):
        _, rows, _ = predicted(storage, folder, "--polarity", polarity, capsys=capsys)
        assert [row["inverted"] for row in rows] == expected
        shown = np.stack([digits[0], 255 - digits[0]])
        pixels = 255 - shown if expected[0] else shown
        found = [row["probabilities"] for row in rows]
        np.testing.assert_allclose(found, expected_probabilities(storage, pixels), atol=1e-5)


def test_a_run_that_was_trained_on_dark_ink_gets_dark_ink(
    digits: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    examples = load_examples("digits", "test", data_dir=Path("unused"))
    files = [png(255 - pixels) for pixels in digits]
    write(tmp_path, {"data.parquet": parquet(pa.table({"image": files, "label": examples.labels.tolist()}))})
    train = ["train", "--dataset", f"parquet:{tmp_path}/data.parquet", "--epochs", "1", "--name", "a"]
    assert run_command([*train, "--storage", str(tmp_path / "s")]) == 0
    folder = write(tmp_path / "images", {"bright.png": png(digits[0]), "dark.png": png(255 - digits[0])})
    _, rows, _ = predicted(tmp_path / "s", folder, capsys=capsys)
    assert [row["inverted"] for row in rows] == [True, False]
    np.testing.assert_allclose(rows[0]["probabilities"], rows[1]["probabilities"], atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        ([], 2, ["--run NAME and --images URI"]),
        (["--run", "a"], 2, ["--images"]),
        (["--run", "../a", "--images", "x"], 2, ["run='../a'"]),
        (["--run", "nobody", "--images", "."], 3, ["'nobody'", "`mnist-ray runs`"]),
        (["--run", "a", "--images", ""], 2, ["images=''"]),
        (["--run", "a", "--images", "x", "--name", "a/b"], 2, ["name='a/b'"]),
        (["--run", "a", "--images", "x", "--polarity", "dark"], 2, ["--polarity", "'dark'", "dark-on-bright"]),
        (["--run", "a", "--images", "x", "--polarity", "dark-ink"], 2, ["'dark-ink' is now called 'dark-on-bright'"]),
        (
            ["--run", "a", "--images", "x", "--polarity", "bright-ink"],
            2,
            ["'bright-ink' is now called 'bright-on-dark'"],
        ),
        (["--run", "a", "--images", "x", "--num-workers", "0"], 2, ["--num-workers", "0"]),
        (["--run", "a", "--images", "s3://key:secret@b/x"], 2, ["credentials"]),
        (["--run", "a", "--images", "parquet:ftp://b/x"], 2, ["ftp"]),
        (["--run", "a", "--images", "x", "--storage", "/tmp/s", "--address", "http://127.0.0.1:9"], 2, ["absolute"]),
        (["--run", "a", "--images", "/x", "--storage", "s", "--address", "http://127.0.0.1:9"], 2, ["--storage"]),
        (
            ["--run", "a", "--images", "/x", "--storage", "/tmp/s", "--address", "http://127.0.0.1:9"],
            5,
            ["127.0.0.1:9"],
        ),
        (
            ["--run", "a", "--images", "s3://key:secret@b/x", "--storage", "/s", "--address", "http://127.0.0.1:9"],
            2,
            ["credentials"],
        ),
    ],
)
def test_a_mistake_ends_with_its_exit_code_and_one_line(
    arguments: Sequence[str], code: int, parts: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    write(tmp_path, {"file.png": b"junk"})
    monkeypatch.chdir(tmp_path)
    assert run_command(["predict", *arguments]) == code
    line = line_of(capsys)
    for part in parts:
        assert part in line
    assert "secret" not in line
    assert list(tmp_path.rglob("predictions")) == []
