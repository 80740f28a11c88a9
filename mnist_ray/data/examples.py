"""A split in memory or as a stream, its fingerprint, and the default split of a set without an official one."""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol

from mnist_ray.data.image_shape import ImageShape
from mnist_ray.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

Split = Literal["train", "test"]
TEST_EVERY = 5


@dataclass(frozen=True)
class Found:
    """Facts about the user's own data.

    Attributes:
      splits: where the splits come from; None for a set with official splits.
      num_test: number of test images; None if not counted.
      left_out: clauses that say what was left out, and why.
    """

    splits: str | None = None
    num_test: int | None = None
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Examples:
    """One split of a data set.

    Args:
      images: uint8 [n, channels, height, width].
      labels: int64 [n], indices into class_names.
      class_names: one name for each class, the same in both splits.
      fingerprint: SHA-256 of the content in hexadecimal, see Fingerprint.
      conversion: one line about how the source's images were converted, None if they are as they were.
      num_validation: number of examples at the end that are the validation set that came with the data.
      wide_bits: see ImagePieces.
    """

    images: "Tensor"
    labels: "Tensor"
    class_names: tuple[str, ...]
    fingerprint: str
    conversion: str | None = None
    num_validation: int = 0
    found: Found = field(default_factory=Found)
    wide_bits: int | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def stream(self, source: str) -> "ExampleStream":
        """Returns the split as a stream of one piece; source names the data set in messages."""
        pieces = StoredPieces([self.images], self.conversion, self.wide_bits)
        return ExampleStream(
            self.labels, self.class_names, self.image_shape, source, lambda _=None: pieces, self.num_validation,
            self.found,
        )  # fmt: skip

    @property
    def image_shape(self) -> ImageShape:
        """The shape of every image."""
        return ImageShape(*self.images.shape[1:])


class ImagePieces(Protocol):
    """The images of a split in order, in pieces of uint8 [k, channels, height, width]."""

    def __iter__(self) -> "Iterator[Tensor]":
        """Yields the pieces.

        Raises:
          DataError: an image is damaged.
        """

    @property
    def conversion(self) -> str | None:
        """One line about how the images read so far were converted, None if they are as they were."""

    @property
    def wide_bits(self) -> int | None:
        """The bits that images of more than 8 bits were scaled from, None if there were none."""


@dataclass(frozen=True)
class StoredPieces:
    """Images that are already in memory; see ImagePieces."""

    pieces: "Iterable[Tensor]"
    conversion: str | None = None
    wide_bits: int | None = None

    def __iter__(self) -> "Iterator[Tensor]":
        return iter(self.pieces)


@dataclass(frozen=True, eq=False)
class ExampleStream:
    """One split of a data set, with labels in memory and images read on demand.

    Args:
      labels: int64 [n], indices into class_names.
      class_names: one name for each class, the same in both splits.
      image_shape: the shape of every image.
      source: the data set, for messages.
      read: starts reading the images, any number of times. Takes the bits to scale images of more than 8 bits from,
        None for the range of their set.
      num_validation, found: see Examples.

    Raises:
      DataError: there are no examples.
    """

    labels: "Tensor"
    class_names: tuple[str, ...]
    image_shape: ImageShape
    source: str
    read: Callable[..., ImagePieces]
    num_validation: int = 0
    found: Found = field(default_factory=Found)

    def __post_init__(self) -> None:
        if not len(self):
            raise DataError(f"{self.source}: has no images; at least one is needed")

    def __len__(self) -> int:
        return len(self.labels)

    def scaled_from(self, wide_bits: int | None) -> "ExampleStream":
        """Returns the split with images of more than 8 bits scaled from wide_bits, None for the range of their set."""
        return self if wide_bits is None else replace(self, read=partial(self.read, wide_bits))

    def scan(self) -> tuple[str, str | None]:
        """Reads all images once and returns the split's fingerprint and conversion.

        Raises:
          DataError: an image is damaged, or the numbers of images and labels differ.
          StorageError: the images can't be read.
        """
        fingerprint = Fingerprint(self)
        pieces = self.read()
        for images in pieces:
            fingerprint.add(images)
        return fingerprint.hexdigest(), pieces.conversion

    def load(self) -> Examples:
        """Reads all images into memory.

        Raises:
          DataError: an image is damaged, or the numbers of images and labels differ.
          StorageError: the images can't be read.
        """
        import torch

        _check_memory(len(self), self.image_shape, self.source)
        images = torch.empty(len(self), *self.image_shape, dtype=torch.uint8)
        fingerprint, pieces, count = Fingerprint(self), self.read(), 0
        for piece in pieces:
            fingerprint.add(piece)
            place = images[count : count + len(piece)]
            place.copy_(piece[: len(place)])
            count += len(piece)
        return Examples(
            images,
            self.labels,
            self.class_names,
            fingerprint.hexdigest(),
            pieces.conversion,
            self.num_validation,
            self.found,
            pieces.wide_bits,
        )


def _check_memory(count: int, shape: ImageShape, source: str) -> None:
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    needed = count * math.prod(shape)
    if needed > there:
        raise DataError(
            f"{source}: {count} images of {shape.words} take {needed / 2**30:,.1f} GiB, this machine has "
            f"{there / 2**30:,.1f} GiB of memory; choose a smaller --image-size"
        )


def make_examples(
    images: "Tensor", labels: "Tensor", *, class_names: tuple[str, ...], source: str, conversion: str | None = None
) -> Examples:
    """Checks that images, labels and classes fit together.

    Args:
      images: uint8 [n, channels, height, width].
      labels: int64 [n].

    Raises:
      DataError: no examples, different counts, or a label outside the classes.
    """
    check_labels(len(images), labels, class_names=class_names, source=source)
    fingerprint = Fingerprint(Examples(images, labels, class_names, fingerprint="").stream(source))
    fingerprint.add(images)
    return Examples(images, labels, class_names, fingerprint.hexdigest(), conversion)


def check_labels(num_images: int, labels: "Tensor", *, class_names: tuple[str, ...], source: str) -> None:
    """Checks that images, labels, int64 [n], and classes fit together.

    Raises:
      DataError: see make_examples.
    """
    if num_images != len(labels):
        raise DataError(f"{source}: has {num_images} images but {len(labels)} labels; both files must be of one set")
    if not num_images:
        raise DataError(f"{source}: has no examples; at least one is needed")
    outside = ((labels < 0) | (labels >= len(class_names))).nonzero().flatten()
    if len(outside):
        first = int(outside[0])
        raise DataError(
            f"{source}: the label {int(labels[first])} of example {first} is outside the"
            f" {len(class_names)} classes 0 to {len(class_names) - 1}"
        )


class Fingerprint:
    """SHA-256 of a split's content, updated piece by piece.

    It covers one line of JSON (class names, both shapes, and the size of a validation set that came with the data), the
    images' bytes, then the labels as little-endian int64. File format, compression, pieces and place don't matter.
    """

    def __init__(self, split: ExampleStream) -> None:
        self._split = split
        self._num_images = 0
        shape = [len(split), *split.image_shape]
        header: dict[str, object] = {"class_names": split.class_names, "images": shape, "labels": [len(split)]}
        if split.num_validation:
            header["validation"] = [split.num_validation]
        self._digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode() + b"\n")

    def add(self, images: "Tensor") -> None:
        """Adds the next images, uint8 [k, channels, height, width]."""
        self._num_images += len(images)
        self._digest.update(images.contiguous().numpy().data)

    def hexdigest(self) -> str:
        """Returns the fingerprint after the last image, in hexadecimal.

        Raises:
          DataError: the numbers of images and labels differ.
        """
        if self._num_images != len(self._split):
            raise DataError(
                f"{self._split.source}: has {self._num_images} images but {len(self._split)} labels; "
                "it changed while it was read"
            )
        self._digest.update(self._split.labels.contiguous().numpy().astype("<i8").data)
        return self._digest.hexdigest()


def rows_of_split(classes: "npt.NDArray[np.integer]", split: Split) -> "npt.NDArray[np.bool_]":
    """Tells which examples of a set without an official split belong to a split.

    The fifth, tenth, ... example of each class is a test example, so every class with test examples also has training
    examples, and a set that grows at its end keeps its test examples.

    Args:
      classes: [n], a number for the class of each example.

    Returns:
      bool [n].
    """
    import numpy as np

    # In class order, an example's place in its class is its distance from the first example of the class.
    order = np.argsort(classes, kind="stable")
    ordered = classes[order]
    place = np.arange(len(classes)) - np.searchsorted(ordered, ordered)
    is_chosen = np.empty(len(classes), dtype=np.bool_)
    is_chosen[order] = (place % TEST_EVERY == TEST_EVERY - 1) == (split == "test")
    return is_chosen


def numbered(names: Iterable[str]) -> "tuple[npt.NDArray[np.int64], list[str]]":
    """Returns a number for each name, int64 [n], and the distinct names in the order of their numbers."""
    import numpy as np

    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64), list(numbers)


def labels_of(numbers: "npt.NDArray[np.integer]", names: list[str], class_names: tuple[str, ...]) -> "Tensor":
    """Returns the labels of examples, int64 [n].

    Args:
      numbers: [n], the index of each example's class in `names`.
      names: names of classes; those that examples have are all in class_names.
    """
    import numpy as np
    import torch

    label_of = {name: label for label, name in enumerate(class_names)}
    lookup = np.array([label_of.get(name, -1) for name in names], dtype=np.int64)
    return torch.from_numpy(lookup[numbers])


def sorted_class_names(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the distinct class names sorted by name, or by value if all are whole numbers ('2' before '10')."""
    distinct = set(names)
    if all(re.fullmatch("-?[0-9]{1,18}", name) for name in distinct):
        return tuple(sorted(distinct, key=lambda name: (int(name), name)))
    return tuple(sorted(distinct))
