"""scikit-learn's bundled handwritten digits: real data without a download."""

from typing import TYPE_CHECKING

from mnist_ray.data.examples import IMAGE_SIDE, Examples, Split, make_examples, rows_of_split

if TYPE_CHECKING:
    from pathlib import Path

DIGIT_NAMES = tuple("0123456789")


def load_digits(split: Split, *, data_dir: "Path", download: bool = True) -> Examples:  # noqa: ARG001
    """Loads the 1,797 digits, 8x8 with values 0 to 16, scaled to 0 to 255 and resized bilinearly to 28x28.

    There is no official split: the fifth, tenth, ... image of each class is a test image (1,442 train, 355 test).
    Both splits have the same writers, so test accuracy says nothing about new writers.

    Args:
      split: the requested split.
      data_dir: unused, since the digits come with scikit-learn.
      download: unused.

    Reference: Alpaydin, Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998, its test part.
    """
    import numpy as np
    import torch
    from sklearn import datasets

    from mnist_ray.data.images import resize_grey

    bunch = datasets.load_digits()
    chosen = rows_of_split(bunch.target, split)
    scaled = np.rint(bunch.images[chosen] * (255 / 16)).astype(np.uint8)  # [n, 8, 8]
    images = torch.from_numpy(np.stack([resize_grey(image) for image in scaled])).unsqueeze(1)
    return make_examples(
        images,
        torch.from_numpy(bunch.target[chosen].astype(np.int64)),
        class_names=DIGIT_NAMES,
        source="dataset=digits",
        conversion=f"{chosen.sum()} images of 8x8 grey -> {IMAGE_SIDE}x{IMAGE_SIDE} grey",
    )
