import contextlib
import io
import os
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mnist_ray.data.datasets import AS_THEY_ARE, load_examples
from mnist_ray.data.image_shape import MNIST_SHAPE, ImageForm
from mnist_ray.data.sources import list_files
from mnist_ray.data.unlabelled import find_images
from mnist_ray.errors import DataError
from mnist_ray.storage.storage import open_storage
from tests.support.idx_files import some_images

PIXELS = some_images(12)
GREY = ImageForm(MNIST_SHAPE).options


def save(path: Path, image: Image.Image, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def save_grey(path: Path, index: int) -> None:
    save(path, Image.fromarray(PIXELS[index]))


def load(folder: Path, split="train", *, options=AS_THEY_ARE):
    return load_examples(f"folder:{folder}", split, data_dir=folder, options=options)


def folder_with(folder: Path, image: Image.Image, name: str = "image.png", **options) -> Path:
    """Two classes, a and b; the image is the only one of a."""
    save(folder / "a" / name, image, **options)
    save_grey(folder / "b" / "grey.png", 0)
    return folder


def test_train_and_test_folders_are_the_splits_and_grey_28x28_images_stay_as_they_are(tmp_path):
    save_grey(tmp_path / "train" / "cat" / "1.png", 0)
    save_grey(tmp_path / "train" / "dog" / "deeper" / "2.bmp", 1)
    save_grey(tmp_path / "test" / "dog" / "3.png", 2)
    train, test = load(tmp_path), load(tmp_path, "test")
    assert train.class_names == test.class_names == ("cat", "dog")
    assert train.labels.tolist() == [0, 1]
    assert test.labels.tolist() == [1]
    assert np.array_equal(train.images.numpy(), PIXELS[:2].reshape(2, 1, 28, 28))
    assert np.array_equal(test.images.numpy(), PIXELS[2:3].reshape(1, 1, 28, 28))
    assert (train.images.dtype, train.labels.dtype) == (torch.uint8, torch.int64)
    assert train.conversion is None


def test_without_split_folders_every_fifth_image_of_a_class_by_name_is_a_test_image(tmp_path):
    for index in range(10):
        save_grey(tmp_path / "even" / f"{index}.png", index)
    for index in (10, 11):
        save_grey(tmp_path / "odd" / f"{index}.png", index)
    train, test = load(tmp_path), load(tmp_path, "test")
    assert np.array_equal(test.images[:, 0].numpy(), PIXELS[[4, 9]])
    assert np.array_equal(train.images[:, 0].numpy(), PIXELS[[0, 1, 2, 3, 5, 6, 7, 8, 10, 11]])
    assert train.labels.tolist() == [0] * 8 + [1] * 2
    assert test.class_names == ("even", "odd")


def test_classes_that_are_whole_numbers_are_in_numeric_order(tmp_path):
    for index, name in enumerate(["10", "2", "1"]):
        save_grey(tmp_path / name / "a.png", index)
    train = load(tmp_path)
    assert train.class_names == ("1", "2", "10")
    assert sorted(train.labels.tolist()) == [0, 1, 2]
    assert np.array_equal(train.images[train.labels == 2][0, 0].numpy(), PIXELS[0])


def test_hidden_files_and_the_junk_of_file_managers_are_left_out(tmp_path):
    folder_with(tmp_path, Image.fromarray(PIXELS[1]))
    for name in (".DS_Store", "a/.hidden.png", "a/Thumbs.db", "b/desktop.ini", "__MACOSX/a/image.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"junk")
    assert len(load(tmp_path)) == 2


def test_what_was_converted_is_said_by_kind_and_count(tmp_path):
    folder_with(tmp_path, Image.new("RGB", (32, 20), "red"))
    save(tmp_path / "a" / "second.jpg", Image.new("RGB", (32, 20), "blue"))
    save(tmp_path / "b" / "bits.png", Image.new("1", (28, 28), 1))
    assert load(tmp_path, options=GREY).conversion == (
        "2 images of 32x20 RGB, 1 image of 28x28 black-and-white -> 28x28 grey, padded"
    )


def test_many_kinds_of_images_still_give_one_line(tmp_path):
    folder_with(tmp_path, Image.new("RGB", (32, 32)))
    for side in range(40, 46):
        save(tmp_path / "a" / f"{side}.png", Image.new("L", (side, side)))
    assert load(tmp_path, options=GREY).conversion == (
        "1 image of 32x32 RGB, 1 image of 40x40 grey, 1 image of 41x41 grey, 3 images of 3 other kinds -> 28x28 grey"
    )


def pixel_of_a(folder: Path, row: int = 14, column: int = 14) -> int:
    return int(load(folder, options=GREY).images[0, 0, row, column])


def test_colours_become_their_luma(tmp_path):
    assert pixel_of_a(folder_with(tmp_path, Image.new("RGB", (28, 28), (255, 0, 0)))) == 76  # 0.299 * 255


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(tmp_path, mode):
    clear = Image.new(mode, (28, 28), (0, 0, 0, 0) if mode == "RGBA" else (0, 0))
    assert pixel_of_a(folder_with(tmp_path, clear)) == 255


def test_a_palette_image_with_a_transparent_entry_is_laid_over_white(tmp_path):
    assert pixel_of_a(folder_with(tmp_path, Image.new("P", (28, 28), 0), transparency=bytes([0]))) == 255


def test_16_bit_greys_keep_their_upper_byte(tmp_path):
    assert pixel_of_a(folder_with(tmp_path, Image.fromarray(np.full((28, 28), 0x40FF, np.uint16)))) == 0x40


def wide_image(largest: int, kind: type = np.uint16) -> Image.Image:
    """Black, with a row of the largest value and a row of half of it."""
    values = np.zeros((28, 28), kind)
    values[5], values[6] = largest, largest // 2 + 1
    return Image.fromarray(values)


@pytest.mark.parametrize(
    ("kind", "name", "largest", "bits", "half"),
    [
        (np.uint16, "image.png", 255, 8, 128),
        (np.uint16, "image.png", 1023, 10, 128),
        (np.uint16, "image.tiff", 4095, 12, 128),
        (np.int32, "image.tiff", 4095, 12, 128),
        (np.int32, "image.tiff", 255, 8, 128),
        (np.uint16, "image.png", 2049, 12, 64),
        (np.uint16, "image.png", 16383, 14, 128),
        (np.uint16, "image.png", 65535, 16, 128),
    ],
)
def test_greys_of_more_than_8_bits_are_scaled_by_the_range_that_they_use(tmp_path, kind, name, largest, bits, half):
    train = load(folder_with(tmp_path, wide_image(largest, kind), name))
    image = train.images[0, 0]
    assert image[5, 0] == largest >> (bits - 8)
    assert image[6, 0] == half
    assert image.sum() == 28 * (int(image[5, 0]) + half)
    assert train.conversion == f"1 image of 28x28 grey of {bits} bits -> 28x28 grey"


def test_one_range_holds_for_all_images_of_both_splits(tmp_path):
    save(tmp_path / "train/a/dark.png", wide_image(1023))
    save_grey(tmp_path / "train/b/grey.png", 0)
    save(tmp_path / "test/a/bright.png", wide_image(4095))
    train, test = load(tmp_path), load(tmp_path, "test")
    assert train.images[0, 0, 5, 0] == 1023 >> 4
    assert np.array_equal(train.images[1, 0].numpy(), PIXELS[0])
    assert test.images[0, 0, 5, 0] == 255
    assert train.conversion == test.conversion == "1 image of 28x28 grey of 12 bits -> 28x28 grey"


def test_a_transparent_value_of_more_than_8_bits_becomes_white_and_has_no_part_in_the_range(tmp_path):
    values = np.full((28, 28), 2048, np.uint16)
    values[0] = 65535
    folder_with(tmp_path, Image.fromarray(values), transparency=65535)
    train = load(tmp_path)
    assert train.images[0, 0, :2, 0].tolist() == [255, 128]
    assert "12 bits" in train.conversion


def test_a_tiff_of_more_than_8_bits_whose_zero_is_white_is_inverted_as_one_of_8_bits_is(tmp_path):
    folder_with(tmp_path, wide_image(4095), "image.tiff", tiffinfo={262: 0})
    assert load(tmp_path).images[0, 0, 4:7, 0].tolist() == [255, 0, 127]


def test_images_that_become_one_shade_are_counted_and_named_and_refused_if_all_do(tmp_path):
    stripes = np.zeros((28, 28, 4), np.uint8)
    stripes[::2] = 90
    stripes[..., 3] = 0
    save(tmp_path / "a/lost.png", Image.fromarray(stripes))
    save(tmp_path / "a/blank.png", Image.new("L", (28, 28), 7))
    save(tmp_path / "b/lost.png", Image.fromarray(stripes))
    assert load(tmp_path).conversion == (
        "2 images of 28x28 RGBA -> 28x28 grey; 2 of 3 images became one shade: a/lost.png, b/lost.png"
    )
    (tmp_path / "a/blank.png").unlink()
    with pytest.raises(DataError, match=r"all 2 images become one shade in 28x28 grey \(a/lost.png, b/lost.png\)"):
        load(tmp_path)


def test_what_is_no_regular_file_is_never_opened_counted_and_named(tmp_path):
    save_grey(tmp_path / "a/1.png", 0)
    save_grey(tmp_path / "b/1.png", 1)
    os.mkfifo(tmp_path / "a/fifo.png")
    for name in "vwxyz":
        (tmp_path / f"b/{name}.png").symlink_to("nowhere")
    (tmp_path / "a/self.png").symlink_to("self.png")
    (tmp_path / "b/up").symlink_to("..")
    (tmp_path / "a/a\nfile").symlink_to("1.png/below")
    listing = list_files(open_storage(str(tmp_path)), "dataset=x")
    assert listing.paths == ["a/1.png", "b/1.png"]
    assert listing.left_out == (
        "1 FIFO (a/fifo.png)",
        "1 link that leads back to itself (a/self.png)",
        "6 links that lead nowhere (a/a\\nfile, b/v.png, b/w.png and 3 more)",
        "1 link to a folder that it lies in (b/up)",
    )
    assert len(load(tmp_path)) == 2


def test_a_folder_that_has_nothing_but_what_is_left_out_is_refused(tmp_path):
    save_grey(tmp_path / "a/1.png", 0)
    (tmp_path / "b").mkdir()
    os.mkfifo(tmp_path / "b/1.png")
    with pytest.raises(DataError, match=r"b has no readable files; left out: 1 FIFO \(b/1.png\); fetch or"):
        load(tmp_path)


@pytest.mark.parametrize(("name", "shown"), [(b"1\r\n.png", r"a/1\\r\\n\.png"), (b"\xe9.png", r"a/\\udce9\.png")])
def test_a_name_that_cannot_be_used_is_refused_as_one_of_the_data(tmp_path, name, shown):
    save_grey(tmp_path / "a" / os.fsdecode(name), 0)
    save_grey(tmp_path / "b/1.png", 1)
    with pytest.raises(DataError, match=f"1 file can't be read, .*: {shown}; rename it"):
        load(tmp_path)


def test_an_image_is_turned_as_its_exif_orientation_says(tmp_path):
    image = Image.fromarray(PIXELS[3])
    exif = image.getexif()
    exif[0x0112] = 3  # upside down
    folder_with(tmp_path, image, exif=exif)
    assert np.array_equal(load(tmp_path).images[0, 0].numpy(), PIXELS[3][::-1, ::-1])


def test_the_first_frame_of_an_animation_counts(tmp_path):
    frames = [Image.new("L", (28, 28), value) for value in (40, 200)]
    folder_with(tmp_path, frames[0], "moving.gif", save_all=True, append_images=frames[1:])
    assert pixel_of_a(tmp_path) == 40


def test_all_files_that_are_no_images_are_counted_and_the_first_is_named(tmp_path):
    folder_with(tmp_path, Image.fromarray(PIXELS[1]))
    encoded = io.BytesIO()
    Image.fromarray(PIXELS[1]).save(encoded, "PNG")
    (tmp_path / "b" / "notes.txt").write_text("no image")
    (tmp_path / "b" / "short.png").write_bytes(encoded.getvalue()[:200])
    with pytest.raises(DataError) as error:
        load(tmp_path)
    assert str(error.value) == (
        f"dataset=folder:{tmp_path}: 2 of 4 images cannot be read, the first is b/notes.txt"
        " (unknown image format); remove or replace them"
    )


def test_a_damaged_image_is_refused_with_pillows_reason(tmp_path):
    folder_with(tmp_path, Image.fromarray(PIXELS[1]))
    path = tmp_path / "a" / "image.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"1 of 2 images cannot be read, the first is a/image\.png \(.*truncated"):
        load(tmp_path)


@pytest.mark.parametrize("limit", [500, 1500])
def test_an_image_beyond_pillows_pixel_limit_is_refused(tmp_path, monkeypatch, limit):
    folder_with(tmp_path, Image.new("L", (40, 50)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DataError, match=rf"the first is a/image\.png \(more than {limit} pixels\)"):
        load(tmp_path)


def test_postscript_is_never_handed_to_ghostscript(tmp_path):
    folder_with(tmp_path, Image.new("L", (28, 28)), "drawing.eps")
    with pytest.raises(DataError, match=r"a/drawing\.eps \(unknown image format\)"):
        load(tmp_path)


def test_floating_point_pixels_are_refused(tmp_path):
    folder_with(tmp_path, Image.new("F", (28, 28), 0.5), "values.tiff")
    with pytest.raises(DataError, match="floating-point pixels have no agreed range"):
        load(tmp_path)


def test_a_file_outside_the_class_folders_is_refused(tmp_path):
    folder_with(tmp_path, Image.fromarray(PIXELS[1]))
    save_grey(tmp_path / "lost.png", 2)
    with pytest.raises(DataError, match=r"the files lost\.png lie outside the class folders; move or remove them"):
        load(tmp_path)


def test_one_class_is_too_few(tmp_path):
    save_grey(tmp_path / "only" / "1.png", 0)
    with pytest.raises(DataError, match=r"has 1 class folder \(only\); at least two with images are needed"):
        load(tmp_path)


def test_a_class_with_test_images_only_is_refused_in_both_splits(tmp_path):
    for name in ("train/a", "train/b", "test/a", "test/c"):
        save_grey(tmp_path / name / "1.png", 0)
    for split in ("train", "test"):
        with pytest.raises(DataError, match="has test images but no training images of the classes c"):
            load(tmp_path, split)


def test_too_few_images_for_a_test_split_are_refused(tmp_path):
    folder_with(tmp_path, Image.fromarray(PIXELS[1]))
    with pytest.raises(DataError, match="has no images; at least one is needed"):
        load(tmp_path, "test")


@pytest.mark.parametrize("kind", ["missing", "file", "empty"])
def test_a_place_without_files_is_refused(tmp_path, kind):
    place = tmp_path / kind
    if kind == "file":
        place.write_text("")
    if kind == "empty":
        place.mkdir()
    with pytest.raises(DataError, match="check the path"):
        load(place)


def test_a_file_uri_is_read_like_the_path(tmp_path):
    folder_with(tmp_path, Image.fromarray(PIXELS[1]))
    examples = load_examples(f"folder:{tmp_path.as_uri()}", "train", data_dir=tmp_path)
    assert examples.fingerprint == load(tmp_path).fingerprint


def test_a_file_whose_name_cannot_be_used_is_named_and_one_is_said_as_one(tmp_path: Path) -> None:
    (tmp_path / "a\nb.png").write_bytes(b"x")
    line = r"^S: 1 file can't be read, as its name holds control characters, .*: a\\nb.png; rename it$"
    with pytest.raises(DataError, match=line):
        list_files(open_storage(str(tmp_path)), "S")
    (tmp_path / "c\rd.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"^S: 2 files can't be read, as their names hold .*; rename them$"):
        list_files(open_storage(str(tmp_path)), "S")


def test_a_folder_that_may_not_be_read_ends_it_whether_one_trains_or_predicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_grey(tmp_path / "a" / "1.png", 0)
    save_grey(tmp_path / "b" / "2.png", 1)
    list_folder = os.scandir

    def scandir(place: Path) -> object:
        if Path(place).name == "b":
            raise PermissionError(13, "Permission denied", str(place))
        return list_folder(place)

    monkeypatch.setattr(os, "scandir", scandir)
    line = f"the folder {tmp_path}/b is not readable; change its permissions or move it away"
    with pytest.raises(DataError, match=line):
        list_files(open_storage(str(tmp_path)), "S")
    with pytest.raises(DataError, match=line):
        find_images(str(tmp_path)).left_out()


def test_what_is_neither_a_folder_nor_a_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe is neither a folder nor a regular file; check the path"):
        find_images(str(tmp_path / "pipe"))


def test_sockets_devices_and_loops_are_counted_and_named_for_predict(tmp_path: Path) -> None:
    save_grey(tmp_path / "a" / "1.png", 0)
    (tmp_path / "device").symlink_to("/dev/null")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "a" / "back").symlink_to("..")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as server, contextlib.chdir(tmp_path):
        server.bind("socket")  # its whole path may be too long
    assert find_images(str(tmp_path)).left_out().clauses() == (
        "1 device (device)",
        "1 link that leads back to itself (loop)",
        "1 link to a folder that it lies in (a/back)",
        "1 socket (socket)",
    )
