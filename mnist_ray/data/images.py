"""Encoded images of any size and colour as 28x28 grey."""

import io
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mnist_ray.data.examples import IMAGE_BYTES, IMAGE_SIDE
from mnist_ray.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image
    from torch import Tensor

    GreyImage = npt.NDArray[np.uint8]

# Pillow hands EPS to Ghostscript, a program run on the user's file, and can rasterize WMF on Windows only.
REFUSED_FORMATS = {"EPS", "WMF"}
MODE_WORDS = {"L": "grey", "1": "black-and-white", "P": "palette"}
MAX_KINDS_SAID = 3
IMAGES_PER_PIECE = 1024

# What an image was: columns, rows, Pillow's mode.
Kind = tuple[int, int, str]


def resize_grey(image: "GreyImage") -> "GreyImage":
    """Resizes uint8 [rows, columns] to [28, 28], bilinearly (averaging when it shrinks), proportions not kept."""
    import numpy as np
    from PIL import Image

    resized = Image.fromarray(image).resize((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BILINEAR)
    return np.asarray(resized)


class UnreadableImageError(ValueError):
    """An image that can't be decoded; the message is the reason alone."""


@dataclass(frozen=True)
class DecodedImages:
    """Encoded images, decoded and converted by decode_image as they are asked for; see ImagePieces.

    Args:
      encoded: name of each image for messages, and its bytes.
      source: the data set that a message names.
    """

    encoded: Iterable[tuple[str, bytes]]
    source: str
    _kinds: Counter[Kind] = field(default_factory=Counter)

    def __iter__(self) -> "Iterator[Tensor]":
        """Yields uint8 [k, 1, 28, 28], images in their order.

        Raises:
          DataError: some can't be decoded; it comes after the last, names the first and says how many.
        """
        broken: list[str] = []
        count = 0
        grey = bytearray()
        for name, content in self.encoded:
            count += 1
            try:
                image, kind = decode_image(content)
            except UnreadableImageError as error:
                broken.append(f"{name} ({error})")
                continue
            self._kinds[kind] += 1
            grey += image.tobytes()
            if len(grey) == IMAGES_PER_PIECE * IMAGE_BYTES:
                yield _as_images(grey)
                grey = bytearray()
        if broken:
            raise DataError(
                f"{self.source}: {len(broken)} of {count} images cannot be read, the first is {broken[0]};"
                " remove or replace them"
            )
        if grey:
            yield _as_images(grey)

    @property
    def conversion(self) -> str | None:
        """See describe_conversion."""
        return describe_conversion(self._kinds)


def _as_images(grey: bytearray) -> "Tensor":
    import torch

    return torch.frombuffer(grey, dtype=torch.uint8).view(-1, 1, IMAGE_SIDE, IMAGE_SIDE)


def decode_image(content: bytes) -> tuple["GreyImage", Kind]:
    """Decodes one image and converts it to 28x28 grey.

    The first frame counts, turned as its EXIF orientation says; transparency is laid over white; 16-bit greys
    keep their upper byte; colours become their luma; the size is changed bilinearly without keeping proportions.

    Args:
      content: the image in any format that Pillow decodes by itself.

    Returns:
      uint8 [28, 28], and what the image was.

    Raises:
      UnreadableImageError: it can't be decoded.
    """
    # Around each image: the code that reads the pieces keeps its own filters in between.
    with warnings.catch_warnings():
        _choose_warnings()
        try:
            return _decode(content)
        # Pillow's decoders raise nearly every built-in exception on a damaged file.
        except Exception as error:
            raise UnreadableImageError(_reason(error)) from error


def _choose_warnings() -> None:
    from PIL import Image

    # A file that Pillow merely doubts (odd EXIF, a palette with transparency) is still the user's image.
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", Image.DecompressionBombWarning)


def _reason(error: Exception) -> str:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "no image format that is known"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"more than {Image.MAX_IMAGE_PIXELS} pixels"
    return " ".join(str(error).split()) or type(error).__name__


def _decode(content: bytes) -> tuple["GreyImage", Kind]:
    """Decodes one image to uint8 [28, 28]."""
    import numpy as np
    from PIL import Image, ImageOps

    Image.init()
    formats = [name for name in Image.ID if name not in REFUSED_FORMATS]
    with Image.open(io.BytesIO(content), formats=formats) as opened:
        kind = (*opened.size, opened.mode)
        image = np.asarray(_grey(ImageOps.exif_transpose(opened)))
    if image.shape != (IMAGE_SIDE, IMAGE_SIDE):
        image = resize_grey(image)
    return image, kind


def _grey(image: "Image.Image") -> "Image.Image":
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("its pixels exceed 16 bits")
        return Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("L")


def is_converted(kind: Kind) -> bool:
    """Tells whether an image had to be changed to become 28x28 grey."""
    return kind != (IMAGE_SIDE, IMAGE_SIDE, "L")


def describe_conversion(kinds: Counter[Kind]) -> str | None:
    """One line such as '120 images of 32x32 RGB -> 28x28 grey'; None if all were 28x28 grey.

    Args:
      kinds: how many images there were of each kind.
    """
    converted = Counter({kind: n for kind, n in kinds.items() if is_converted(kind)})
    if not converted:
        return None
    # Sorted by count, then by kind: the line doesn't depend on the order of the images.
    ordered = sorted(converted.items(), key=lambda item: (-item[1], item[0]))
    said = ", ".join(f"{n} images of {_kind_words(kind)}" for kind, n in ordered[:MAX_KINDS_SAID])
    others = sum(n for _, n in ordered[MAX_KINDS_SAID:])
    if others:
        said += f", {others} images of {len(ordered) - MAX_KINDS_SAID} other kinds"
    return f"{said} -> {IMAGE_SIDE}x{IMAGE_SIDE} grey"


def _kind_words(kind: Kind) -> str:
    columns, rows, mode = kind
    return f"{columns}x{rows} {MODE_WORDS.get(mode, mode)}"
