"""How much of the frame the ink of grey images fills."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Less is unlike the grey sets by name: the least of MNIST's 70,000 images have 0.46, half of them 0.71 or more.
MIN_EXTENT = 0.4


def ink_extent(images: "npt.NDArray[np.uint8]") -> "npt.NDArray[np.float64]":
    """Returns how much of the frame the ink fills: its width or height, whichever is the larger share of the frame's.

    Ink differs from the ground, which is the median of the outermost pixels, by more than half of what the pixel does
    that differs most. An image in one shade has no ink, and an extent of 1.

    Args:
      images: uint8 [n, rows, columns].

    Returns:
      float64 [n], above 0.
    """
    import numpy as np

    border = np.concatenate([images[:, 0], images[:, -1], images[:, 1:-1, 0], images[:, 1:-1, -1]], axis=1)
    difference = np.abs(images - np.median(border, axis=1).astype(np.float32)[:, None, None])  # [n, rows, columns]
    most = difference.max(axis=(1, 2))
    is_ink = difference > most[:, None, None] / 2
    extents = np.zeros((2, len(images)))
    for axis in (1, 2):
        lines = is_ink.any(axis=axis)  # [n, columns] or [n, rows]
        first, last = lines.argmax(axis=1), lines.shape[1] - lines[:, ::-1].argmax(axis=1)
        extents[axis - 1] = (last - first) / lines.shape[1]
    return np.where(most == 0, 1.0, extents.max(axis=0))
