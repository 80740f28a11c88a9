"""Spans of images: any process can read a span, and knows the numbers of its shards beforehand."""

import gzip
import io
import itertools
import math
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeVar, cast

from mnist_ray.data.examples import IMAGE_BYTES, IMAGE_SIDE
from mnist_ray.data.idx import IMAGES_MAGIC, MAX_GZIP_RATIO, announcement, read_shape
from mnist_ray.data.images import MAX_IMAGE_BYTES, UnreadableImageError, decode_image, is_converted, is_wide, resize_all
from mnist_ray.data.parquet import (
    byte_lengths,
    has_labels,
    image_layout,
    label_texts,
    open_parquet,
    rows_per_batch,
    whole_images,
)
from mnist_ray.data.sources import FILES_AHEAD
from mnist_ray.errors import DataError, StorageError
from mnist_ray.storage.manifest import REQUESTS_AT_ONCE
from mnist_ray.storage.storage import FileEntry, MissingError, Storage, storage_errors

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    GreyImages = npt.NDArray[np.uint8]

# Maximum bytes read ahead of decoding, so that images of any size fit into memory.
BYTES_AHEAD = 64 << 20
READ_BYTES = 1 << 20
IDX_HEADER_BYTES = 16
GZIP_MAGIC = b"\x1f\x8b"

_Item = TypeVar("_Item")


@dataclass(frozen=True, eq=False)
class ReadImages:
    """Consecutive images of one file, or the reason why a single image can't be read.

    Attributes:
      path: of the file, relative to the images' folder; for a single file, its name.
      row: place of the first image in a Parquet or IDX file, from 0; None for a file that is one image.
      grey: uint8 [n, 28, 28], read-only; None for an unreadable image.
      is_converted: whether the images had another size or colours.
      is_wide: whether the images had more than 8 bits.
      one_shade: which of the images became one shade, bool [n]; None if none did.
      labels: each image's label in a Parquet file; None without a column label.
      error: why the image can't be read.
    """

    path: str
    row: int | None
    grey: "GreyImages | None"
    is_converted: bool = False
    is_wide: bool = False
    one_shade: "npt.NDArray[np.bool_] | None" = None
    labels: Sequence[str | None] | None = None
    error: str | None = None

    def __len__(self) -> int:
        """Returns the number of images, counting an unreadable one."""
        return 1 if self.grey is None else len(self.grey)

    @property
    def rows(self) -> Sequence[int | None]:
        """The place of each image in its file, None for a file that is one image."""
        return [None] if self.row is None else range(self.row, self.row + len(self))

    def split(self, size: int) -> tuple["ReadImages", "ReadImages"]:
        """Returns the first `size` images, fewer than all, and the rest."""
        assert self.row is not None
        assert self.grey is not None
        return self._part(slice(size)), replace(self._part(slice(size, None)), row=self.row + size)

    def _part(self, rows: slice) -> "ReadImages":
        assert self.grey is not None
        one_shade = None if self.one_shade is None else self.one_shade[rows]
        labels = None if self.labels is None else self.labels[rows]
        return replace(self, grey=self.grey[rows], one_shade=one_shade, labels=labels)


class Span(Protocol):
    """Consecutive images for one process to read; small to pickle."""

    @property
    def first_shard(self) -> int:
        """Number of the shard that its first image belongs to; a shard never crosses spans."""

    def read(self, wide_bits: int | None = None) -> Iterator[ReadImages]:
        """Yields the images in order, any number at once, or the reason why an image can't be read.

        Args:
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


def idx_spans(storage: Storage, path: str, source: str, shard_size: int) -> Iterator[Span]:
    """Yields spans of one shard each for an IDX file; a packed file is a single span, readable only from its beginning.

    Raises:
      DataError: the header or size shows that the file is damaged.
      StorageError: the storage can't be read.
    """
    (count, rows, columns), is_packed = _idx_header(storage, path, source)
    step = count if is_packed else shard_size
    for first in range(0, count, step):
        shape = (min(step, count - first), rows, columns)
        yield IdxSpan(first // shard_size, storage, path, source, first, shape, is_packed)


def first_bytes(storage: Storage, name: str) -> bytes:
    """Returns the first four bytes of a file."""
    with storage_errors(storage.uri_of(name)), storage.open_input(name) as file:
        return bytes(file.read(4))


def file_size(storage: Storage, name: str) -> int:
    """Returns a file's size in bytes."""
    with storage_errors(storage.uri_of(name)), storage.open_input(name) as file:
        return int(file.size())


@dataclass(frozen=True)
class FileSpan:
    """Files that are one image each; see Span."""

    first_shard: int
    storage: Storage
    entries: tuple[FileEntry, ...]

    def read(self, wide_bits: int | None = None) -> Iterator[ReadImages]:
        """See Span.read."""
        for path, content in _contents(self.storage, self.entries):
            yield _decoded(path, None, content, wide_bits)


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


def _decoded(path: str, row: int | None, content: bytes | UnreadableImageError, wide_bits: int | None) -> ReadImages:
    import numpy as np

    try:
        if isinstance(content, UnreadableImageError):
            raise content
        grey, kind, became_one_shade = decode_image(content, wide_bits=wide_bits)
    except UnreadableImageError as error:
        return ReadImages(path, row, None, error=str(error))
    one_shade = np.ones(1, dtype=np.bool_) if became_one_shade else None
    return ReadImages(path, row, grey[None], is_converted(kind), is_wide(kind), one_shade)


@dataclass(frozen=True)
class ParquetSpan:
    """Consecutive row groups of a Parquet file; see Span.

    Attributes:
      groups: numbers of the row groups.
      first_row: index of their first row in the file.
    """

    first_shard: int
    storage: Storage
    path: str
    source: str
    groups: tuple[int, ...]
    first_row: int

    def read(self, wide_bits: int | None = None) -> Iterator[ReadImages]:
        """See Span.read."""
        row = self.first_row
        with open_parquet(self.storage, self.path, self.source) as file:
            layout = image_layout(file, f"{self.source}: {self.path}")
            column = "image.bytes" if layout == "struct" else "image"
            num_rows = rows_per_batch(file, self.groups)
            labels = label_texts(file, self.groups) if has_labels(file) else None
            for batch in file.iter_batches(num_rows, row_groups=list(self.groups), columns=[column]):
                values = batch.column(0)
                if layout == "pixels":
                    images = _pixels(self.path, row, values)
                else:
                    contents = values.field("bytes") if layout == "struct" else values
                    images = _encoded(self.path, row, contents, wide_bits)
                yield from images if labels is None else _with_labels(images, self.first_row, labels)
                row += len(batch)


def _with_labels(images: Iterable[ReadImages], first_row: int, labels: Sequence[str | None]) -> Iterator[ReadImages]:
    for some in images:
        assert some.row is not None
        first = some.row - first_row
        yield replace(some, labels=labels[first : first + len(some)])


def _encoded(path: str, first_row: int, values: Any, wide_bits: int | None) -> Iterator[ReadImages]:
    for row, (value, length) in enumerate(zip(values, byte_lengths(values), strict=True), start=first_row):
        if length is None:
            yield ReadImages(path, row, None, error="null")
        elif length > MAX_IMAGE_BYTES:
            yield ReadImages(path, row, None, error=f"{length} bytes, more than {MAX_IMAGE_BYTES}")
        else:
            yield _decoded(path, row, value.as_py(), wide_bits)


def _pixels(path: str, first_row: int, values: Any) -> Iterable[ReadImages]:
    whole = whole_images(values)
    if whole is None:
        # Check one by one only after an error: it takes longer than the network.
        return (_checked_pixels(path, row, value) for row, value in enumerate(values, start=first_row))
    return [ReadImages(path, first_row, whole)] if len(whole) else []


def _checked_pixels(path: str, row: int, value: Any) -> ReadImages:
    if not value.is_valid or value.values.null_count:
        return ReadImages(path, row, None, error="null")
    if len(value.values) != IMAGE_BYTES:
        return ReadImages(path, row, None, error=f"{len(value.values)} pixels instead of {IMAGE_BYTES}")
    return ReadImages(path, row, value.values.to_numpy().reshape(1, IMAGE_SIDE, IMAGE_SIDE))


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


@dataclass(frozen=True)
class IdxSpan:
    """Consecutive images of an IDX file; see Span.

    Attributes:
      first_row: index of the first image in the file; 0 if the file is packed.
      shape: number of images, rows and columns.
      is_packed: whether the file is a .gz.
    """

    first_shard: int
    storage: Storage
    path: str
    source: str
    first_row: int
    shape: tuple[int, int, int]
    is_packed: bool

    def read(self, wide_bits: int | None = None) -> Iterator[ReadImages]:
        """See Span.read."""
        import numpy as np

        del wide_bits  # IDX images have 8 bits
        count, rows, columns = self.shape
        is_resized = (rows, columns) != (IMAGE_SIDE, IMAGE_SIDE)
        with _open_idx(self.storage, self.path, self.source, is_packed=self.is_packed) as file:
            file.seek(IDX_HEADER_BYTES + self.first_row * rows * columns)
            # As many images as fit into READ_BYTES, both as stored and as resized.
            at_once = max(READ_BYTES // max(rows * columns, IMAGE_BYTES), 1)
            for some in batches(range(self.first_row, self.first_row + count), at_once):
                content = file.read(len(some) * rows * columns)
                if len(content) < len(some) * rows * columns:
                    there = some[0] + len(content) // (rows * columns)
                    raise DataError(
                        f"{self.source}: cut short: {there} images are there, fewer than announced; get it again"
                    )
                grey = np.frombuffer(content, dtype=np.uint8).reshape(-1, rows, columns)
                resized, one_shade = resize_all(grey) if is_resized else (grey, None)
                yield ReadImages(self.path, some[0], resized, is_resized, one_shade=one_shade)
            # Only reading to the end makes gzip verify its checksum.
            if self.is_packed and file.read(1):
                raise DataError(f"{self.source}: more bytes follow than were announced; get it again")


def _idx_header(storage: Storage, path: str, source: str) -> tuple[tuple[int, int, int], bool]:
    """Returns number of images, rows and columns of an IDX file, and whether it is packed."""
    size = file_size(storage, path)
    is_packed = first_bytes(storage, path).startswith(GZIP_MAGIC)
    with _open_idx(storage, path, source, is_packed=is_packed) as file:
        capacity = size * MAX_GZIP_RATIO if is_packed else size
        count, rows, columns = read_shape(file, source, IMAGES_MAGIC, capacity=capacity)
    if rows * columns > MAX_IMAGE_BYTES:
        raise DataError(f"{source}: images of {columns}x{rows}; more than {MAX_IMAGE_BYTES} pixels are refused")
    if not is_packed and size > IDX_HEADER_BYTES + count * rows * columns:
        raise DataError(f"{source}: {announcement((count, rows, columns))}, but more bytes follow; get it again")
    return (count, rows, columns), is_packed


@contextmanager
def _open_idx(storage: Storage, path: str, source: str, *, is_packed: bool) -> Iterator[BinaryIO]:
    """Opens an IDX file, unpacked; a damaged .gz raises DataError inside the block."""
    # Buffer: on S3, each read of the raw file is a request.
    with (
        storage_errors(storage.uri_of(path)),
        storage.open_input(path) as raw,
        io.BufferedReader(raw, READ_BYTES) as buffered,
    ):
        try:
            yield cast(BinaryIO, gzip.GzipFile(fileobj=buffered)) if is_packed else buffered
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise DataError(f"{source}: damaged .gz file ({error}); get it again") from None
