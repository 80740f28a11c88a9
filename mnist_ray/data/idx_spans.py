"""Spans of an IDX file's images."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from mnist_ray.data.decoding import MAX_IMAGE_BYTES, resize_all
from mnist_ray.data.examples import IMAGE_BYTES, IMAGE_SIDE
from mnist_ray.data.idx import IMAGES_MAGIC, MAX_GZIP_RATIO, announcement, read_shape, unpacked
from mnist_ray.data.image_spans import ReadImages, Span, batches, file_size, first_bytes
from mnist_ray.errors import DataError
from mnist_ray.storage.storage import Storage, storage_errors

GZIP_MAGIC = b"\x1f\x8b"
_HEADER_BYTES = 16
_READ_BYTES = 1 << 20


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
            file.seek(_HEADER_BYTES + self.first_row * rows * columns)
            # As many images as fit into _READ_BYTES, both as stored and as resized.
            at_once = max(_READ_BYTES // max(rows * columns, IMAGE_BYTES), 1)
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
    if not is_packed and size > _HEADER_BYTES + count * rows * columns:
        raise DataError(f"{source}: {announcement((count, rows, columns))}, but more bytes follow; get it again")
    return (count, rows, columns), is_packed


@contextmanager
def _open_idx(storage: Storage, path: str, source: str, *, is_packed: bool) -> Iterator[BinaryIO]:
    """Opens an IDX file, unpacked; a damaged .gz raises DataError inside the block."""
    # Buffer: on S3, each read of the raw file is a request.
    with (
        storage_errors(storage.uri_of(path)),
        storage.open_input(path) as raw,
        io.BufferedReader(raw, _READ_BYTES) as buffered,
        unpacked(buffered, source, is_packed=is_packed) as file,
    ):
        yield file
