"""Which images are inverted, on real handwriting."""

import struct
from pathlib import Path

import numpy as np
import pytest
from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from mnist_ray.data.datasets import load_examples
from mnist_ray.data.fitting import to_form
from mnist_ray.data.idx import read_images
from mnist_ray.data.image_shape import MNIST_SHAPE, ImageForm
from mnist_ray.data.polarity import (
    Polarity,
    bright_ground_share,
    choose_inversion,
    has_bright_ground,
    never_inverted_reason,
    to_be_inverted,
)
from mnist_ray.errors import ConfigError
from tests.support.tiny_digits import tiny_digits


def digits() -> np.ndarray:
    return tiny_digits().images[:, 0].numpy()


def test_the_ground_of_every_digit_is_told_in_both_polarities() -> None:
    assert not has_bright_ground(digits()).any()
    assert has_bright_ground(255 - digits()).all()


def test_the_ground_of_printed_letters_of_ones_own_idx_set_is_told_in_both_polarities(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    letters = []
    for name in ("DejaVuSans.ttf", "DejaVuSerif-Bold.ttf", "DejaVuSansMono-Oblique.ttf") * 100:
        font = ImageFont.truetype(f"{get_data_path()}/fonts/ttf/{name}", int(generator.integers(18, 29)))
        image = Image.new("L", (28, 28))
        shift = generator.integers(-2, 3, 2).tolist()
        letter = "ABCDEFGHIJ"[int(generator.integers(10))]
        ImageDraw.Draw(image).text((14 + shift[0], 14 + shift[1]), letter, fill=255, font=font, anchor="mm")
        letters.append(np.asarray(image))
    for images, share in ((np.stack(letters), 0), (255 - np.stack(letters), 1)):
        header = struct.pack(">4I", 0x0803, 300, 28, 28)
        (tmp_path / "train-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (tmp_path / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x0801, 300) + bytes([0, 1, 2] * 100))
        examples = load_examples(f"idx:{tmp_path}", "train", data_dir=tmp_path)
        assert bright_ground_share(examples.images[:, 0].numpy()) == share


def test_the_ground_is_told_on_faint_ink_in_noise_and_under_a_gradient_of_light() -> None:
    noise = np.random.default_rng(0).normal(0, 25, digits().shape)
    for changed in (
        100 + digits() * (30 / 255),
        np.clip(digits() * 0.7 + 20 + noise, 0, 255),
        digits() * 0.6 + np.linspace(0, 80, 28),
    ):
        images = changed.astype(np.uint8)
        assert not has_bright_ground(images).any()
        assert has_bright_ground(255 - images).all()


def test_the_rule_is_as_often_wrong_as_its_description_says(mnist_dir: Path) -> None:
    images = read_images(mnist_dir / "t10k-images-idx3-ubyte.gz")
    tight = np.concatenate([to_form(cut_to_the_ink(image), ImageForm(MNIST_SHAPE, "stretch")) for image in images])
    for some, wrong in ((images, 0), (tight, 3)):
        assert int(has_bright_ground(some).sum()) == wrong
        assert int((~has_bright_ground(255 - some)).sum()) == wrong


def cut_to_the_ink(image: np.ndarray) -> np.ndarray:
    rows, columns = (np.flatnonzero(image.max(axis=axis) > 30) for axis in (1, 0))
    return np.ascontiguousarray(image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


@pytest.mark.parametrize(("shade", "is_bright"), [(0, False), (127, False), (128, True), (255, True)])
def test_an_image_in_one_shade_is_all_ground(shade: int, is_bright: bool) -> None:
    assert has_bright_ground(np.full((1, 28, 28), shade, dtype=np.uint8)).tolist() == [is_bright]


@pytest.mark.parametrize(
    ("polarity", "trained_share", "expected"),
    [
        ("auto", 0.0, [False, True]),
        ("auto", 0.02, [False, True]),
        ("auto", 0.98, [True, False]),
        ("auto", 1.0, [True, False]),
        ("auto", 0.021, [False, False]),
        ("auto", 0.5, [False, False]),
        ("auto", 0.979, [False, False]),
        ("auto", None, [False, False]),
        ("bright-on-dark", 0.01, [False, False]),
        ("dark-on-bright", 0.01, [True, True]),
        ("bright-on-dark", 0.99, [True, True]),
        ("dark-on-bright", 0.99, [False, False]),
        *(("as-trained", share, [False, False]) for share in (0.0, 0.4, 1.0, None)),
    ],
)
def test_images_are_inverted_to_the_ground_of_the_training_images_if_these_had_one(
    polarity: Polarity, trained_share: float | None, expected: list[bool]
) -> None:
    some = np.stack([digits()[0], 255 - digits()[1]])
    inversion = choose_inversion(polarity, trained_share, "a")
    assert to_be_inverted(some, inversion).tolist() == expected
    assert to_be_inverted(some[:0], inversion).shape == (0,)
    has_no_ground = trained_share is None or 0.02 < trained_share < 0.98
    assert (never_inverted_reason(polarity, trained_share, "a") is not None) == (polarity == "auto" and has_no_ground)


@pytest.mark.parametrize(
    ("trained_share", "reason"),
    [
        (0.4, "40.0% of the training images of run 'a' have a bright ground, neither at most 2% nor at least 98%"),
        (None, "run 'a' was trained by a version that did not note the ground of its training images"),
    ],
)
@pytest.mark.parametrize("polarity", ["dark-on-bright", "bright-on-dark"])
def test_a_polarity_that_cannot_be_compared_with_the_training_images_is_refused(
    polarity: Polarity, trained_share: float | None, reason: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        choose_inversion(polarity, trained_share, "a")
    assert str(raised.value) == (
        f"polarity='{polarity}': {reason}, so it is unknown whether these images must be inverted; give --polarity "
        "as-trained for images like the training images"
    )


def test_the_share_of_bright_grounds_is_exact_over_chunks() -> None:
    some = np.tile(digits()[:1], (3000, 1, 1))
    some[1020:1030] = 255 - some[1020:1030]
    assert bright_ground_share(some) == 10 / 3000
    assert bright_ground_share(digits()) == 0
    assert bright_ground_share(255 - digits()) == 1
