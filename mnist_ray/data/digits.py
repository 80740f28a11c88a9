"""scikit-learn's bundled handwritten digits: real data without a download."""

import gzip
from importlib.metadata import distribution
from typing import TYPE_CHECKING

from mnist_ray.data.examples import Examples, Split, make_examples, rows_of_split
from mnist_ray.data.image_shape import MNIST_SHAPE, ImageForm

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

    from mnist_ray.data.fitting import all_to_form

    # The file behind sklearn.datasets.load_digits, whose import alone would take 1.8 s of a command's 9.
    file = distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz")
    with gzip.open(str(file), "rt") as rows:
        table = np.loadtxt(rows, delimiter=",")
    pixels, labels = table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
    chosen = rows_of_split(labels, split)
    scaled = np.rint(pixels[chosen] * (255 / 16)).astype(np.uint8)  # [n, 8, 8]
    images = torch.from_numpy(all_to_form(scaled, ImageForm(MNIST_SHAPE))[0])
    return make_examples(
        images,
        torch.from_numpy(labels[chosen]),
        class_names=DIGIT_NAMES,
        source="dataset=digits",
        conversion=f"{chosen.sum()} images of 8x8 grey -> {MNIST_SHAPE.words}",
    )
