"""Spans of an IDX file's images."""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from mnist_ray.data.decoding import MAX_IMAGE_BYTES
from mnist_ray.data.fitting import all_to_form
from mnist_ray.data.idx import COLOURS_MAGIC, IMAGES_MAGIC, MAX_GZIP_RATIO, announcement, read_shape, unpacked
from mnist_ray.data.image_shape import ImageForm
from mnist_ray.data.image_spans import ReadImages, Span, batches, first_bytes
from mnist_ray.errors import DataError
from mnist_ray.storage.storage import Storage, storage_errors

GZIP_MAGIC = b"\x1f\x8b"
_READ_BYTES = 1 << 20


def idx_spans(storage: Storage, path: str, source: str, shard_size: int) -> Iterator[Span]:
    """Yields spans of one shard each for an IDX file; a packed file is a single span, readable only from its beginning.

    Raises:
      DataError: the header or size shows that the file is damaged.
      StorageError: the storage can't be read.
    """
    (count, *size), is_packed = _idx_header(storage, path, source)
    step = count if is_packed else shard_size
    for first in range(0, count, step):
        shape = (min(step, count - first), *size)
        yield IdxSpan(first // shard_size, storage, path, source, first, shape, is_packed)


@dataclass(frozen=True)
class IdxSpan:
    """Consecutive images of an IDX file; see Span.

    Attributes:
      first_row: index of the first image in the file; 0 if the file is packed.
      shape: number of images, rows, columns and, in colour, 3.
      is_packed: whether the file is a .gz.
    """

    first_shard: int
    storage: Storage
    path: str
    source: str
    first_row: int
    shape: tuple[int, ...]
    is_packed: bool

    def read(self, form: ImageForm, wide_bits: int | None = None) -> Iterator[ReadImages]:
        """See Span.read."""
        import numpy as np

        del wide_bits  # IDX images have 8 bits
        count, *size = self.shape
        image_bytes = math.prod(size)
        is_converted = (size[1], size[0], len(size)) != (form.shape.width, form.shape.height, 2 + (form.mode == "RGB"))
        with _open_idx(self.storage, self.path, self.source, is_packed=self.is_packed) as file:
            file.seek(_header_bytes(self.shape) + self.first_row * image_bytes)
            # As many images as fit into _READ_BYTES, both as stored and as converted.
            at_once = max(_READ_BYTES // max(image_bytes, math.prod(form.shape)), 1)
            for some in batches(range(self.first_row, self.first_row + count), at_once):
                content = file.read(len(some) * image_bytes)
                if len(content) < len(some) * image_bytes:
                    there = some[0] + len(content) // image_bytes
                    raise DataError(
                        f"{self.source}: cut short: {there} images are there, fewer than announced; get it again"
                    )
                stored = np.frombuffer(content, dtype=np.uint8).reshape(-1, *size)
                pixels, one_shade = all_to_form(stored, form)
                yield ReadImages(
                    self.path, some[0], pixels, is_converted, one_shade=one_shade if one_shade.any() else None
                )
            # Only reading to the end makes gzip verify its checksum.
            if self.is_packed and file.read(1):
                raise DataError(f"{self.source}: more bytes follow than were announced; get it again")


def _header_bytes(shape: tuple[int, ...]) -> int:
    return 4 + 4 * len(shape)


def _idx_header(storage: Storage, path: str, source: str) -> tuple[tuple[int, ...], bool]:
    """Returns number of images, rows, columns and, in colour, 3, of an IDX file, and whether it is packed."""
    size = storage.entry(path).size
    is_packed = first_bytes(storage, path).startswith(GZIP_MAGIC)
    capacity = size * MAX_GZIP_RATIO if is_packed else size
    with _open_idx(storage, path, source, is_packed=is_packed) as file:
        magic = COLOURS_MAGIC if file.read(4) == COLOURS_MAGIC.to_bytes(4) else IMAGES_MAGIC
        file.seek(0)
        shape = read_shape(file, source, magic, capacity=capacity)
    if len(shape) == 4 and shape[3] != 3:
        raise DataError(f"{source}: {announcement(shape)}; the last dimension of colours must be 3")
    if math.prod(shape[1:]) > MAX_IMAGE_BYTES:
        raise DataError(f"{source}: images of {shape[2]}x{shape[1]}; more than {MAX_IMAGE_BYTES} pixels are refused")
    if not is_packed and size > _header_bytes(shape) + math.prod(shape):
        raise DataError(f"{source}: {announcement(shape)}, but more bytes follow; get it again")
    return shape, is_packed


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
