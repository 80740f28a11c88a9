"""Bright ink on a dark ground or dark ink on a bright one: which of the two an image is."""

from typing import TYPE_CHECKING, Literal

from mnist_ray.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Polarity = Literal["auto", "as-trained", "dark-on-bright", "bright-on-dark"]
POLARITIES: tuple[Polarity, ...] = ("auto", "as-trained", "dark-on-bright", "bright-on-dark")
# Which images are inverted: by their own ground, all, or none.
Inversion = Literal["none", "all", "bright-ground", "dark-ground"]

# The share of training images that may have the other ground in a set that still has one.
MAX_EXCEPTIONS = 0.02
_CHUNK = 1024


def has_bright_ground(images: "npt.NDArray[np.uint8]") -> "npt.NDArray[np.bool_]":
    """Tells which images have a bright ground: the median of the outermost pixels is brighter than the mean pixel.

    Ground is what lies along most of the border, and the ink pulls the mean to its side. Of an image in one shade, it
    is bright from 128 on. On MNIST's 10,000 test images and on the same inverted, the rule is never wrong; cut
    to the ink, so that it touches all four sides, for 3 images of either. Deciding by the border's mean against the
    image's mean is wrong for 117 of these, by the larger of Otsu's two classes for 869.

    Of the 60,000 training images of MNIST, and of the 1,442 of digits, it calls none bright, and of the same inverted
    all. The same holds for an IDX set of 5,000 printed letters (DejaVu, 18 to 28 pixels tall); of MNIST's test images
    cut to 20x20, as an IDX set, it calls none bright. Photos have no such ground: it calls bright 4.8 % of bright
    shapes on textured grounds and 90.2 % of dark shapes on grounds of many greys (500 each,
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
    """Returns the share of images that has_bright_ground calls bright.

    Args:
      images: uint8 [n, rows, columns], at least one.
    """
    chunks = (images[first : first + _CHUNK] for first in range(0, len(images), _CHUNK))
    return sum(int(has_bright_ground(chunk).sum()) for chunk in chunks) / len(images)


def choose_inversion(polarity: Polarity, trained_share: float | None, run: str) -> Inversion:
    """Returns which images are inverted to look like those that a run was trained on.

    Args:
      polarity: what the images are; "auto" judges each by has_bright_ground, if the training images were of one ground.
      trained_share: bright_ground_share of the training images; None of a run that didn't note it.
      run: its name, for the message.

    Raises:
      ConfigError: the images' polarity is given, and the training images had no ground to compare it with.
    """
    is_trained_bright = _is_bright(trained_share)
    if polarity == "as-trained" or (polarity == "auto" and is_trained_bright is None):
        return "none"
    if is_trained_bright is None:
        raise ConfigError(
            f"polarity={polarity!r}: {_share_text(trained_share, run)}, so it is unknown whether such images must be "
            "inverted; give --polarity as-trained for images like the training images"
        )
    if polarity == "auto":
        return "dark-ground" if is_trained_bright else "bright-ground"
    return "all" if (polarity == "dark-on-bright") != is_trained_bright else "none"


def never_inverted_reason(polarity: Polarity, trained_share: float | None, run: str) -> str | None:
    """Returns why "auto" inverts no image of a run, in a sentence; None where it may invert some, or isn't asked."""
    if polarity != "auto" or _is_bright(trained_share) is not None:
        return None
    return f"none is inverted: {_share_text(trained_share, run)}"


def to_be_inverted(images: "npt.NDArray[np.uint8]", inversion: Inversion) -> "npt.NDArray[np.bool_]":
    """Tells which images must be inverted.

    Args:
      images: uint8 [n, rows, columns].
      inversion: what choose_inversion returned.

    Returns:
      bool [n].
    """
    import numpy as np

    if inversion in ("none", "all"):
        return np.full(len(images), inversion == "all")
    return has_bright_ground(images) ^ (inversion == "dark-ground")


def _is_bright(share: float | None) -> bool | None:
    """Tells whether training images with this share had a bright ground; None of those with neither ground."""
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
