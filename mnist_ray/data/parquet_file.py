"""An open Parquet file with a column of images and maybe one of labels."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isqrt, prod
from typing import TYPE_CHECKING, Any

from mnist_ray.data.parquet_pages import check_page_sizes, most_bytes_of_shared_image
from mnist_ray.data.sources import list_words
from mnist_ray.errors import DataError
from mnist_ray.storage.storage import Storage, storage_errors

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

ROWS_PER_BATCH = 1024
# Bytes read at once, so that images of any size fit into memory.
BATCH_BYTES = 16 << 20
# Of one image in a list, on average: lists far longer than an image aren't read at all.
MAX_LISTED_PIXELS = 512 * 512
READ_BYTES = 1 << 20
IMAGE_TYPES = "encoded images (binary, or a struct with binary 'bytes') or lists of uint8, the pixels of grey images"


@contextmanager
def open_parquet(storage: Storage, path: str, source: str) -> Iterator[Any]:
    """Opens a Parquet file; any damage, even found on reading inside the block, raises DataError."""
    import pyarrow
    import pyarrow.parquet

    try:
        with storage.open_input(path) as raw:
            metadata = pyarrow.parquet.ParquetFile(raw).metadata
            # With pre_buffer, Arrow reads a whole column ahead; without buffer_size, a row group's whole column.
            file = pyarrow.parquet.ParquetFile(
                raw,
                metadata=metadata,
                # Hold a text that many rows share only once. Not for images: Arrow keeps a dictionary column's values
                # until the file is closed.
                read_dictionary=_label_of_bytes(metadata),
                page_checksum_verification=True,
                pre_buffer=False,
                buffer_size=READ_BYTES,
            )
            # parquet_pages reads the page headers from here.
            file.raw = raw
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        # Arrow also reports a damaged page as an OSError, but without the system's or the server's error code.
        if isinstance(error, OSError) and (error.errno is not None or "AWS Error" in str(error)):
            with storage_errors(storage.uri_of(path)):
                raise
        reason = " ".join(str(error).split())
        raise DataError(f"{source}: {path}: damaged Parquet file ({reason}); write it again") from None


def _label_of_bytes(metadata: Any) -> list[str]:
    columns = map(metadata.schema.column, range(metadata.num_columns))
    return [column.path for column in columns if column.path == "label" and column.physical_type == "BYTE_ARRAY"]


def column_type(file: Any, name: str, place: str) -> Any:
    """Returns the Arrow type of a column.

    Raises:
      DataError: the column is missing or has an extension type.
    """
    import pyarrow

    index = file.schema_arrow.get_field_index(name)
    if index < 0:
        columns = list_words(file.schema_arrow.names, limit=8)
        raise DataError(f"{place}: needs one column {name!r}; it has the columns {columns}")
    field = file.schema_arrow.field(index)
    # Reading an extension type runs its own code, which an untrusted file must not choose.
    if isinstance(field.type, pyarrow.BaseExtensionType) or b"ARROW:extension:name" in (field.metadata or {}):
        raise DataError(f"{place}: the column {name} has an Arrow extension type; write it as a plain type")
    return field.type


def plain_type(kind: Any) -> Any:
    """Returns the type of a dictionary's values, and any other type as it is."""
    import pyarrow.types as types

    return kind.value_type if types.is_dictionary(kind) else kind


def is_label(kind: Any) -> bool:
    """Tells whether a column of this type may hold labels: integers or strings."""
    import pyarrow.types as types

    kind = plain_type(kind)
    return bool(types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind))


def label_texts(file: Any, groups: Sequence[int]) -> list[str | None] | None:
    """Returns the labels of row groups as texts, None for a null; equal labels share a text.

    Returns None if there is no column label with integers or strings.
    """
    index = file.schema_arrow.get_field_index("label")
    if index < 0 or not is_label(file.schema_arrow.field(index).type):
        return None
    labels: list[str | None] = []
    known: dict[str, str] = {}
    # Read labels apart from the images, whose batches are small: Arrow passes a dictionary column's whole dictionary
    # so far with each batch.
    for encoded, _ in label_batches(file, groups):
        indices = encoded.indices.to_pylist()
        used = {index: encoded.dictionary[index].as_py() for index in set(indices) - {None}}
        texts = {index: known.setdefault(str(value), str(value)) for index, value in used.items() if value is not None}
        labels += map(texts.get, indices)
    return labels


def label_batches(
    file: Any, groups: Sequence[int] | None = None, others: Sequence[str] = ()
) -> Iterator[tuple[Any, Any]]:
    """Yields the column label of row groups (default: all) as Arrow dictionary arrays, each with its record batch."""
    import pyarrow.types as types

    for batch in file.iter_batches(ROWS_PER_BATCH, row_groups=groups, columns=["label", *others]):
        labels = batch.column("label")
        yield labels if types.is_dictionary(labels.type) else labels.dictionary_encode(), batch


def image_layout(file: Any, place: str) -> str:
    """Returns how the column image holds images: 'binary', 'struct' or 'pixels'.

    Raises:
      DataError: the column is missing or holds something else.
    """
    import pyarrow
    import pyarrow.types as types

    def is_bytes(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    kind = plain_type(column_type(file, "image", place))
    check_page_sizes(file, place)
    if is_bytes(kind):
        return "binary"
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and is_bytes(plain_type(kind.field("bytes").type)):
        return "struct"
    is_list = types.is_fixed_size_list(kind) or types.is_list(kind) or types.is_large_list(kind)
    if is_list and kind.value_type == pyarrow.uint8():
        _check_num_pixels(file, place)
        return "pixels"
    raise DataError(f"{place}: the column image is {kind}; it needs {IMAGE_TYPES}")


def _check_num_pixels(file: Any, place: str) -> None:
    # Equal pixels compress to nothing: a list of a thousand million takes a few bytes in the file, but all memory here.
    for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
        if (pixels := _num_values(group)) > MAX_LISTED_PIXELS * group.num_rows:
            raise DataError(
                f"{place}: {pixels} pixels in {group.num_rows} images; more than {MAX_LISTED_PIXELS} in a list are "
                "refused; write encoded images"
            )


def _num_values(group: Any) -> int:
    """Returns the number of values in a row group's column image; the pixels, if it holds lists."""
    columns = map(group.column, range(group.num_columns))
    return sum(column.num_values for column in columns if column.path_in_schema.partition(".")[0] == "image")


def image_batches(file: Any, layout: str, groups: Sequence[int] | None = None) -> Iterator[Any]:
    """Yields the column image in batches of about BATCH_BYTES: an Arrow array of binary values, or of lists of pixels.

    Args:
      layout: its image_layout.
      groups: numbers of the row groups to read; all by default.
    """
    chosen = list(range(file.metadata.num_row_groups) if groups is None else groups)
    column = "image.bytes" if layout == "struct" else "image"
    for batch in file.iter_batches(_rows_per_batch(file, chosen), row_groups=chosen, columns=[column]):
        values = batch.column(0)
        yield values.field("bytes") if layout == "struct" else values


def _rows_per_batch(file: Any, groups: Sequence[int]) -> int:
    metadata = [file.metadata.row_group(group) for group in groups]
    # Equal pixels compress to nothing, so lists count by their lengths.
    num_bytes = sum(max(group.total_byte_size, _num_values(group)) for group in metadata)
    row_bytes = num_bytes / max(sum(group.num_rows for group in metadata), 1)
    # Without this, 800 bytes of a file can become a gigabyte: many rows may share an image in the dictionary.
    shared = most_bytes_of_shared_image(file, groups, worth_a_request=BATCH_BYTES)
    return min(max(int(BATCH_BYTES / max(row_bytes, shared, 1)), 1), ROWS_PER_BATCH)


def byte_lengths(values: Any) -> list[int | None]:
    """Returns the length of each cell of an Arrow array of binary values, plain or dictionary-encoded; None if null."""
    import pyarrow.compute as pc
    import pyarrow.types as types

    is_dictionary = types.is_dictionary(values.type)
    lengths = pc.binary_length(values.dictionary if is_dictionary else values)
    of_cells: list[int | None] = (lengths.take(values.indices) if is_dictionary else lengths).to_pylist()
    return of_cells


def size_of_list(count: int, wanted: tuple[int, int]) -> tuple[int, int] | None:
    """Returns columns and rows of the image in a list of grey pixels, None if they can't be told.

    Args:
      count: pixels in the list.
      wanted: columns and rows of an image with as many pixels; with another number of pixels it is a square.
    """
    if prod(wanted) == count:
        return wanted
    side = isqrt(count)
    return (side, side) if side and side * side == count else None


def whole_images(lists: Any, width: int, height: int) -> "npt.NDArray[np.uint8] | None":
    """Returns the pixels of an Arrow array of lists, uint8 [n, height, width], read-only.

    Returns None if a list is null, holds a null, or differs in length from an image's pixels.
    """
    import pyarrow.compute as pc

    pixels = lists.flatten()
    if lists.null_count or pixels.null_count:
        return None
    if not pc.all(pc.equal(pc.list_value_length(lists), width * height)).as_py():
        return None
    whole: npt.NDArray[np.uint8] = pixels.to_numpy().reshape(-1, height, width)
    return whole
