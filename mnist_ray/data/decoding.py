"""Converts one encoded image of any size and colour to the form of its set."""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from mnist_ray.data.fitting import to_form
from mnist_ray.data.image_shape import ImageForm

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image
    from PIL.ImageFile import ImageFile

    Pixels = npt.NDArray[np.uint8]

# Pillow hands EPS to Ghostscript, a program run on the user's file, and can rasterize WMF on Windows only.
REFUSED_FORMATS = {"EPS", "WMF"}
# Files and cells are read whole; this limit refuses, for instance, a film among the images before reading it.
MAX_IMAGE_BYTES = 256 << 20
# Ranges of cameras and scanners, all stored in 16 or 32 bits.
WIDE_BITS = (8, 10, 12, 14, 16)
PHOTOMETRIC_INTERPRETATION, ORIENTATION = 262, 274
# A PNG without these can't have an orientation.
_PNG_MARKS = (b"eXIf", b"exif", b"xmp")
_GREY_MODES = {"1", "L", "LA", "La", "F"}

# An image's original columns, rows and Pillow mode.
Kind = tuple[int, int, str]


class UnreadableImageError(ValueError):
    """An image can't be decoded; the message is only the reason."""


class DecodedImage(NamedTuple):
    """An image in the form of its set.

    Attributes:
      pixels: uint8 [channels, height, width].
      kind: the original size and mode.
      became_one_shade: whether all pixels are equal now but weren't before.
    """

    pixels: "Pixels"
    kind: Kind
    became_one_shade: bool


def decode_image(content: bytes, form: ImageForm, *, wide_bits: int | Callable[[], int] | None = None) -> DecodedImage:
    """Decodes one image and converts it to the form of its set.

    Takes the first frame, turned by its EXIF orientation; composites transparency over white; keeps the upper 8 of the
    bits that the set uses for greys and PNG colours of more than 8 bits; converts colours, then size: see to_form.

    Args:
      content: the image in any format that Pillow decodes by itself.
      wide_bits: the bits that images of more than 8 bits in the set use, or a function that returns them, see
        used_bits; without it, an image of more than 8 bits must use all 16.

    Raises:
      UnreadableImageError: the image can't be decoded.
    """
    try:
        with _opened(content) as opened:
            return _decode(content, opened, form, wide_bits)
    # Pillow's decoders raise nearly every built-in exception on a damaged file.
    except Exception as error:
        raise UnreadableImageError(_reason(error)) from error


def used_bits(contents: Iterable[bytes]) -> int:
    """Returns the smallest of WIDE_BITS that holds all pixels of the images of more than 8 bits."""
    largest = 0
    for content in contents:
        # Ignore an unreadable image; decoding it reports the error.
        with contextlib.suppress(Exception), _opened(content) as opened:
            if (wide := _wide_pixels(content, opened)) is not None:
                largest = max(largest, wide.largest)
    return _bits_of(largest)


def _bits_of(largest: int) -> int:
    return next(bits for bits in WIDE_BITS if largest >> bits == 0)


@contextlib.contextmanager
def _opened(content: bytes) -> "Iterator[ImageFile]":
    from PIL import Image

    # Set filters per image: the code that consumes the pieces keeps its own filters in between.
    with warnings.catch_warnings():
        # Accept files that Pillow only warns about (odd EXIF, a palette with transparency).
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        Image.init()
        formats = [name for name in Image.ID if name not in REFUSED_FORMATS]
        with Image.open(io.BytesIO(content), formats=formats) as opened:
            yield opened


def _reason(error: Exception) -> str:
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "unknown image format"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"more than {Image.MAX_IMAGE_PIXELS} pixels"
    return " ".join(str(error).split()) or type(error).__name__


def _decode(
    content: bytes, opened: "ImageFile", form: ImageForm, wide_bits: int | Callable[[], int] | None
) -> DecodedImage:
    import numpy as np
    from PIL import ImageOps

    mode = opened.mode
    # Read the tag first: turning the image drops its tags.
    is_white_zero = _is_white_zero(opened)
    wide = _wide_pixels(content, opened)
    has_upper_bytes = wide is None and any(";16" in str(tile.args) for tile in opened.tile)
    turned = ImageOps.exif_transpose(opened)
    if wide is not None:
        pixels, bits = _narrowed(wide, wide_bits, is_grey=form.shape.channels == 1, is_white_zero=is_white_zero)
        mode = f"{'grey' if mode.startswith('I') else mode} of {bits} bits"
    else:
        # Pillow gives only the upper bytes: enough if all 16 bits are used, but a smaller range may turn black.
        if has_upper_bytes and np.asarray(turned)[..., :3].max() < 1 << 7:
            raise ValueError("its colours may be black or use less than 16 bits; scale them to 8 bits")
        pixels = np.asarray(_opaque(turned).convert(form.mode))
    image = to_form(pixels, form)
    # Check the original only if the result has one shade.
    is_one_shade = bool((image == image[:, :1, :1]).all())
    had_one_shade = is_one_shade and _has_one_shade(np.asarray(turned) if wide is None else wide.values)
    return DecodedImage(image, (*turned.size, mode), is_one_shade and not had_one_shade)


def _is_white_zero(image: "Image.Image") -> bool:
    # Pillow inverts white-is-zero TIFFs of 8 bits, but not of more.
    return image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0  # type: ignore[attr-defined]


def _has_one_shade(pixels: "npt.NDArray[Any]") -> bool:
    return bool((pixels == pixels[:1, :1]).all())


class _WidePixels(NamedTuple):
    """Pixels of more than 8 bits, turned by the EXIF orientation.

    Attributes:
      values: [rows, columns] or, in colour, [rows, columns, 3].
      is_transparent: bool [rows, columns].
      largest: largest value of any channel in pixels that aren't transparent.
    """

    values: "npt.NDArray[Any]"
    is_transparent: "npt.NDArray[np.bool_]"
    largest: int

    @property
    def luma(self) -> "npt.NDArray[Any]":
        """Its grey, [rows, columns], by Pillow's weights."""
        import numpy as np

        if self.values.ndim == 2:
            return self.values
        weights = np.array([19595, 38470, 7471], dtype=np.uint64)
        luma: npt.NDArray[Any] = (self.values.astype(np.uint64) @ weights + 0x8000) >> 16
        return luma


def _wide_pixels(content: bytes, opened: "ImageFile") -> _WidePixels | None:
    """Returns the pixels of an image of more than 8 bits, None for other images; `opened` must not be read yet."""
    import numpy as np
    from PIL import ImageOps

    if opened.mode.startswith("I"):
        values = np.asarray(ImageOps.exif_transpose(opened))
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("its pixels exceed 16 bits")
    elif _has_wide_colours(opened):
        values = _wide_colours(content, opened)
    else:
        return None
    transparent = opened.info.get("transparency")
    is_transparent = np.zeros(values.shape[:2], dtype=np.bool_)
    if transparent is not None:
        is_transparent = (np.atleast_3d(values) == np.asarray(transparent)).all(axis=2)
    opaque = np.atleast_3d(values)[~is_transparent]
    return _WidePixels(values, is_transparent, int(opaque.max(initial=0)))


def _has_wide_colours(image: "ImageFile") -> bool:
    """Tells whether an image has colours of 16 bits per channel, of which Pillow keeps only the upper bytes."""
    return image.format == "PNG" and [tile.args for tile in image.tile] == ["RGB;16B"]


def _wide_colours(content: bytes, opened: "ImageFile") -> "npt.NDArray[np.uint32]":
    """Returns colours of 16 bits per channel, [rows, columns, 3]."""
    import numpy as np
    from PIL import ImageOps

    (tile,) = opened.tile
    upper = np.asarray(ImageOps.exif_transpose(opened)).astype(np.uint32) << 8
    with _opened(content) as again:
        again.tile = [tile._replace(args="RGB;16L")]
        both: npt.NDArray[np.uint32] = upper | np.asarray(ImageOps.exif_transpose(again))
    return both


def _narrowed(
    wide: _WidePixels, wide_bits: int | Callable[[], int] | None, *, is_grey: bool, is_white_zero: bool
) -> "tuple[Pixels, int]":
    """Scales pixels of more than 8 bits to uint8; returns them and the bits that they were scaled from."""
    import numpy as np

    own = _bits_of(wide.largest)
    bits = wide_bits() if callable(wide_bits) else (wide_bits or WIDE_BITS[-1])
    if wide_bits is None and own < bits:
        raise ValueError(
            f"its pixels use {own} bits of 16, which may be black or a smaller range; scale them to 8 bits"
        )
    # A file that changed after the range of its set was determined could exceed it, or a file of another set.
    if own > bits:
        raise ValueError(f"its pixels exceed {bits} bits, the range of the training images")
    pixels = ((wide.luma if is_grey else wide.values) >> (bits - 8)).astype(np.uint8)
    pixels = 255 - pixels if is_white_zero else pixels
    pixels[wide.is_transparent] = 255
    return pixels, bits


def _opaque(image: "Image.Image") -> "Image.Image":
    """Returns an image without transparency, in any mode that converts to grey or RGB."""
    from PIL import Image

    if image.mode == "F":
        raise ValueError("floating-point pixels have no agreed range")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image


def image_size(content: bytes) -> tuple[int, int]:
    """Returns an image's columns and rows, turned by its EXIF orientation, from its header.

    Raises:
      Exception: the image can't be opened; any of Pillow's errors.
    """
    with _opened(content) as opened:
        width, height = opened.size
        # Pillow turns a TIFF by itself, and decodes a whole PNG to look for an orientation after its pixels.
        is_told = opened.format not in ("TIFF", "PNG") or (
            opened.format == "PNG" and any(mark in content for mark in _PNG_MARKS)
        )
        is_turned = width != height and is_told and opened.getexif().get(ORIENTATION, 1) >= 5
        return (height, width) if is_turned else (width, height)


def has_colours(content: bytes) -> bool:
    """Tells whether an image has a pixel of different red, green and blue; decodes only what has colour channels.

    Raises:
      Exception: the image can't be decoded; any of Pillow's errors.
    """
    import numpy as np

    with _opened(content) as opened:
        if opened.mode in _GREY_MODES or opened.mode.startswith("I"):
            return False
        if _has_wide_colours(opened):
            values: npt.NDArray[Any] = _wide_colours(content, opened)
        else:
            values = np.asarray(_opaque(opened).convert("RGB"))
        return bool((values != values[..., :1]).any())


def is_converted(kind: Kind, form: ImageForm) -> bool:
    """Tells whether an image had another form originally."""
    return kind != (form.shape.width, form.shape.height, form.mode)


def is_wide(kind: Kind) -> bool:
    """Tells whether an image of more than 8 bits was scaled."""
    return kind[2].endswith(" bits")
