"""parquet:URI: a Parquet file, or a folder of them, with the columns image and label."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mnist_ray.data.examples import (
    IMAGE_BYTES,
    IMAGE_SIDE,
    ExampleStream,
    Found,
    ImagePieces,
    Split,
    labels_of,
    rows_of_split,
    sorted_class_names,
)
from mnist_ray.data.images import MAX_IMAGE_BYTES, DecodedImages
from mnist_ray.data.parquet_pages import check_page_sizes, most_bytes_of_shared_image
from mnist_ray.data.sources import Listing, list_files, list_words
from mnist_ray.data.splits import Part, check_column, may_tell_splits, parts_of_files, splits_note
from mnist_ray.errors import DataError
from mnist_ray.storage.storage import Storage, open_storage, storage_errors

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

ROWS_PER_BATCH = 1024
# Bytes read at once, so that images of any size fit into memory.
BATCH_BYTES = 16 << 20
# A message names the row of a list that is a little too long; lists far longer than an image aren't read at all.
MAX_PIXELS_RATIO = 16
READ_BYTES = 1 << 20
IMAGE_TYPES = f"encoded images (binary, or a struct with binary 'bytes') or lists of {IMAGE_BYTES} uint8"


def stream_parquet(uri: str, split: Split) -> ExampleStream:
    """Finds a Parquet file or folder with the columns image and label, and reads its labels.

    image holds encoded images (binary, or a struct with the field bytes, as Hugging Face writes it), converted by
    images.DecodedImages, or lists of 784 uint8. label holds integers or strings; the classes are the sorted distinct
    training labels.

    Folders or file names may name the splits (see splits.py): train/a.parquet, split=test/b.parquet, x_train.parquet.
    Without test files, the fifth, tenth, ... training row of each class is a test row. A validation set comes last in
    the training split.

    Args:
      uri: local path, file:// or s3://.
      split: the requested split.

    Raises:
      DataError: a missing place, ambiguous split names, a damaged file, a missing column, a wrong type, a null, or a
        test label that isn't a training label; on reading, an image that can't be decoded.
      StorageError: the storage can't be read.
    """
    source = f"dataset=parquet:{uri}"
    storage, listing = list_parquet_files(uri, source)
    of_part = parts_of_files(listing.paths, source)
    files = of_part or {"train": listing.paths, "validation": [], "test": []}
    labels, names = _read_labels(storage, files, source)
    class_names = _class_names(labels, names, source)
    is_test = None if files["test"] else rows_of_split(labels["train"], "test")
    paths, is_chosen, numbers = _rows_of(split, files, labels, is_test)
    layout = _layout(storage, paths, source)
    rows = _Rows(storage, tuple(paths), is_chosen, source)
    whole = _Rows(storage, tuple(path for part_paths in files.values() for path in part_paths), None, source)

    def read(wide_bits: int | None = None) -> ImagePieces:
        return _Pixels(rows) if layout == "pixels" else DecodedImages(rows.encoded(), source, whole.encoded, wide_bits)

    return ExampleStream(
        labels_of(numbers, names, class_names),
        class_names,
        source,
        read,
        num_validation=len(labels["validation"]) if split == "train" else 0,
        found=Found(
            splits_note(of_part), len(labels["test"]) if is_test is None else int(is_test.sum()), listing.left_out
        ),
    )


def _rows_of(
    split: Split,
    files: Mapping[Part, list[str]],
    labels: "Mapping[Part, npt.NDArray[np.int32]]",
    is_test: "npt.NDArray[np.bool_] | None",
) -> "tuple[list[str], npt.NDArray[np.bool_] | None, npt.NDArray[np.int32]]":
    """Returns a split's files, which of their rows belong to it (None for all), and the labels of these rows.

    Args:
      split: the requested split.
      files: the files of each part.
      labels: the labels of each part.
      is_test: which training rows are test rows; None if there are test files.
    """
    import numpy as np

    if split == "test":
        return (
            (files["test"], None, labels["test"])
            if is_test is None
            else (files["train"], is_test, labels["train"][is_test])
        )
    paths, numbers = files["train"] + files["validation"], np.concatenate([labels["train"], labels["validation"]])
    if is_test is None:
        return paths, None, numbers
    is_chosen = np.concatenate([~is_test, np.ones(len(labels["validation"]), dtype=np.bool_)])
    return paths, is_chosen, numbers[is_chosen]


def _class_names(labels: "Mapping[Part, npt.NDArray[np.int32]]", names: Sequence[str], source: str) -> tuple[str, ...]:
    import numpy as np

    classes = {part: {names[number] for number in np.unique(numbers)} for part, numbers in labels.items()}
    for part in ("test", "validation"):
        if unknown := sorted(classes[part] - classes["train"]):
            raise DataError(f"{source}: has {part} rows but no training rows of the classes {list_words(unknown)}")
    return sorted_class_names(classes["train"])


def find_parquet_files(uri: str, source: str) -> tuple[Storage, list[str]]:
    """Returns the storage and the paths of list_parquet_files."""
    storage, listing = list_parquet_files(uri, source)
    return storage, listing.paths


def list_parquet_files(uri: str, source: str) -> tuple[Storage, Listing]:
    """Returns the storage and its Parquet files; for the URI of one file, the storage is its folder.

    Raises:
      DataError: there are none.
    """
    storage = open_storage(uri)
    parent, _, name = storage.uri.rpartition("/")
    if parent != "s3:/":
        folder = open_storage(parent or "/")
        if folder.exists(name):
            return folder, Listing([name])
    listing = list_files(storage, source)
    # Parquet writers reserve names that begin with '_' for metadata.
    kept_apart = [path for path in listing.paths if any(part.startswith("_") for part in path.split("/"))]
    rest = [path for path in listing.paths if not any(part.startswith("_") for part in path.split("/"))]
    paths = [path for path in rest if path.lower().endswith(".parquet")]
    if not paths:
        raise DataError(f"{source}: there are no files *.parquet in {storage.uri}; check the path")
    others = {
        "below names that begin with '_'": kept_apart,
        "not named *.parquet": [path for path in rest if not path.lower().endswith(".parquet")],
    }
    left_out = [f"{len(files)} files {why} ({list_words(files)})" for why, files in others.items() if files]
    return storage, Listing(paths, (*listing.left_out, *left_out))


def _read_labels(
    storage: Storage, files: Mapping[Part, list[str]], source: str
) -> "tuple[dict[Part, npt.NDArray[np.int32]], list[str]]":
    """Returns a number for each row's label, part by part, and the labels' texts in the order of these numbers."""
    import numpy as np

    numbers: dict[str, int] = {}
    of_parts = {}
    for part, paths in files.items():
        batches, splits = [np.empty(0, dtype=np.int32)], dict[str, set[str]]()
        for path in paths:
            batches.extend(_label_numbers(storage, path, source, numbers, splits))
        of_parts[part] = np.concatenate(batches)
    return of_parts, list(numbers)


def _label_numbers(
    storage: Storage, path: str, source: str, numbers: dict[str, int], splits: dict[str, set[str]]
) -> "Iterator[npt.NDArray[np.int32]]":
    """Yields the numbers of a file's labels, batch by batch.

    Args:
      storage, path, source: the file.
      numbers: label -> number; each new label gets the next number.
      splits: the values so far of each column that may tell splits; new values are added.
    """
    import numpy as np
    import pyarrow.types as types

    with open_parquet(storage, path, source) as file:
        kind = _column_type(file, "label", f"{source}: {path}")
        if not _is_label(kind):
            raise DataError(f"{source}: {path}: the column label is {kind}; it needs integers or strings")
        telling = [field.name for field in file.schema_arrow if may_tell_splits(field.name) and _is_plain(field.type)]
        for batch in file.iter_batches(ROWS_PER_BATCH, columns=["label", *telling]):
            for name in telling:
                values = splits.setdefault(name, set())
                values.update(map(str, batch.column(name).unique().to_pylist()))
                check_column(name, values, f"{source}: {path}")
            labels = batch.column("label")
            if labels.null_count:
                raise DataError(f"{source}: {path}: a label is null; drop the row or fill it in")
            encoded = labels if types.is_dictionary(labels.type) else labels.dictionary_encode()
            # The file's own dictionary may hold unused labels.
            used, places = np.unique(encoded.indices.to_numpy(), return_inverse=True)
            texts = (str(encoded.dictionary[int(index)].as_py()) for index in used)
            lookup = np.array([numbers.setdefault(text, len(numbers)) for text in texts], dtype=np.int32)
            yield lookup[places]


def _is_label(kind: Any) -> bool:
    import pyarrow.types as types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return bool(types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind))


def has_labels(file: Any) -> bool:
    """Tells whether an open Parquet file has a column label with integers or strings."""
    index = file.schema_arrow.get_field_index("label")
    return index >= 0 and _is_label(file.schema_arrow.field(index).type)


def label_texts(file: Any, groups: Sequence[int]) -> list[str | None]:
    """Returns the labels of row groups of an open Parquet file as texts, None for a null; equal labels share a text."""
    import pyarrow.types as types

    labels: list[str | None] = []
    known: dict[str, str] = {}
    # Read labels apart from the images, whose batches are small: Arrow passes a dictionary column's whole dictionary
    # so far with each batch.
    for batch in file.iter_batches(ROWS_PER_BATCH, row_groups=list(groups), columns=["label"]):
        values = batch.column(0)
        encoded = values if types.is_dictionary(values.type) else values.dictionary_encode()
        indices = encoded.indices.to_pylist()
        used = {index: encoded.dictionary[index].as_py() for index in set(indices) - {None}}
        texts = {index: known.setdefault(str(value), str(value)) for index, value in used.items() if value is not None}
        labels += map(texts.get, indices)
    return labels


def _is_plain(kind: Any) -> bool:
    import pyarrow.types as types

    return _is_label(kind) or bool(types.is_boolean(kind.value_type if types.is_dictionary(kind) else kind))


@dataclass(frozen=True)
class _Rows:
    """The image column of some files, read batch by batch.

    Attributes:
      is_chosen: bool [rows of all files], None for all rows.
    """

    storage: Storage
    paths: tuple[str, ...]
    is_chosen: "npt.NDArray[np.bool_] | None"
    source: str

    def batches(self) -> "Iterator[tuple[str, Any, npt.NDArray[np.int64]]]":
        """Yields, per batch, the file's path, the chosen values as an Arrow array, and their rows in the file."""
        import numpy as np
        import pyarrow

        before_file = 0
        for path in self.paths:
            with open_parquet(self.storage, path, self.source) as file:
                row = 0
                column = "image.bytes" if image_layout(file, path) == "struct" else "image"
                for batch in file.iter_batches(rows_per_batch(file), columns=[column]):
                    rows = np.arange(row, row + len(batch))
                    row += len(batch)
                    values = batch.column(0)
                    if self.is_chosen is not None:
                        if before_file + row > len(self.is_chosen):
                            raise DataError(
                                f"{self.source}: {path}: has more rows than labels; it was changed meanwhile"
                            )
                        is_chosen = self.is_chosen[before_file + rows]
                        values, rows = values.filter(pyarrow.array(is_chosen)), rows[is_chosen]
                    yield path, values, rows
                before_file += row

    def encoded(self) -> Iterator[tuple[str, bytes]]:
        """Yields 'row 3 of FILE' and the bytes of each chosen image."""
        import pyarrow.types as types

        for path, values, rows in self.batches():
            contents = values.field("bytes") if types.is_struct(values.type) else values
            for row, content, length in zip(rows, contents, byte_lengths(contents), strict=True):
                if length is None:
                    raise self.bad_row(path, row)
                if length > MAX_IMAGE_BYTES:
                    raise DataError(
                        f"{self.source}: {path}: the image of row {row} has {length} bytes, more than "
                        f"{MAX_IMAGE_BYTES}; drop the row"
                    )
                yield f"row {row} of {path}", content.as_py()

    def bad_row(self, path: str, row: int) -> DataError:
        """Returns the error of a row without an image."""
        return DataError(
            f"{self.source}: {path}: the image of row {row} is null or not of {IMAGE_BYTES} pixels; drop or fix the row"
        )


@dataclass(frozen=True)
class _Pixels:
    """Images that are lists of pixels; see ImagePieces."""

    rows: _Rows
    conversion = None
    wide_bits = None

    def __iter__(self) -> "Iterator[Tensor]":
        import torch

        for path, values, rows in self.rows.batches():
            if not len(values):
                continue
            pixels = whole_images(values)
            if pixels is None:
                is_bad = (not value.is_valid or not _is_whole(value.values) for value in values)
                raise self.rows.bad_row(path, next(row for row, bad in zip(rows, is_bad, strict=True) if bad))
            yield torch.from_numpy(pixels.copy()).view(-1, 1, IMAGE_SIDE, IMAGE_SIDE)


def whole_images(lists: Any) -> "npt.NDArray[np.uint8] | None":
    """Returns the pixels of an Arrow array of lists, uint8 [n, 28, 28], read-only.

    Returns None if a list is null, holds a null, or differs in length from an image's pixels.
    """
    import pyarrow.compute as pc

    pixels = lists.flatten()
    if lists.null_count or pixels.null_count:
        return None
    if not pc.all(pc.equal(pc.list_value_length(lists), IMAGE_BYTES)).as_py():
        return None
    whole: npt.NDArray[np.uint8] = pixels.to_numpy().reshape(-1, IMAGE_SIDE, IMAGE_SIDE)
    return whole


def _is_whole(pixels: Any) -> bool:
    return len(pixels) == IMAGE_BYTES and not pixels.null_count


def _layout(storage: Storage, paths: Sequence[str], source: str) -> str:
    """Returns how the files' image columns hold images; raises DataError unless all are the same."""
    kinds = set()
    for path in paths:
        with open_parquet(storage, path, source) as file:
            kinds.add(image_layout(file, f"{source}: {path}"))
    if len(kinds) > 1:
        raise DataError(f"{source}: the files have image columns of different types; write all with one")
    return kinds.pop()


def image_layout(file: Any, place: str) -> str:
    """Returns how the image column of an open Parquet file holds images: 'binary', 'struct' or 'pixels'.

    Raises:
      DataError: the column is missing or holds something else.
    """
    import pyarrow
    import pyarrow.types as types

    def is_bytes(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    def plain(kind: Any) -> Any:
        return kind.value_type if types.is_dictionary(kind) else kind

    kind = plain(_column_type(file, "image", place))
    check_page_sizes(file, place)
    if is_bytes(kind):
        return "binary"
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and is_bytes(plain(kind.field("bytes").type)):
        return "struct"
    is_list = types.is_fixed_size_list(kind) or types.is_list(kind) or types.is_large_list(kind)
    if is_list and kind.value_type == pyarrow.uint8():
        _check_num_pixels(file, place)
        return "pixels"
    raise DataError(f"{place}: the column image is {kind}; it needs {IMAGE_TYPES}")


def byte_lengths(values: Any) -> list[int | None]:
    """Returns the length of each cell of an Arrow array of binary values, plain or dictionary-encoded; None if null."""
    import pyarrow.compute as pc
    import pyarrow.types as types

    is_dictionary = types.is_dictionary(values.type)
    lengths = pc.binary_length(values.dictionary if is_dictionary else values)
    of_cells: list[int | None] = (lengths.take(values.indices) if is_dictionary else lengths).to_pylist()
    return of_cells


def _check_num_pixels(file: Any, place: str) -> None:
    # Equal pixels compress to nothing: a list of a thousand million takes a few bytes in the file, but all memory here.
    for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
        columns = map(group.column, range(group.num_columns))
        pixels = sum(column.num_values for column in columns if column.path_in_schema.partition(".")[0] == "image")
        if pixels > MAX_PIXELS_RATIO * IMAGE_BYTES * group.num_rows:
            raise DataError(f"{place}: {pixels} pixels in {group.num_rows} images; each needs {IMAGE_BYTES}")


def _column_type(file: Any, name: str, place: str) -> Any:
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


def rows_per_batch(file: Any, groups: Sequence[int] | None = None) -> int:
    """Returns the number of rows to read at once from an open Parquet file: about BATCH_BYTES, by its metadata.

    Args:
      file: the file.
      groups: numbers of the row groups to read; all by default.
    """
    chosen = range(file.metadata.num_row_groups) if groups is None else groups
    metadata = [file.metadata.row_group(group) for group in chosen]
    row_bytes = sum(group.total_byte_size for group in metadata) / max(sum(group.num_rows for group in metadata), 1)
    # Without this, 800 bytes of a file can become a gigabyte: many rows may share an image in the dictionary.
    shared = most_bytes_of_shared_image(file, chosen, worth_a_request=BATCH_BYTES)
    return min(max(int(BATCH_BYTES / max(row_bytes, shared, 1)), 1), ROWS_PER_BATCH)


def _label_of_bytes(metadata: Any) -> list[str]:
    columns = map(metadata.schema.column, range(metadata.num_columns))
    return [column.path for column in columns if column.path == "label" and column.physical_type == "BYTE_ARRAY"]


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
