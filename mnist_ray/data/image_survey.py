"""Finds out what the images of the user's own data are, and chooses their form."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from mnist_ray.data.decoding import has_colours, image_size
from mnist_ray.data.image_shape import MNIST_SHAPE, ImageForm, ImageOptions
from mnist_ray.data.sources import list_words
from mnist_ray.errors import DataError

# Larger images are brought to their own size only if the user asks for it.
MAX_OWN_SIDE = 96
_SUGGESTED_SIDE = 64

Size = tuple[int, int]


def form_of_encoded(
    options: ImageOptions, encoded: Callable[[], Iterable[tuple[str, bytes]]], source: str
) -> ImageForm:
    """Chooses the form of encoded images, from the headers of all of them and the pixels of those with colour channels.

    Images are in colour if one has a pixel of different red, green and blue. No pixels after that one are decoded, and
    nothing is read if the options say everything.

    Args:
      encoded: reads the name and the bytes of each image; unreadable ones don't count, decoding reports them.

    Raises:
      DataError: see form_of_sizes.
    """
    sizes: Counter[Size] = Counter()
    is_colour = options.color == "rgb"
    for _, content in encoded() if options.size is None or options.color is None else ():
        with contextlib.suppress(Exception):
            sizes[image_size(content)] += 1
            if options.color is None and not is_colour and (options.size or _is_usual(sizes)):
                is_colour = has_colours(content)
        if is_colour and options.size is not None:
            break
    return form_of_sizes(options, sizes, is_colour=is_colour, source=source)


def form_of_sizes(options: ImageOptions, sizes: Mapping[Size, int], *, is_colour: bool, source: str) -> ImageForm:
    """Chooses the form of images.

    Args:
      options: what the user asks for.
      sizes: columns and rows -> number of images.
      is_colour: whether an image has colours.

    Raises:
      DataError: no size is asked for, and the images have several or are larger than MAX_OWN_SIDE.
    """
    if options.size is None and sizes and not _is_usual(sizes):
        ordered = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
        counts = list_words([f"{width}x{height} ({count})" for (width, height), count in ordered])
        if len(sizes) > 1:
            what = f"the images have {len(sizes)} sizes: {counts}"
        else:
            what = f"the images have {counts} pixels, more than {MAX_OWN_SIDE} in a side"
        raise DataError(f"{source}: {what}; choose one with --image-size {_suggested(*ordered[0][0])}")
    return options.form(*(next(iter(sizes), (MNIST_SHAPE.width, MNIST_SHAPE.height))), is_colour=is_colour)


def _is_usual(sizes: Mapping[Size, int]) -> bool:
    return len(sizes) == 1 and max(next(iter(sizes))) <= MAX_OWN_SIDE


def _suggested(width: int, height: int) -> str:
    """Returns the size itself or, if it is large, one of about the same proportions."""
    if max(width, height) > MAX_OWN_SIDE:
        scale = _SUGGESTED_SIDE / max(width, height)
        width, height = max(round(width * scale), 1), max(round(height * scale), 1)
    return str(width) if width == height else f"{width}x{height}"
