"""parquet:URI: a Parquet file, or a folder of them, with the columns image and label."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mnist_ray.data.examples import (
    IMAGE_BYTES,
    IMAGE_SIDE,
    Examples,
    Split,
    indices_of_split,
    make_examples,
    sorted_class_names,
)
from mnist_ray.data.images import decode_images
from mnist_ray.data.sources import list_paths, list_words
from mnist_ray.errors import DataError
from mnist_ray.storage import Storage, open_storage, storage_errors

if TYPE_CHECKING:
    from torch import Tensor

ROWS_PER_BATCH = 1024
IMAGE_TYPES = f"encoded images (binary, or a struct with binary 'bytes') or lists of {IMAGE_BYTES} uint8"


def load_parquet(uri: str, split: Split) -> Examples:
    """Loads a Parquet file or folder with the columns image and label.

    image holds encoded images (binary, or a struct with the field bytes, as Hugging Face writes it), converted as
    images.decode_images says, or lists of 784 uint8. label holds integers or strings; the classes are the distinct
    training labels in order.

    Subfolders train/ and test/, or files named train*.parquet and test*.parquet, are the splits if both are there;
    otherwise the fifth, tenth, ... row of each class is a test row.

    Args:
      uri: local path, file:// or s3://.
      split: the split wanted.

    Raises:
      DataError: no such place, a damaged file, a missing column, a wrong type, a null, a test label that is no
        training label, or an image that can't be decoded.
      StorageError: the storage can't be read.
    """
    import torch

    source = f"dataset=parquet:{uri}"
    storage, paths = _find_files(uri, source)
    by_split = {name: [path for path in paths if _is_of_split(path, name)] for name in ("train", "test")}
    chosen: list[int] | None = None
    if all(by_split.values()):
        paths = by_split[split]
        train_labels = _read_labels(storage, by_split["train"], source)
        labels = train_labels if split == "train" else _read_labels(storage, paths, source)
    else:
        train_labels = _read_labels(storage, paths, source)
        chosen = indices_of_split(train_labels, split)
        labels = [train_labels[index] for index in chosen]
    class_names = sorted_class_names(train_labels)
    unknown = sorted(set(labels) - set(class_names))
    if unknown:
        raise DataError(f"{source}: has test rows but no training rows of the classes {list_words(unknown)}")
    index_of = {name: index for index, name in enumerate(class_names)}
    images, conversion = _read_images(storage, paths, rows=chosen, source=source)
    return make_examples(
        images,
        torch.tensor([index_of[name] for name in labels], dtype=torch.int64),
        class_names=class_names,
        source=source,
        conversion=conversion,
    )


def _find_files(uri: str, source: str) -> tuple[Storage, list[str]]:
    """The storage and the Parquet files in it; for the URI of one file, the folder that it is in."""
    storage = open_storage(uri)
    parent, _, name = storage.uri.rpartition("/")
    if parent != "s3:/":
        folder = open_storage(parent or "/")
        if folder.exists(name):
            return folder, [name]
    paths = [path for path in list_paths(storage, source) if path.lower().endswith(".parquet")]
    # Names that begin with '_' are what writers keep for themselves.
    paths = [path for path in paths if not any(part.startswith("_") for part in path.split("/"))]
    if not paths:
        raise DataError(f"{source}: there are no files *.parquet in {storage.uri}; check the path")
    return storage, paths


def _is_of_split(path: str, split: str) -> bool:
    *folders, name = path.split("/")
    return folders[:1] == [split] or name.startswith(split)


def _read_labels(storage: Storage, paths: Sequence[str], source: str) -> list[str]:
    """The labels of all rows as text."""
    import pyarrow.types as types

    labels: list[str] = []
    for path in paths:
        with _open_parquet(storage, path, source) as file:
            kind = _column_type(file, "label", f"{source}: {path}")
            kind = kind.value_type if types.is_dictionary(kind) else kind
            if not (types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)):
                raise DataError(f"{source}: {path}: the column label is {kind}; it needs integers or strings")
            for batch in file.iter_batches(ROWS_PER_BATCH, columns=["label"]):
                for label in batch.column(0).to_pylist():
                    if label is None:
                        raise DataError(f"{source}: {path}: a label is null; drop the row or fill it in")
                    labels.append(str(label))
    return labels


def _read_images(
    storage: Storage, paths: Sequence[str], *, rows: list[int] | None, source: str
) -> tuple["Tensor", str | None]:
    """The images of the chosen rows (all, if None) as uint8 [n, 1, 28, 28], and what was converted."""
    import torch

    kinds = set()
    for path in paths:
        with _open_parquet(storage, path, source) as file:
            kinds.add(_image_layout(file, f"{source}: {path}"))
    if len(kinds) > 1:
        raise DataError(f"{source}: the files have image columns of different types; write all with one")
    values = _image_values(storage, paths, rows=rows, source=source)
    if kinds == {"pixels"}:
        pixels = bytearray()
        for _, value in values:
            pixels += value
        return torch.frombuffer(pixels, dtype=torch.uint8).reshape(-1, 1, IMAGE_SIDE, IMAGE_SIDE), None
    return decode_images(values, source)


def _image_values(
    storage: Storage, paths: Sequence[str], *, rows: list[int] | None, source: str
) -> Iterator[tuple[str, bytes]]:
    """Yields 'row 3 of FILE' and the bytes of each chosen image; rows count through all files."""
    wanted = None if rows is None else set(rows)
    before_file = 0
    for path in paths:
        with _open_parquet(storage, path, source) as file:
            row = 0
            column = "image.bytes" if _image_layout(file, path) == "struct" else "image"
            for batch in file.iter_batches(ROWS_PER_BATCH, columns=[column]):
                for value in _batch_bytes(batch.column(0)):
                    if wanted is None or before_file + row in wanted:
                        if value is None:
                            raise DataError(
                                f"{source}: {path}: the image of row {row} is null or not of {IMAGE_BYTES} pixels;"
                                " drop or mend the row"
                            )
                        yield f"row {row} of {path}", value
                    row += 1
            before_file += row


def _batch_bytes(column: Any) -> Iterator[bytes | None]:
    """The bytes of each image of an Arrow column; None for a null, and for pixels that aren't 784."""
    import pyarrow.types as types

    if types.is_struct(column.type):
        column = column.field("bytes")
    for value in column:
        if not value.is_valid:
            yield None
        elif types.is_binary(column.type) or types.is_large_binary(column.type):
            yield value.as_py()
        else:
            pixels = value.values
            is_whole = len(pixels) == IMAGE_BYTES and not pixels.null_count
            yield pixels.to_numpy().tobytes() if is_whole else None


def _image_layout(file: Any, place: str) -> str:
    """How the image column holds images: 'binary', 'struct' or 'pixels'."""
    import pyarrow
    import pyarrow.types as types

    def is_bytes(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    kind = _column_type(file, "image", place)
    if is_bytes(kind):
        return "binary"
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and is_bytes(kind.field("bytes").type):
        return "struct"
    is_list = types.is_fixed_size_list(kind) or types.is_list(kind) or types.is_large_list(kind)
    if is_list and kind.value_type == pyarrow.uint8():
        return "pixels"
    raise DataError(f"{place}: the column image is {kind}; it needs {IMAGE_TYPES}")


def _column_type(file: Any, name: str, place: str) -> Any:
    import pyarrow

    index = file.schema_arrow.get_field_index(name)
    if index < 0:
        found = list_words(file.schema_arrow.names, limit=8)
        raise DataError(f"{place}: needs one column {name!r}; it has the columns {found}")
    field = file.schema_arrow.field(index)
    # An extension type brings code of its own to read it; a file from anywhere shall not choose what runs.
    if isinstance(field.type, pyarrow.BaseExtensionType) or b"ARROW:extension:name" in (field.metadata or {}):
        raise DataError(f"{place}: the column {name} has an Arrow extension type; write it as a plain type")
    return field.type


@contextmanager
def _open_parquet(storage: Storage, path: str, source: str) -> Iterator[Any]:
    """Opens a Parquet file; what is damaged in it, also when it is read inside the block, is a DataError."""
    import pyarrow
    import pyarrow.parquet

    try:
        with (
            storage.open_input(path) as raw,
            pyarrow.parquet.ParquetFile(raw, page_checksum_verification=True) as file,
        ):
            yield file
    except (pyarrow.ArrowException, OSError) as error:
        # Arrow reports a damaged page as an OSError too, but one without the system's or the server's error code.
        if isinstance(error, OSError) and (error.errno is not None or "AWS Error" in str(error)):
            with storage_errors(storage.uri_of(path)):
                raise
        reason = " ".join(str(error).split())
        raise DataError(f"{source}: {path}: damaged Parquet file ({reason}); write it again") from None
