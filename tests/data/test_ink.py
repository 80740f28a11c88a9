"""How much of the frame the ink of an image fills."""

from pathlib import Path

import numpy as np
import pytest

from mnist_ray.data.datasets import load_examples
from mnist_ray.data.ink import MIN_EXTENT, ink_extent


def drawn(height: int, width: int, *, ground: int = 0, ink: int = 255, noise: int = 0) -> np.ndarray:
    """An image of 28x28 with a filled box, uint8."""
    image = np.full((28, 28), ground)
    image[4 : 4 + height, 9 : 9 + width] = ink
    return (image + np.random.default_rng(0).integers(-noise, noise + 1, image.shape)).clip(0, 255).astype(np.uint8)


def test_the_longer_side_of_the_box_around_the_ink_counts() -> None:
    images = [drawn(7, 14), drawn(14, 7), drawn(1, 1), drawn(20, 3, ground=255, ink=0), drawn(0, 0)]
    np.testing.assert_allclose(ink_extent(np.stack(images)), [0.5, 0.5, 1 / 28, 20 / 28, 1])
    # Paper has a texture, and a pencil is not black.
    images = [drawn(7, 14, ground=200, ink=100, noise=15), drawn(14, 7, ground=40, ink=120, noise=12)]
    np.testing.assert_allclose(ink_extent(np.stack(images)), [0.5, 0.5])
    assert ink_extent(np.empty((0, 28, 28), dtype=np.uint8)).shape == (0,)


@pytest.mark.parametrize("split", ["train", "test"])
def test_no_handwritten_digit_of_scikit_learn_is_small(split: str) -> None:
    images = load_examples("digits", split, data_dir=Path("unused")).images[:, 0].numpy()
    assert ink_extent(images).min() == ink_extent(255 - images).min() > 0.7


def test_no_image_of_mnist_is_small(mnist_dir: Path) -> None:
    images = load_examples("mnist", "test", data_dir=mnist_dir, download=False).images[:, 0].numpy()
    extents = ink_extent(images)
    assert np.median(extents) == 20 / 28
    assert extents.min() == 0.5 > MIN_EXTENT
