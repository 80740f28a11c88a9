"""The user's own images as a stream of one form, with a line about what was converted."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING

from mnist_ray.data.decoding import Kind, UnreadableImageError, decode_image, is_converted, is_wide, used_bits
from mnist_ray.data.fitting import all_to_form
from mnist_ray.data.image_shape import ImageForm, ImageShape
from mnist_ray.data.sources import words_of
from mnist_ray.errors import DataError
from mnist_ray.text.escape import printable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    Pixels = npt.NDArray[np.uint8]

MODE_WORDS = {"L": "grey", "1": "black-and-white", "P": "palette"}
MAX_KINDS_SAID = 3
_IMAGES_PER_PIECE, _BYTES_PER_PIECE = 1024, 32 << 20


@dataclass(frozen=True)
class DecodedImages:
    """Encoded images that decode_image decodes and converts on demand; see ImagePieces.

    Args:
      encoded: name of each image for messages, and its bytes.
      form: the form of the set.
      whole_set: returns the images of all splits, which determine how images of more than 8 bits are scaled; called
        only for those.
      given_bits: the bits to scale from instead.
    """

    encoded: Iterable[tuple[str, bytes]]
    form: ImageForm
    source: str
    whole_set: Callable[[], Iterable[tuple[str, bytes]]]
    given_bits: int | None = None
    _kinds: Counter[Kind] = field(default_factory=Counter)
    _one_shade: list[str] = field(default_factory=list)

    def __iter__(self) -> "Iterator[Tensor]":
        """Yields the images in order, uint8 [k, *form.shape].

        Raises:
          DataError: images can't be decoded, or all became one shade; raised after the last image, with the first name
            and the number.
        """
        broken: list[str] = []
        count = 0
        piece: list[Pixels] = []
        size = piece_size(self.form)
        for name, content in self.encoded:
            count += 1
            try:
                image, kind, became_one_shade = decode_image(content, self.form, wide_bits=lambda: self._wide_bits)
            except UnreadableImageError as error:
                broken.append(f"{name} ({error})")
                continue
            self._kinds[kind] += 1
            if became_one_shade:
                self._one_shade.append(printable(name))
            piece.append(image)
            if len(piece) == size:
                yield _as_images(piece)
                piece = []
        if broken:
            raise DataError(
                f"{self.source}: {len(broken)} of {count} images cannot be read, the first is {broken[0]};"
                " remove or replace them"
            )
        if len(self._one_shade) == count > 0:
            raise all_one_shade(self.source, self.form, self._one_shade, count)
        if piece:
            yield _as_images(piece)

    @cached_property
    def _wide_bits(self) -> int:
        return self.given_bits or used_bits(content for _, content in self.whole_set())

    @property
    def wide_bits(self) -> int | None:
        """See ImagePieces."""
        return self._wide_bits if any(map(is_wide, self._kinds)) else None

    @property
    def conversion(self) -> str | None:
        """See describe_conversion; includes the images that became one shade."""
        return _conversion(self._kinds, self.form, self._one_shade)


@dataclass(frozen=True)
class PixelPieces:
    """Images that are stored as pixels, all of one size, converted on demand; see ImagePieces.

    Args:
      stored: a function that names the image at a place of a piece, for messages, and the piece, uint8
        [k, rows, columns] or [k, rows, columns, 3].
      form: the form of the set.
    """

    stored: "Iterable[tuple[Callable[[int], str], Pixels]]"
    form: ImageForm
    source: str
    _kinds: Counter[Kind] = field(default_factory=Counter)
    _one_shade: list[str] = field(default_factory=list)

    def __iter__(self) -> "Iterator[Tensor]":
        """Yields the images in order, uint8 [k, *form.shape].

        Raises:
          DataError: all became one shade; raised after the last image.
        """
        import torch

        for name_of, images in self.stored:
            # As many as fit, both as stored and as converted.
            size = min(piece_size(self.form), piece_size(ImageForm(ImageShape(3, *images.shape[1:3]))))
            kind = (images.shape[2], images.shape[1], "L" if images.ndim == 3 else "RGB")
            for first in range(0, len(images), size):
                some = images[first : first + size]
                converted, one_shade = all_to_form(some, self.form)
                self._kinds[kind] += len(some)
                self._one_shade.extend(name_of(first + place) for place in one_shade.nonzero()[0].tolist())
                # torch warns about read-only memory.
                yield torch.from_numpy(converted if converted.flags.writeable else converted.copy())
        if len(self._one_shade) == self._kinds.total() > 0:
            raise all_one_shade(self.source, self.form, self._one_shade, len(self._one_shade))

    wide_bits = None

    @property
    def conversion(self) -> str | None:
        """See describe_conversion; includes the images that became one shade."""
        return _conversion(self._kinds, self.form, self._one_shade)


def piece_size(form: ImageForm) -> int:
    """Returns the number of images in a piece, so that images of any size fit into memory."""
    return min(max(_BYTES_PER_PIECE // prod(form.shape), 1), _IMAGES_PER_PIECE)


def _conversion(kinds: Counter[Kind], form: ImageForm, one_shade: Sequence[str]) -> str | None:
    converted = describe_conversion(kinds, form)
    if not one_shade:
        return converted
    lost = one_shade_words(one_shade, len(one_shade), kinds.total())
    return f"{converted}; {lost}" if converted else lost


def one_shade_words(first: Sequence[str], num_lost: int, count: int) -> str:
    """Says how many images became one shade, with the first names."""
    return f"{num_lost} of {count} images became one shade: {words_of(first, num_lost)}"


def all_one_shade(source: str, form: ImageForm, first: Sequence[str], count: int) -> DataError:
    """Returns the error that all images became one shade."""
    return DataError(
        f"{source}: all {count} images become one shade in {form.shape.words} ({words_of(first, count)}); convert them "
        f"to {form.shape.words.split()[1]} yourself"
    )


def _as_images(piece: "Sequence[Pixels]") -> "Tensor":
    import numpy as np
    import torch

    return torch.from_numpy(np.stack(piece))


def _images(n: int) -> str:
    return f"{n} image" if n == 1 else f"{n} images"


def describe_conversion(kinds: Counter[Kind], form: ImageForm) -> str | None:
    """Returns a line like '120 images of 640x480 RGB -> 32x32 RGB, padded'; None if all images had the form."""
    converted = Counter({kind: n for kind, n in kinds.items() if is_converted(kind, form)})
    if not converted:
        return None
    # Sort by count, then by kind, so that the line doesn't depend on the order of the images.
    ordered = sorted(converted.items(), key=lambda item: (-item[1], item[0]))
    originals = ", ".join(
        f"{_images(n)} of {columns}x{rows} {MODE_WORDS.get(mode, mode)}"
        for (columns, rows, mode), n in ordered[:MAX_KINDS_SAID]
    )
    others = sum(n for _, n in ordered[MAX_KINDS_SAID:])
    if others:
        num_kinds = len(ordered) - MAX_KINDS_SAID
        originals += f", {_images(others)} of {num_kinds} other {'kind' if num_kinds == 1 else 'kinds'}"
    changes = {change for columns, rows, _ in converted if (change := form.change(columns, rows))}
    return f"{originals} -> {', '.join([form.shape.words, *changes])}"
