"""Size and colours of one's own images: what they are, what is asked for, and how images are brought to it."""

import io
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from mnist_ray.config.settings import TrainConfig, make_config
from mnist_ray.data import image_survey
from mnist_ray.data.datasets import AS_THEY_ARE, load_examples, stream_examples
from mnist_ray.data.decoding import decode_image, has_colours, image_size
from mnist_ray.data.fitting import all_to_form, to_form
from mnist_ray.data.image_shape import Fit, ImageForm, ImageOptions, ImageShape, parse_size
from mnist_ray.errors import ConfigError, DataError
from tests.support.colour_images import colour_images, colour_png
from tests.support.idx_files import idx_bytes
from tests.support.predicting import padded


def noise(width: int, height: int, channels: int = 3, *, seed: int = 0) -> np.ndarray:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def image_bytes(pixels: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    content = io.BytesIO()
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(content, kind, **options)
    return content.getvalue()


def folder(root: Path, *images: np.ndarray | Image.Image | bytes) -> Path:
    """A folder of two classes; the images are in both."""
    for name in ("a", "b"):
        (root / name).mkdir(parents=True)
        for number, image in enumerate(images):
            (root / name / str(number)).write_bytes(image if isinstance(image, bytes) else image_bytes(image))
    return root


def load(root: Path, options: ImageOptions = AS_THEY_ARE, *, kind: str = "folder", split: Any = "train") -> Any:
    return load_examples(f"{kind}:{root}", split, data_dir=root, options=options)


@pytest.mark.parametrize(
    ("text", "size"), [("32", (32, 32)), ("40x60", (40, 60)), ("1", (1, 1)), ("4096x1", (4096, 1)), ("007", (7, 7))]
)
def test_a_size_is_one_side_or_width_x_height(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["0", "-1", "32x", "x32", "32x0", "4097", "9" * 30, "3 x 3", "32X32", "3.5", "", "²"])
def test_another_size_is_refused_with_the_rule(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_config(TrainConfig, {"dataset": "folder:/a", "image_size": text})
    rule = "give one side, such as 32, or WIDTHxHEIGHT, such as 40x60, each of 1 to 4096 pixels"
    assert str(error.value).endswith(rule)
    assert "image_size=" in str(error.value)


def test_two_spellings_of_a_size_are_one_config() -> None:
    of = [TrainConfig(dataset="folder:/a", image_size=size) for size in (32, "32", "32x32")]  # type: ignore[arg-type]  # a number, as YAML gives it
    assert {config.config_hash() for config in of} == {of[0].config_hash()}
    assert of[0].image_size == "32x32"
    assert of[0].image_options == ImageOptions((32, 32), None, "pad")


def test_images_that_are_alike_keep_size_and_colours(tmp_path: Path) -> None:
    pixels = [noise(20, 30, seed=seed) for seed in range(4)]
    examples = load(folder(tmp_path, *pixels))
    assert examples.image_shape == (3, 30, 20)
    assert examples.conversion is None
    assert np.array_equal(examples.images[:4].numpy(), np.stack(pixels).transpose(0, 3, 1, 2))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "P", "LA", "1", "I;16"])
def test_images_whose_pixels_are_all_grey_are_grey_in_any_mode(tmp_path: Path, mode: str) -> None:
    grey = Image.fromarray(noise(16, 16, 1))
    image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    examples = load(folder(tmp_path, image_bytes(image, "TIFF"), image_bytes(grey)))
    assert examples.image_shape == (1, 16, 16)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "CMYK", "P", "YCbCr", "LAB"])
def test_one_coloured_pixel_makes_the_set_coloured(tmp_path: Path, mode: str) -> None:
    pixels = np.stack([noise(16, 16, 1)] * 3, axis=2)
    pixels[5, 5] = (250, 10, 20)
    image = Image.fromarray(pixels)
    converted = image.quantize(256) if mode == "P" else image.convert(mode)
    examples = load(folder(tmp_path, noise(16, 16, 1), image_bytes(converted, "TIFF")))
    assert examples.image_shape == (3, 16, 16)
    red = examples.images[1, :, 5, 5].int()
    assert red[0] > red[1] + 100


def test_colours_under_full_transparency_do_not_count(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 4), dtype=np.uint8)
    pixels[..., 0] = 200
    pixels[4:8, :, :] = (0, 0, 0, 255)
    assert load(folder(tmp_path, pixels)).image_shape == (1, 16, 16)
    examples = load(folder(tmp_path / "rgb", pixels), ImageOptions(None, "rgb"))
    assert examples.images[0, :, 0, 0].tolist() == [255, 255, 255]
    assert examples.images[0, :, 5, 5].tolist() == [0, 0, 0]


def test_grey_images_in_a_coloured_set_get_three_equal_channels(tmp_path: Path) -> None:
    grey = noise(16, 16, 1)
    examples = load(folder(tmp_path, noise(16, 16), grey))
    assert np.array_equal(examples.images[1].numpy(), np.stack([grey] * 3))
    assert examples.conversion == "2 images of 16x16 grey -> 16x16 RGB"


def test_grey_is_chosen_for_coloured_images_on_request(tmp_path: Path) -> None:
    image = noise(16, 16)
    examples = load(folder(tmp_path, image), ImageOptions(None, "grey"))
    assert np.array_equal(examples.images[0, 0].numpy(), np.asarray(Image.fromarray(image).convert("L")))
    assert examples.conversion == "2 images of 16x16 RGB -> 16x16 grey"


def test_wide_colours_are_kept_and_scaled_like_greys(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (16, 16, 3), dtype=np.uint16)
    values[0, 0] = 4095
    content = colour_png(values)
    assert has_colours(content)
    decoded = decode_image(content, ImageForm(ImageShape(3, 16, 16)), wide_bits=12)
    assert np.array_equal(decoded.pixels, (values >> 4).astype(np.uint8).transpose(2, 0, 1))
    assert load(folder(tmp_path, content)).image_shape == (3, 16, 16)
    assert not has_colours(colour_png(np.stack([values[..., 0]] * 3, axis=2)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_the_size_in_a_header_is_that_of_the_turned_image(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    content = image_bytes(noise(20, 30), kind, exif=exif)
    form = ImageForm(ImageShape(3, 8, 8))
    assert image_size(content) == decode_image(content, form).kind[:2]
    assert image_size(content) == ((20, 30) if orientation < 5 else (30, 20))


@pytest.mark.parametrize(
    ("sizes", "said", "advice"),
    [
        ([(32, 32)] * 2 + [(40, 60)], "the images have 2 sizes: 32x32 (4), 40x60 (2)", "32"),
        ([(9, 9 + n) for n in range(5)], "5 sizes: 9x9 (2), 9x10 (2), 9x11 (2) and 2 more", "9"),
        ([(97, 20)], "the images have 97x20 (2) pixels, more than 96 in a side", "64x13"),
        ([(20, 97)], "the images have 20x97 (2) pixels, more than 96 in a side", "13x64"),
        ([(640, 480)] * 2 + [(64, 48)], "the images have 2 sizes: 640x480 (4), 64x48 (2)", "64x48"),
        ([(500, 1)], "the images have 500x1 (2) pixels, more than 96 in a side", "64x1"),
    ],
)
def test_images_without_a_common_small_size_are_refused_with_a_size_that_works(
    tmp_path: Path, sizes: list[tuple[int, int]], said: str, advice: str
) -> None:
    root = folder(tmp_path, *(noise(*size) for size in sizes))
    with pytest.raises(DataError) as error:
        load(root)
    assert str(error.value).startswith(f"dataset=folder:{root}: ")
    assert said in str(error.value)
    assert str(error.value).endswith(f"; choose one with --image-size {advice}")
    assert "\n" not in str(error.value)
    width, height = parse_size(advice)
    assert load(root, ImageOptions((width, height))).image_shape == (3, height, width)


def test_images_of_96_by_96_and_of_one_pixel_are_kept(tmp_path: Path) -> None:
    for width, height in ((96, 96), (1, 1), (50, 1), (1, 50)):
        root = folder(tmp_path / f"{width}x{height}", *(noise(width, height, seed=seed) for seed in range(2)))
        assert load(root).image_shape == (3, height, width)


def test_test_images_of_another_size_are_found_before_training(tmp_path: Path) -> None:
    folder(tmp_path / "train", noise(32, 32))
    folder(tmp_path / "test", noise(30, 32))
    with pytest.raises(DataError, match=r"the images have 2 sizes: 30x32 \(2\), 32x32 \(2\); choose"):
        load(tmp_path)
    options = ImageOptions((32, 32))
    assert load(tmp_path, options, split="test").conversion == "2 images of 30x32 RGB -> 32x32 RGB, padded"


def test_nothing_is_surveyed_if_the_options_say_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path, noise(20, 20), noise(30, 20))

    def refuse(content: bytes) -> Any:
        raise AssertionError(len(content))

    monkeypatch.setattr(image_survey, "image_size", refuse)
    assert load(root, ImageOptions((8, 8), "rgb")).image_shape == (3, 8, 8)


def test_no_pixels_are_decoded_after_the_first_coloured_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = folder(tmp_path, noise(20, 20, 1), *(noise(20, 20, seed=seed) for seed in range(5)))
    looked = []
    monkeypatch.setattr(image_survey, "has_colours", lambda content: looked.append(content) or has_colours(content))
    assert load(root).image_shape == (3, 20, 20)
    assert len(looked) == 2


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("width", "height"), [(640, 480), (20, 50), (3, 1), (97, 2), (1, 1000), (1000, 1), (32, 32)])
def test_pad_keeps_all_of_an_image_in_its_proportions_on_its_own_ground(width: int, height: int, channels: int) -> None:
    pixels = noise(width, height, channels)
    found = to_form(pixels, ImageForm(ImageShape(channels, 32, 32)))
    inner = ImageForm(ImageShape(channels, 32, 32)).inner_size(width, height)
    assert max(inner) == 32
    assert min(inner) == max(round(32 * min(width, height) / max(width, height)), 1)
    if min(inner) > 1:
        expected = padded(Image.fromarray(pixels), 32)
        assert np.array_equal(found, expected[None] if channels == 1 else expected.transpose(2, 0, 1))


def test_a_bright_image_gets_a_bright_margin() -> None:
    pixels = np.full((10, 40, 3), (250, 240, 230), dtype=np.uint8)
    pixels[4:6, 10:30] = 0
    found = to_form(pixels, ImageForm(ImageShape(3, 40, 40)))
    assert found[:, 0, 0].tolist() == found[:, -1, -1].tolist() == [250, 240, 230]


def test_crop_keeps_the_middle_and_stretch_everything() -> None:
    pixels = np.zeros((10, 30), dtype=np.uint8)
    pixels[:, 10:20] = 200
    square = ImageShape(1, 10, 10)
    assert (to_form(pixels, ImageForm(square, "crop")) == 200).all()
    stretched = to_form(pixels, ImageForm(square, "stretch"))[0]
    assert np.array_equal(stretched, np.asarray(Image.fromarray(pixels).resize((10, 10), Image.Resampling.BILINEAR)))
    assert (to_form(pixels, ImageForm(square))[0, :3] == 0).all()


@pytest.mark.parametrize("fit", get_args(Fit))
@pytest.mark.parametrize(("width", "height"), [(1, 1), (97, 1), (1, 97), (3, 2000)])
def test_any_size_fits_any_shape(fit: Fit, width: int, height: int) -> None:
    for shape in (ImageShape(3, 60, 40), ImageShape(1, 1, 1), ImageShape(3, 1, 50)):
        assert to_form(noise(width, height), ImageForm(shape, fit)).shape == shape


@pytest.mark.parametrize(("fit", "word"), [("pad", "padded"), ("crop", "cropped"), ("stretch", "stretched")])
def test_what_was_converted_says_how_proportions_changed(tmp_path: Path, fit: Fit, word: str) -> None:
    root = folder(tmp_path, noise(64, 48))
    assert load(root, ImageOptions((32, 32), None, fit)).conversion == f"2 images of 64x48 RGB -> 32x32 RGB, {word}"
    assert load(root, ImageOptions((32, 24), None, fit)).conversion == "2 images of 64x48 RGB -> 32x24 RGB"


def test_pixels_of_the_form_are_passed_on_without_a_loop() -> None:
    images = np.stack([noise(20, 10, seed=seed) for seed in range(3)])
    whole, one_shade = all_to_form(images, ImageForm(ImageShape(3, 10, 20)))
    assert np.array_equal(whole, images.transpose(0, 3, 1, 2))
    assert not one_shade.any()


def test_the_colour_classes_of_the_tests_are_equal_as_grey() -> None:
    as_grey = [
        [np.asarray(Image.fromarray(image).convert("L")) for image in images] for images in colour_images(5).values()
    ]
    assert np.array_equal(as_grey[0], as_grey[1])
    assert np.array_equal(as_grey[0], as_grey[2])
    assert np.array_equal(as_grey[0], as_grey[3])


def write_idx(root: Path, images: np.ndarray) -> Path:
    root.mkdir(exist_ok=True)
    labels = np.arange(len(images), dtype=np.uint8) % 2
    for prefix in ("train", "t10k"):
        (root / f"{prefix}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (root / f"{prefix}-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    return root


def test_idx_images_keep_their_size_and_colours(tmp_path: Path) -> None:
    grey, colour = noise(30, 20, 1), noise(30, 20)
    assert load(write_idx(tmp_path / "grey", np.stack([grey] * 4)), kind="idx").image_shape == (1, 20, 30)
    examples = load(write_idx(tmp_path / "colour", np.stack([colour] * 4)), kind="idx")
    assert np.array_equal(examples.images[0].numpy(), colour.transpose(2, 0, 1))
    assert examples.conversion is None
    small = load(tmp_path / "colour", ImageOptions((10, 10), "grey"), kind="idx")
    assert small.image_shape == (1, 10, 10)
    assert small.conversion == "4 images of 30x20 RGB -> 10x10 grey, padded"


def test_all_splits_of_idx_files_decide_size_and_colours(tmp_path: Path) -> None:
    grey = np.stack([noise(30, 20, 1)] * 4)
    # Colours that are all grey.
    write_idx(tmp_path / "grey", np.stack([grey] * 3, axis=3))
    assert load(tmp_path / "grey", kind="idx").image_shape == (1, 20, 30)
    write_idx(tmp_path / "mixed", grey)
    (tmp_path / "mixed/t10k-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((2, 8, 9), np.uint8)))
    with pytest.raises(DataError, match=r"the images have 2 sizes: 30x20 \(4\), 9x8 \(2\); choose one"):
        load(tmp_path / "mixed", kind="idx")


def test_an_idx_file_of_four_dimensions_needs_three_channels(tmp_path: Path) -> None:
    write_idx(tmp_path, np.zeros((4, 5, 5, 2), dtype=np.uint8))
    with pytest.raises(DataError, match="4 x 5 x 5 x 2 elements; the last dimension of colours must be 3"):
        load(tmp_path, kind="idx")


def test_large_idx_images_need_a_size(tmp_path: Path) -> None:
    write_idx(tmp_path, np.zeros((4, 100, 50), dtype=np.uint8))
    with pytest.raises(DataError, match=r"the images have 50x100 \(8\) pixels.*choose one with --image-size 32x64"):
        load(tmp_path, kind="idx")


def write_parquet(root: Path, images: Any, name: str = "a.parquet") -> Path:
    root.mkdir(exist_ok=True)
    pq.write_table(pa.table({"image": images, "label": [number % 2 for number in range(len(images))]}), root / name)
    return root


@pytest.mark.parametrize("is_struct", [False, True])
def test_encoded_images_of_a_parquet_file_keep_their_shape_or_need_a_size(tmp_path: Path, is_struct: bool) -> None:
    def cells(sizes: list[tuple[int, int]]) -> list[Any]:
        contents = [image_bytes(noise(*size)) for size in sizes]
        return [{"bytes": content, "path": None} for content in contents] if is_struct else contents

    assert load(write_parquet(tmp_path / "alike", cells([(40, 30)] * 4)), kind="parquet").image_shape == (3, 30, 40)
    write_parquet(tmp_path / "two", cells([(40, 30)] * 3 + [(30, 40)]))
    with pytest.raises(DataError, match=r"the images have 2 sizes: 40x30 \(3\), 30x40 \(1\); choose"):
        load(tmp_path / "two", kind="parquet")
    assert load(tmp_path / "two", ImageOptions((20, 20)), kind="parquet").image_shape == (3, 20, 20)


def test_lists_of_pixels_are_square_or_of_the_size_that_is_asked_for(tmp_path: Path) -> None:
    pixels = noise(20, 5, 1)
    lists = pa.array([pixels.reshape(-1)] * 4, pa.list_(pa.uint8()))
    root = write_parquet(tmp_path, lists)
    assert load(root, kind="parquet").image_shape == (1, 10, 10)
    asked = load(root, ImageOptions((20, 5)), kind="parquet")
    assert np.array_equal(asked.images[0, 0].numpy(), pixels)
    small = load(root, ImageOptions((5, 5)), kind="parquet")
    assert small.conversion == "4 images of 10x10 grey -> 5x5 grey"
    in_colour = load(root, ImageOptions((20, 5), "rgb"), kind="parquet")
    assert np.array_equal(in_colour.images[0].numpy(), np.stack([pixels] * 3))


def test_lists_of_colours_are_refused_if_their_size_is_asked_for(tmp_path: Path) -> None:
    # As many numbers as a square of 96x96 has.
    lists = pa.array([np.zeros(64 * 48 * 3, dtype=np.uint8)] * 4, pa.list_(pa.uint8()))
    root = write_parquet(tmp_path, lists)
    with pytest.raises(DataError, match="lists of 9216 numbers, three for each of 64x48 pixels: lists are read"):
        load(root, ImageOptions((64, 48)), kind="parquet")


def test_more_images_than_memory_are_refused(tmp_path: Path) -> None:
    root = folder(tmp_path, noise(20, 20))
    huge = stream_examples(f"folder:{root}", "train", data_dir=tmp_path, options=ImageOptions((4096, 4096), "rgb"))
    many = replace(huge, labels=torch.zeros(10**6, dtype=torch.int64))
    with pytest.raises(DataError, match=r"1000000 images of 4096x4096 RGB take 46,875.0 GiB, this machine has "):
        many.load()


def test_lists_of_pixels_of_no_square_are_refused(tmp_path: Path) -> None:
    lists = pa.array([np.zeros(3072, dtype=np.uint8)] * 4, pa.list_(pa.uint8()))
    with pytest.raises(DataError, match="lists of 3072 pixels, which no square has; say the size with --image-size"):
        load(write_parquet(tmp_path, lists), kind="parquet")


def test_an_unreadable_image_is_told_of_as_before(tmp_path: Path) -> None:
    root = folder(tmp_path, noise(20, 20), b"no image", struct.pack(">2I", 1, 2))
    with pytest.raises(DataError, match="4 of 6 images cannot be read, the first is a/1"):
        load(root)
