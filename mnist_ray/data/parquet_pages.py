"""Sizes of a Parquet file's pages, from their headers: Arrow unpacks a page whole, before anything in it can be seen.

Reference: `PageHeader` in parquet.thrift of the Parquet format, in Thrift's compact protocol.
"""

from collections.abc import Iterator
from typing import BinaryIO

_FIRST_READ_BYTES = 4 << 10
# A header holds the smallest and the largest value of its page too.
_MAX_HEADER_BYTES = 16 << 20
_MAX_DEPTH = 8
_UNPACKED_SIZE, _PACKED_SIZE = 2, 3
# Thrift's types: what they take beside a length of their own.
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)


def unpacked_sizes(file: BinaryIO, first: int, num_bytes: int) -> Iterator[int]:
    """Yields how many bytes each page of a column chunk unpacks to.

    Args:
      file: the Parquet file.
      first: place of the chunk's first page.
      num_bytes: of the chunk in the file.

    Raises:
      OSError: a header is damaged.
    """
    place = first
    while place < first + num_bytes:
        header_bytes, unpacked, packed = _header(file, place)
        yield unpacked
        place += header_bytes + packed


def _header(file: BinaryIO, place: int) -> tuple[int, int, int]:
    """Returns the bytes of a page's header, and of the page, unpacked and packed."""
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
    """Returns where a struct ends, and its fields that are whole numbers."""
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
    # Page headers have no lists, sets and maps.
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
