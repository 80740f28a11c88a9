"""Reads the sizes of a Parquet file's pages from their headers, since Arrow always unpacks a page whole.

Reference: `PageHeader` in parquet.thrift of the Parquet format, in Thrift's compact protocol.
"""

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from mnist_ray.data.decoding import MAX_IMAGE_BYTES
from mnist_ray.errors import DataError

# For unpacked pages of images: Arrow holds a page and a copy of the values read from it.
MAX_PAGE_BYTES = 1 << 30
_FIRST_READ_BYTES = 4 << 10
# A header also holds the smallest and the largest value of its page.
_MAX_HEADER_BYTES = 16 << 20
_MAX_DEPTH = 8
_UNPACKED_SIZE, _PACKED_SIZE = 2, 3
# Thrift's type numbers.
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)


def check_page_sizes(file: Any, place: str) -> None:
    """Checks that no image and no page of encoded images takes too much memory.

    Args:
      file: an open Parquet file, with the underlying file as its attribute raw.

    Raises:
      DataError: an image or a page is too large.
    """
    # Arrow unpacks a page whole, several times over, before any image in it can be checked.
    for number, column in _encoded_chunks(file, range(file.metadata.num_row_groups)):
        size = column.total_uncompressed_size
        if size > MAX_IMAGE_BYTES * max(column.num_values, 1):
            raise DataError(
                f"{place}: row group {number} has images of {size} bytes in {column.num_values} rows; an image may "
                f"have {MAX_IMAGE_BYTES}; drop the row"
            )
        largest = max(_page_sizes(file, column), default=0) if size > MAX_PAGE_BYTES else 0
        if largest > MAX_PAGE_BYTES:
            raise DataError(
                f"{place}: row group {number} has a page of images that unpacks to {largest} bytes, more than "
                f"{MAX_PAGE_BYTES}; drop non-image cells, or write fewer rows per page (pyarrow's write_batch_size)"
            )


def _encoded_chunks(file: Any, groups: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """Yields the number of each of some row groups and the metadata of its encoded images."""
    for number in groups:
        group = file.metadata.row_group(number)
        for column in map(group.column, range(group.num_columns)):
            if column.path_in_schema in ("image", "image.bytes") and column.physical_type == "BYTE_ARRAY":
                yield number, column


def _page_sizes(file: Any, column: Any) -> Iterator[int]:
    first = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
    return unpacked_sizes(file.raw, first, column.total_compressed_size)


def most_bytes_of_shared_image(file: Any, groups: Sequence[int], *, worth_a_request: int) -> int:
    """Returns the maximum size of an encoded image that several rows of a row group share; 0 if none is shared.

    Args:
      worth_a_request: a row group whose images take at most this many bytes counts with their total, without a read.
    """
    largest = 0
    for _, column in _encoded_chunks(file, groups):
        if column.has_dictionary_page:
            size = column.total_uncompressed_size
            # The first page is the dictionary.
            largest = max(largest, size if size <= worth_a_request else next(_page_sizes(file, column), 0))
    return largest


def unpacked_sizes(file: BinaryIO, first: int, num_bytes: int) -> Iterator[int]:
    """Yields the unpacked size of each page of a column chunk, in bytes.

    Args:
      first: place of the chunk's first page.
      num_bytes: size of the chunk in the file.

    Raises:
      OSError: a header is damaged.
    """
    place = first
    while place < first + num_bytes:
        header_bytes, unpacked, packed = _header(file, place)
        yield unpacked
        place += header_bytes + packed


def _header(file: BinaryIO, place: int) -> tuple[int, int, int]:
    """Returns the sizes of a page's header and of the page, unpacked and packed, in bytes."""
    size = _FIRST_READ_BYTES
    while size <= _MAX_HEADER_BYTES:
        file.seek(place)
        content = file.read(size)
        try:
            end, numbers = _struct(content, 0)
        except IndexError:
            size *= 64
            continue
        unpacked, packed = numbers.get(_UNPACKED_SIZE, -1), numbers.get(_PACKED_SIZE, -1)
        if unpacked >= 0 and packed >= 0 and end <= len(content):
            return end, unpacked, packed
        break
    raise OSError(f"no page header at byte {place}")


def _struct(content: bytes, place: int, depth: int = 0) -> tuple[int, dict[int, int]]:
    """Returns the end of a struct and its integer fields."""
    if depth > _MAX_DEPTH:
        raise OSError("a page header is nested too deep")
    numbers: dict[int, int] = {}
    field = 0
    while content[place]:
        delta, kind = content[place] >> 4, content[place] & 15
        place += 1
        if delta:
            field += delta
        else:
            place, field = _number(content, place)
        if kind in (_I16, _I32, _I64):
            place, numbers[field] = _number(content, place)
        else:
            place = _skip(content, place, kind, depth)
    return place + 1, numbers


def _skip(content: bytes, place: int, kind: int, depth: int) -> int:
    if kind in (_TRUE, _FALSE):
        return place
    if kind == _BYTE:
        return place + 1
    if kind == _DOUBLE:
        return place + 8
    if kind == _BINARY:
        place, length = _varint(content, place)
        return place + length
    if kind == _STRUCT:
        return _struct(content, place, depth + 1)[0]
    # Page headers have no lists, sets or maps.
    raise OSError(f"a page header has a field of type {kind}")


def _number(content: bytes, place: int) -> tuple[int, int]:
    place, number = _varint(content, place)
    return place, (number >> 1) ^ -(number & 1)


def _varint(content: bytes, place: int) -> tuple[int, int]:
    number = shift = 0
    while content[place] & 0x80:
        number |= (content[place] & 0x7F) << shift
        place, shift = place + 1, shift + 7
    return place + 1, number | content[place] << shift
