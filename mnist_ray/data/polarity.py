"""Tells bright ink on a dark ground from dark ink on a bright ground."""

from typing import TYPE_CHECKING, Literal

from mnist_ray.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Polarity = Literal["auto", "as-trained", "dark-on-bright", "bright-on-dark"]
POLARITIES: tuple[Polarity, ...] = ("auto", "as-trained", "dark-on-bright", "bright-on-dark")
# The images to invert: none, all, or depending on their ground.
Inversion = Literal["none", "all", "bright-ground", "dark-ground"]

# Maximum share of training images with the other ground in a set that counts as having one ground.
MAX_EXCEPTIONS = 0.02
_CHUNK = 1024


def has_bright_ground(images: "npt.NDArray[np.uint8]") -> "npt.NDArray[np.bool_]":
    """Tells which images have a bright ground: the median of the outermost pixels is brighter than the mean pixel.

    The ground fills most of the border, and the ink pulls the mean to its side. An image in one shade has a bright
    ground from 128 on. The rule is never wrong on MNIST's 10,000 test images and their inversions; if they are cropped
    so that the ink touches all four sides, it is wrong for 3 images of either. Comparing the border's mean with the
    image's mean is wrong for 117 of these, taking the larger of Otsu's two classes for 869.

    The rule calls none of MNIST's 60,000 and digits' 1,442 training images bright, and all of their inversions. The
    same holds for an IDX set of 5,000 printed letters (DejaVu, 18 to 28 pixels tall). It calls none of MNIST's test
    images bright when cropped to 20x20, as an IDX set. Photos have no clear ground: it calls 4.8 % of bright shapes on
    textured grounds bright, and 90.2 % of dark shapes on grounds of many greys (500 each,
    tests/evaluation/test_predict_photos.py).

    Args:
      images: uint8 [n, rows, columns].

    Returns:
      bool [n].
    """
    import numpy as np

    border = np.concatenate(
        [images[:, 0], images[:, -1], images[:, 1:-1, 0], images[:, 1:-1, -1]], axis=1
    )  # [n, 2 * (rows + columns) - 4]
    ground = np.median(border, axis=1)
    flat = images.reshape(len(images), images.shape[1] * images.shape[2])
    threshold = np.where(flat.min(axis=1) == flat.max(axis=1), 127, flat.mean(axis=1))
    is_bright: npt.NDArray[np.bool_] = ground > threshold
    return is_bright


def bright_ground_share(images: "npt.NDArray[np.uint8]") -> float:
    """Returns the share of images, uint8 [n, rows, columns] with n >= 1, that has_bright_ground calls bright."""
    chunks = (images[first : first + _CHUNK] for first in range(0, len(images), _CHUNK))
    return sum(int(has_bright_ground(chunk).sum()) for chunk in chunks) / len(images)


def choose_inversion(polarity: Polarity, trained_share: float | None, run: str) -> Inversion:
    """Returns which images to invert so that they look like a run's training images.

    Args:
      polarity: of the images; "auto" judges each image by has_bright_ground, if the training images had one ground.
      trained_share: bright_ground_share of the training images; None if the run didn't record it.

    Raises:
      ConfigError: the images' polarity is given, but the training images had no common ground to compare with.
    """
    is_trained_bright = _is_bright(trained_share)
    if polarity == "as-trained" or (polarity == "auto" and is_trained_bright is None):
        return "none"
    if is_trained_bright is None:
        raise ConfigError(
            f"polarity={polarity!r}: {_share_text(trained_share, run)}, so it is unknown whether these images must be "
            "inverted; give --polarity as-trained for images like the training images"
        )
    if polarity == "auto":
        return "dark-ground" if is_trained_bright else "bright-ground"
    return "all" if (polarity == "dark-on-bright") != is_trained_bright else "none"


def never_inverted_reason(polarity: Polarity, trained_share: float | None, run: str) -> str | None:
    """Returns a sentence on why "auto" inverts no images for a run; None if it may, or for another polarity."""
    if polarity != "auto" or _is_bright(trained_share) is not None:
        return None
    return f"none is inverted: {_share_text(trained_share, run)}"


def to_be_inverted(images: "npt.NDArray[np.uint8]", inversion: Inversion) -> "npt.NDArray[np.bool_]":
    """Tells which images must be inverted.

    Args:
      images: uint8 [n, rows, columns].
      inversion: the result of choose_inversion.

    Returns:
      bool [n].
    """
    import numpy as np

    if inversion in ("none", "all"):
        return np.full(len(images), inversion == "all")
    return has_bright_ground(images) ^ (inversion == "dark-ground")


def _is_bright(share: float | None) -> bool | None:
    """Tells whether training images with this share had a bright ground; None if they had no common ground."""
    if share is None or MAX_EXCEPTIONS < share < 1 - MAX_EXCEPTIONS:
        return None
    return share > 0.5


def _share_text(share: float | None, run: str) -> str:
    if share is None:
        return f"run {run!r} was trained by a version that did not note the ground of its training images"
    return (
        f"{share:.1%} of the training images of run {run!r} have a bright ground, neither at most {MAX_EXCEPTIONS:.0%} "
        f"nor at least {1 - MAX_EXCEPTIONS:.0%}"
    )
