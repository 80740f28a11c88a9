"""Encoded images as a stream of 28x28 grey, with a line about what was converted."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from mnist_ray.data.decoding import Kind, UnreadableImageError, decode_image, is_converted, is_wide, used_bits
from mnist_ray.data.examples import IMAGE_BYTES, IMAGE_SIDE
from mnist_ray.data.sources import words_of
from mnist_ray.errors import DataError
from mnist_ray.text.escape import printable

if TYPE_CHECKING:
    from torch import Tensor

MODE_WORDS = {"L": "grey", "1": "black-and-white", "P": "palette"}
MAX_KINDS_SAID = 3
IMAGES_PER_PIECE = 1024


@dataclass(frozen=True)
class DecodedImages:
    """Encoded images that decode_image decodes and converts on demand; see ImagePieces.

    Args:
      encoded: name of each image for messages, and its bytes.
      whole_set: returns the images of all splits, which determine how images of more than 8 bits are scaled; called
        only for those.
      given_bits: the bits to scale from instead.
    """

    encoded: Iterable[tuple[str, bytes]]
    source: str
    whole_set: Callable[[], Iterable[tuple[str, bytes]]]
    given_bits: int | None = None
    _kinds: Counter[Kind] = field(default_factory=Counter)
    _one_shade: list[str] = field(default_factory=list)

    def __iter__(self) -> "Iterator[Tensor]":
        """Yields the images in order, uint8 [k, 1, 28, 28].

        Raises:
          DataError: images can't be decoded, or all became one shade; raised after the last image, with the first name
            and the number.
        """
        broken: list[str] = []
        count = 0
        grey = bytearray()
        for name, content in self.encoded:
            count += 1
            try:
                image, kind, became_one_shade = decode_image(content, wide_bits=lambda: self._wide_bits)
            except UnreadableImageError as error:
                broken.append(f"{name} ({error})")
                continue
            self._kinds[kind] += 1
            if became_one_shade:
                self._one_shade.append(printable(name))
            grey += image.tobytes()
            if len(grey) == IMAGES_PER_PIECE * IMAGE_BYTES:
                yield _as_images(grey)
                grey = bytearray()
        if broken:
            raise DataError(
                f"{self.source}: {len(broken)} of {count} images cannot be read, the first is {broken[0]};"
                " remove or replace them"
            )
        if len(self._one_shade) == count > 0:
            raise all_one_shade(self.source, self._one_shade, count)
        if grey:
            yield _as_images(grey)

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
        converted = describe_conversion(self._kinds)
        if not self._one_shade:
            return converted
        lost = one_shade_words(self._one_shade, len(self._one_shade), self._kinds.total())
        return f"{converted}; {lost}" if converted else lost


def one_shade_words(first: Sequence[str], num_lost: int, count: int) -> str:
    """Says how many images became one shade, with the first names."""
    return f"{num_lost} of {count} images became one shade: {words_of(first, num_lost)}"


def all_one_shade(source: str, first: Sequence[str], count: int) -> DataError:
    """Returns the error that all images became one shade."""
    return DataError(
        f"{source}: all {count} images become one shade in 28x28 grey ({words_of(first, count)}); convert them to grey "
        "yourself"
    )


def _as_images(grey: bytearray) -> "Tensor":
    import torch

    return torch.frombuffer(grey, dtype=torch.uint8).view(-1, 1, IMAGE_SIDE, IMAGE_SIDE)


def describe_conversion(kinds: Counter[Kind]) -> str | None:
    """Returns a line like '120 images of 32x32 RGB -> 28x28 grey'; None if all images were 28x28 grey."""
    converted = Counter({kind: n for kind, n in kinds.items() if is_converted(kind)})
    if not converted:
        return None
    # Sort by count, then by kind, so that the line doesn't depend on the order of the images.
    ordered = sorted(converted.items(), key=lambda item: (-item[1], item[0]))
    originals = ", ".join(
        f"{n} images of {columns}x{rows} {MODE_WORDS.get(mode, mode)}"
        for (columns, rows, mode), n in ordered[:MAX_KINDS_SAID]
    )
    others = sum(n for _, n in ordered[MAX_KINDS_SAID:])
    if others:
        originals += f", {others} images of {len(ordered) - MAX_KINDS_SAID} other kinds"
    return f"{originals} -> {IMAGE_SIDE}x{IMAGE_SIDE} grey"
