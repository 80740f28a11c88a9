"""Spans of images: any process can read a span, and knows the numbers of its shards beforehand."""

import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from mnist_ray.data.decoding import MAX_IMAGE_BYTES, UnreadableImageError, decode_image, is_converted, is_wide
from mnist_ray.data.fitting import all_to_form
from mnist_ray.data.image_shape import ImageForm
from mnist_ray.data.parquet_file import (
    byte_lengths,
    image_batches,
    image_layout,
    label_texts,
    open_parquet,
    size_of_list,
    whole_images,
)
from mnist_ray.data.sources import FILES_AHEAD
from mnist_ray.errors import StorageError
from mnist_ray.storage.manifest import REQUESTS_AT_ONCE
from mnist_ray.storage.storage import FileEntry, MissingError, Storage, storage_errors

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Pixels = npt.NDArray[np.uint8]

# Maximum bytes read ahead of decoding, so that images of any size fit into memory.
BYTES_AHEAD = 64 << 20

_Item = TypeVar("_Item")


@dataclass(frozen=True, eq=False)
class ReadImages:
    """Consecutive images of one file, or the reason why a single image can't be read.

    Attributes:
      path: of the file, relative to the images' folder; for a single file, its name.
      row: place of the first image in a Parquet or IDX file, from 0; None for a file that is one image.
      pixels: uint8 [n, channels, height, width], read-only; None for an unreadable image.
      is_converted: whether the images had another size or colours.
      is_wide: whether the images had more than 8 bits.
      one_shade: which of the images became one shade, bool [n]; None if none did.
      labels: each image's label in a Parquet file; None without a column label.
      error: why the image can't be read.
    """

    path: str
    row: int | None
    pixels: "Pixels | None"
    is_converted: bool = False
    is_wide: bool = False
    one_shade: "npt.NDArray[np.bool_] | None" = None
    labels: Sequence[str | None] | None = None
    error: str | None = None

    def __len__(self) -> int:
        """Returns the number of images, counting an unreadable one."""
        return 1 if self.pixels is None else len(self.pixels)

    @property
    def rows(self) -> Sequence[int | None]:
        """The place of each image in its file, None for a file that is one image."""
        return [None] if self.row is None else range(self.row, self.row + len(self))

    def split(self, size: int) -> tuple["ReadImages", "ReadImages"]:
        """Returns the first `size` images, fewer than all, and the rest."""
        assert self.row is not None
        assert self.pixels is not None
        return self._part(slice(size)), replace(self._part(slice(size, None)), row=self.row + size)

    def _part(self, rows: slice) -> "ReadImages":
        assert self.pixels is not None
        one_shade = None if self.one_shade is None else self.one_shade[rows]
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, pixels=self.pixels[rows], one_shade=one_shade, labels=labels)


class Span(Protocol):
    """Consecutive images for one process to read; small to pickle."""

    @property
    def first_shard(self) -> int:
        """Number of the shard that its first image belongs to; a shard never crosses spans."""

    def read(self, form: ImageForm, wide_bits: int | None = None) -> Iterator[ReadImages]:
        """Yields the images in order, any number at once, or the reason why an image can't be read.

        Args:
          form: what the images become.
          wide_bits: the bits to scale images of more than 8 bits from; without it they must use all 16.

        Raises:
          DataError: a Parquet or IDX file is damaged.
          StorageError: the storage can't be read.
        """


def batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    """Yields consecutive items in lists of a size; the last may be shorter."""
    rest = iter(items)
    while some := list(itertools.islice(rest, size)):
        yield some


def shards(images: Iterable[ReadImages], size: int) -> Iterator[list[ReadImages]]:
    """Yields consecutive images of a span in lists of `size` images in total; the last may have fewer."""
    shard: list[ReadImages] = []
    room = size
    for rest in images:
        while len(rest) > room:
            first, rest = rest.split(room)
            yield [*shard, first]
            shard, room = [], size
        shard.append(rest)
        room -= len(rest)
        if not room:
            yield shard
            shard, room = [], size
    if shard:
        yield shard


def file_spans(storage: Storage, entries: Iterable[FileEntry], shard_size: int) -> Iterator[Span]:
    """Yields spans of one shard each, for files that are one image each."""
    for number, some in enumerate(batches(entries, shard_size)):
        yield FileSpan(number, storage, tuple(some))


def parquet_spans(storage: Storage, paths: Sequence[str], source: str, shard_size: int) -> Iterator[Span]:
    """Yields spans of whole row groups with at least a shard of images, except the last span of each file.

    Raises:
      DataError: a file is damaged.
      StorageError: the storage can't be read.
    """
    shard = 0
    for path in paths:
        with open_parquet(storage, path, source) as file:
            metadata = file.metadata
            counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        row = 0
        for groups in _runs_of_groups(counts, shard_size):
            num_rows = sum(counts[group] for group in groups)
            yield ParquetSpan(shard, storage, path, source, tuple(groups), row)
            shard += math.ceil(num_rows / shard_size)
            row += num_rows


def first_bytes(storage: Storage, name: str) -> bytes:
    """Returns the first four bytes of a file."""
    with storage_errors(storage.uri_of(name)), storage.open_input(name) as file:
        return bytes(file.read(4))


@dataclass(frozen=True)
class FileSpan:
    """Files that are one image each; see Span."""

    first_shard: int
    storage: Storage
    entries: tuple[FileEntry, ...]

    def read(self, form: ImageForm, wide_bits: int | None = None) -> Iterator[ReadImages]:
        """See Span.read."""
        for path, content in _contents(self.storage, self.entries):
            yield _decoded(path, None, content, form, wide_bits)


def _contents(storage: Storage, entries: Sequence[FileEntry]) -> Iterator[tuple[str, bytes | UnreadableImageError]]:
    """Yields each file's content in order; reads several files at once, up to BYTES_AHEAD ahead."""
    waiting: deque[tuple[FileEntry, Future[bytes | UnreadableImageError]]] = deque()
    held = 0
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        for entry in entries:
            while waiting and (len(waiting) == FILES_AHEAD or held + entry.size > BYTES_AHEAD):
                first, reading = waiting.popleft()
                held -= first.size
                yield first.path, reading.result()
            waiting.append((entry, pool.submit(_read_file, storage, entry)))
            held += entry.size
        for first, reading in waiting:
            yield first.path, reading.result()


def _read_file(storage: Storage, entry: FileEntry) -> bytes | UnreadableImageError:
    if entry.size > MAX_IMAGE_BYTES:
        return UnreadableImageError(f"the file has {entry.size} bytes, more than {MAX_IMAGE_BYTES}")
    try:
        return storage.read_bytes(entry.path)
    except MissingError:
        # On a machine that doesn't share the folder, all files are missing: raise.
        if storage.is_local and not Path(storage.uri).is_dir():
            raise
        return UnreadableImageError("the file is gone")
    except StorageError as error:
        if isinstance(error.__cause__, PermissionError):
            return UnreadableImageError("permission denied")
        if error.__cause__ is None:
            return UnreadableImageError("the file's name holds control characters or is not Unicode")
        raise


def _decoded(
    path: str, row: int | None, content: bytes | UnreadableImageError, form: ImageForm, wide_bits: int | None
) -> ReadImages:
    import numpy as np

    try:
        if isinstance(content, UnreadableImageError):
            raise content
        pixels, kind, became_one_shade = decode_image(content, form, wide_bits=wide_bits)
    except UnreadableImageError as error:
        return ReadImages(path, row, None, error=str(error))
    one_shade = np.ones(1, dtype=np.bool_) if became_one_shade else None
    return ReadImages(path, row, pixels[None], is_converted(kind, form), is_wide(kind), one_shade)


@dataclass(frozen=True)
class ParquetSpan:
    """Consecutive row groups of a Parquet file, from row number first_row of the file; see Span."""

    first_shard: int
    storage: Storage
    path: str
    source: str
    groups: tuple[int, ...]
    first_row: int

    def read(self, form: ImageForm, wide_bits: int | None = None) -> Iterator[ReadImages]:
        """See Span.read."""
        done = 0
        with open_parquet(self.storage, self.path, self.source) as file:
            layout = image_layout(file, f"{self.source}: {self.path}")
            labels = label_texts(file, self.groups)
            for values in image_batches(file, layout, self.groups):
                place = self.path, self.first_row + done
                is_pixels = layout == "pixels"
                read = _pixels(*place, values, form) if is_pixels else _encoded(*place, values, form, wide_bits)
                for images in read:
                    rows = slice(done, done + len(images))
                    yield images if labels is None else replace(images, labels=labels[rows])
                    done = rows.stop


def _encoded(path: str, first_row: int, values: Any, form: ImageForm, wide_bits: int | None) -> Iterator[ReadImages]:
    for row, (value, length) in enumerate(zip(values, byte_lengths(values), strict=True), start=first_row):
        if length is None:
            yield ReadImages(path, row, None, error="null")
        elif length > MAX_IMAGE_BYTES:
            yield ReadImages(path, row, None, error=f"{length} bytes, more than {MAX_IMAGE_BYTES}")
        else:
            yield _decoded(path, row, value.as_py(), form, wide_bits)


def _pixels(path: str, first_row: int, values: Any, form: ImageForm) -> Iterable[ReadImages]:
    first = next((value for value in values if value.is_valid), None)
    size = size_of_list(0 if first is None else len(first.values), (form.shape.width, form.shape.height))
    whole = whole_images(values, *size) if size else None
    if whole is None:
        # Check one by one only after an error: it takes longer than the network.
        return (_checked_pixels(path, row, value, form) for row, value in enumerate(values, start=first_row))
    return [_of_grey(path, first_row, whole, form)] if len(whole) else []


def _checked_pixels(path: str, row: int, value: Any, form: ImageForm) -> ReadImages:
    if not value.is_valid or value.values.null_count:
        return ReadImages(path, row, None, error="null")
    _, height, width = form.shape
    size = size_of_list(len(value.values), (width, height))
    if size is None:
        return ReadImages(path, row, None, error=f"{len(value.values)} pixels instead of {height * width}")
    return _of_grey(path, row, value.values.to_numpy().reshape(1, size[1], size[0]), form)


def _of_grey(path: str, row: int, images: "Pixels", form: ImageForm) -> ReadImages:
    pixels, one_shade = all_to_form(images, form)
    is_converted = (1, *images.shape[1:]) != form.shape
    return ReadImages(path, row, pixels, is_converted, one_shade=one_shade if one_shade.any() else None)


def _runs_of_groups(counts: Sequence[int], at_least: int) -> Iterator[list[int]]:
    """Yields runs of row groups with at least a number of rows in total; the last may have fewer, but never none."""
    groups: list[int] = []
    num_rows = 0
    for group, count in enumerate(counts):
        groups.append(group)
        num_rows += count
        if num_rows >= at_least:
            yield groups
            groups, num_rows = [], 0
    if num_rows:
        yield groups
