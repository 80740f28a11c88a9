"""The shape of a data set's images."""

from typing import NamedTuple


class ImageShape(NamedTuple):
    """Channels (1 for grey, 3 for red, green and blue), and rows and columns in pixels."""

    channels: int
    height: int
    width: int


MNIST_SHAPE = ImageShape(1, 28, 28)
