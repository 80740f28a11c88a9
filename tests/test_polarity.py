"""Which images are inverted, on real handwriting."""

from pathlib import Path

import numpy as np
import pytest
from tiny_digits import tiny_digits

from mnist_ray.data.idx import read_images
from mnist_ray.data.images import resize_grey
from mnist_ray.polarity import has_bright_ground, to_be_inverted


def digits() -> np.ndarray:
    return tiny_digits().images[:, 0].numpy()


def test_the_ground_of_every_digit_is_told_in_both_polarities() -> None:
    assert not has_bright_ground(digits()).any()
    assert has_bright_ground(255 - digits()).all()


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
    tight = np.stack([resize_grey(cut_to_the_ink(image)) for image in images])
    for some, wrong in ((images, 0), (tight, 3)):
        assert int(has_bright_ground(some).sum()) == wrong
        assert int((~has_bright_ground(255 - some)).sum()) == wrong


def cut_to_the_ink(image: np.ndarray) -> np.ndarray:
    rows, columns = (np.flatnonzero(image.max(axis=axis) > 30) for axis in (1, 0))
    return np.ascontiguousarray(image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


@pytest.mark.parametrize(("shade", "is_bright"), [(0, False), (127, False), (128, True), (255, True)])
def test_an_image_in_one_shade_is_all_ground(shade: int, is_bright: bool) -> None:
    assert has_bright_ground(np.full((1, 28, 28), shade, dtype=np.uint8)).tolist() == [is_bright]


def test_images_are_inverted_to_the_ground_of_the_training_images() -> None:
    some = np.stack([digits()[0], 255 - digits()[1]])
    for polarity, trained_mean, expected in (
        ("auto", 0.13, [False, True]),
        ("auto", 0.87, [True, False]),
        ("bright-ink", 0.13, [False, False]),
        ("dark-ink", 0.13, [True, True]),
        ("bright-ink", 0.87, [True, True]),
        ("dark-ink", 0.87, [False, False]),
    ):
        assert to_be_inverted(some, polarity=polarity, trained_mean=trained_mean).tolist() == expected
    assert to_be_inverted(some[:0], polarity="auto", trained_mean=0.1).shape == (0,)
