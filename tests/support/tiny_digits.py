"""Real handwriting without a download: scikit-learn's 8x8 digits, each pixel tripled, in a frame of two."""

from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from mnist_ray.data.examples import Examples


@cache
def _content() -> tuple[Tensor, Tensor]:
    digits = load_digits()
    large = np.kron(digits.images * (255 / 16), np.ones((1, 3, 3)))
    framed = np.pad(large, ((0, 0), (2, 2), (2, 2))).astype(np.uint8)
    return torch.from_numpy(framed)[:, None], torch.from_numpy(digits.target).long()


def tiny_digits(count: int | None = None) -> Examples:
    """The first digits, all 1,797 without a count."""
    images, labels = (values[:count].clone() for values in _content())
    return Examples(images, labels, tuple("0123456789"), fingerprint="tiny digits")
