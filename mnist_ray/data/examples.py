"""A split in memory, its fingerprint, and the split that a data set without an official one gets."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mnist_ray.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

Split = Literal["train", "test"]
IMAGE_SIDE = 28
IMAGE_BYTES = IMAGE_SIDE * IMAGE_SIDE
TEST_EVERY = 5


@dataclass(frozen=True, eq=False)
class Examples:
    """One split of a data set.

    Args:
      images: uint8 [n, 1, 28, 28].
      labels: int64 [n], indices into class_names.
      class_names: one name for each class, the same in both splits.
      fingerprint: SHA-256 of the content in hexadecimal, see content_fingerprint.
      conversion: one line that says how the source's images became 28x28 grey, None if they were that already.
    """

    images: "Tensor"
    labels: "Tensor"
    class_names: tuple[str, ...]
    fingerprint: str
    conversion: str | None = None

    def __len__(self) -> int:
        return len(self.labels)


def make_examples(
    images: "Tensor", labels: "Tensor", *, class_names: tuple[str, ...], source: str, conversion: str | None = None
) -> Examples:
    """Checks that images, labels and classes fit together.

    Args:
      images: uint8 [n, 1, 28, 28].
      labels: int64 [n].
      class_names: names of the classes 0, 1, ...
      source: the data set or file that a message names.
      conversion: see Examples.

    Raises:
      DataError: no example, counts that differ, or a label outside the classes.
    """
    if len(images) != len(labels):
        raise DataError(f"{source}: has {len(images)} images but {len(labels)} labels; both files must be of one set")
    if len(images) == 0:
        raise DataError(f"{source}: has no examples; at least one is needed")
    outside = ((labels < 0) | (labels >= len(class_names))).nonzero().flatten()
    if len(outside):
        first = int(outside[0])
        raise DataError(
            f"{source}: the label {int(labels[first])} of example {first} is outside the"
            f" {len(class_names)} classes 0 to {len(class_names) - 1}"
        )
    fingerprint = content_fingerprint(images, labels, class_names)
    return Examples(images, labels, class_names, fingerprint, conversion)


def content_fingerprint(images: "Tensor", labels: "Tensor", class_names: tuple[str, ...]) -> str:
    """SHA-256, in hexadecimal, of a split's content.

    It covers one line of JSON (class names and both shapes), the images' bytes, then the labels as
    little-endian int64: the file format, the compression and the place don't enter.

    Args:
      images: uint8 [n, 1, 28, 28].
      labels: int64 [n].
      class_names: names of the classes.
    """
    header = {"class_names": class_names, "images": list(images.shape), "labels": list(labels.shape)}
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode() + b"\n")
    digest.update(images.contiguous().numpy().data)
    digest.update(labels.contiguous().numpy().astype("<i8").data)
    return digest.hexdigest()


def indices_of_split(classes: Iterable[Hashable], split: Split) -> list[int]:
    """Positions of a split's examples in a set without an official split.

    The fifth, tenth, ... example of each class is a test example, so every class with a test example has training
    examples too, and a set that grows at its end keeps its test examples.

    Args:
      classes: the class of each example.
      split: the split wanted.
    """
    seen: Counter[Hashable] = Counter()
    chosen = []
    for index, name in enumerate(classes):
        seen[name] += 1
        if (seen[name] % TEST_EVERY == 0) == (split == "test"):
            chosen.append(index)
    return chosen


def sorted_class_names(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct class names by name, or by value if all are whole numbers ('2' before '10')."""
    distinct = set(names)
    if all(re.fullmatch("-?[0-9]{1,18}", name) for name in distinct):
        return tuple(sorted(distinct, key=lambda name: (int(name), name)))
    return tuple(sorted(distinct))
