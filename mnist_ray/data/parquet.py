"""parquet:URI: a Parquet file, or a folder of them, with the columns image and label."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

from mnist_ray.data.decoded_images import DecodedImages, PixelPieces
from mnist_ray.data.decoding import MAX_IMAGE_BYTES
from mnist_ray.data.examples import (
    ExampleStream,
    Found,
    ImagePieces,
    Split,
    labels_of,
    rows_of_split,
    sorted_class_names,
)
from mnist_ray.data.image_shape import MNIST_SHAPE, ImageOptions
from mnist_ray.data.image_survey import form_of_encoded, form_of_sizes
from mnist_ray.data.parquet_file import (
    byte_lengths,
    column_type,
    image_batches,
    image_layout,
    is_label,
    label_batches,
    open_parquet,
    plain_type,
    size_of_list,
    whole_images,
)
from mnist_ray.data.sources import Listing, file_at, list_files, list_words
from mnist_ray.data.splits import Part, check_column, may_tell_splits, parts_of_files, splits_note
from mnist_ray.errors import DataError
from mnist_ray.storage.storage import Storage, open_storage
from mnist_ray.text.doing import counted

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def stream_parquet(uri: str, split: Split, options: ImageOptions) -> ExampleStream:
    """Finds a Parquet file or folder with the columns image and label, and reads its labels.

    image holds encoded images (binary, or a struct with the field bytes, as Hugging Face writes it), converted by
    DecodedImages, or lists of uint8, the rows of grey images: all of one length, which is that of square images unless
    the options ask for a size of as many pixels. label holds integers or strings; the classes are the sorted distinct
    training labels.

    Folders or file names may name the splits (see splits.py): train/a.parquet, split=test/b.parquet, x_train.parquet.
    Without test files, the fifth, tenth, ... training row of each class is a test row. A validation set comes last in
    the training split.

    Raises:
      DataError: a missing place, ambiguous split names, a damaged file, a missing column, a wrong type, a null, a test
        label that isn't a training label, or images that need a size; on reading, an image that can't be decoded.
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
    rows = _Rows(storage, tuple(paths), is_chosen, source)
    whole = _Rows(storage, tuple(path for part_paths in files.values() for path in part_paths), None, source)
    layout = _layout(storage, whole.paths, source)
    size = whole.size_of_lists(options.size) if layout == "pixels" else None
    if size is None:
        form = form_of_encoded(options, whole.encoded, source)
    else:
        form = form_of_sizes(options, {size: sum(map(len, labels.values()))}, is_colour=False, source=source)

    def read(wide_bits: int | None = None) -> ImagePieces:
        if size is not None:
            return PixelPieces(rows.pixels(*size), form, source)
        return DecodedImages(rows.encoded(), form, source, whole.encoded, wide_bits)

    return ExampleStream(
        labels_of(numbers, names, class_names),
        class_names,
        form.shape,
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

    is_test tells which training rows are test rows; None if there are test files.
    """
    import numpy as np

    if split == "test" and is_test is None:
        return files["test"], None, labels["test"]
    if split == "test":
        return files["train"], is_test, labels["train"][is_test]
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


def list_parquet_files(uri: str, source: str) -> tuple[Storage, Listing]:
    """Returns the storage and its Parquet files; for the URI of one file, the storage is its folder.

    Raises:
      DataError: there are none.
    """
    storage = open_storage(uri)
    if file := file_at(storage.uri):
        folder, name = file
        return folder, Listing([name])
    listing = list_files(storage, source)
    kept_apart = [path for path in listing.paths if is_kept_apart(path)]
    rest = [path for path in listing.paths if not is_kept_apart(path)]
    paths = [path for path in rest if is_parquet_name(path)]
    if not paths:
        raise DataError(f"{source}: there are no files *.parquet in {storage.uri}; check the path")
    others = {
        "below names that begin with '_'": kept_apart,
        "not named *.parquet": [path for path in rest if not is_parquet_name(path)],
    }
    left_out = [f"{len(files)} files {why} ({list_words(files)})" for why, files in others.items() if files]
    return storage, Listing(paths, (*listing.left_out, *left_out))


def is_kept_apart(path: str) -> bool:
    """Tells whether a name in a path begins with '_', which Parquet writers reserve for metadata."""
    return any(part.startswith("_") for part in path.split("/"))


def is_parquet_name(path: str) -> bool:
    """Tells whether a file is named *.parquet, in any case."""
    return path.lower().endswith(".parquet")


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
      numbers: label -> number; each new label gets the next number.
      splits: the values so far of each column that may tell splits; new values are added.
    """
    import numpy as np

    with open_parquet(storage, path, source) as file:
        kind = column_type(file, "label", f"{source}: {path}")
        if not is_label(kind):
            raise DataError(f"{source}: {path}: the column label is {kind}; it needs integers or strings")
        telling = [field.name for field in file.schema_arrow if may_tell_splits(field.name) and _is_plain(field.type)]
        for encoded, batch in label_batches(file, others=telling):
            for name in telling:
                values = splits.setdefault(name, set())
                values.update(map(str, batch.column(name).unique().to_pylist()))
                check_column(name, values, f"{source}: {path}")
            if encoded.null_count:
                raise DataError(f"{source}: {path}: a label is null; drop the row or fill it in")
            # The file's own dictionary may hold unused labels.
            used, places = np.unique(encoded.indices.to_numpy(), return_inverse=True)
            texts = (str(encoded.dictionary[int(index)].as_py()) for index in used)
            lookup = np.array([numbers.setdefault(text, len(numbers)) for text in texts], dtype=np.int32)
            yield lookup[places]


def _is_plain(kind: Any) -> bool:
    import pyarrow.types as types

    return is_label(kind) or bool(types.is_boolean(plain_type(kind)))


@dataclass(frozen=True)
class _Rows:
    """The image column of some files, read batch by batch; is_chosen: bool [rows of all files], None for all rows."""

    storage: Storage
    paths: tuple[str, ...]
    is_chosen: "npt.NDArray[np.bool_] | None"
    source: str

    def batches(self) -> "Iterator[tuple[str, Any, npt.NDArray[np.int64]]]":
        """Yields, per batch, the file's path, the chosen values as an Arrow array, and their rows in the file."""
        yield from counted(self._batches(), "rows read", size=lambda batch: len(batch[1]))

    def _batches(self) -> "Iterator[tuple[str, Any, npt.NDArray[np.int64]]]":
        import numpy as np
        import pyarrow

        before_file = 0
        for path in self.paths:
            with open_parquet(self.storage, path, self.source) as file:
                row = 0
                for values in image_batches(file, image_layout(file, path)):
                    rows = np.arange(row, row + len(values))
                    row += len(values)
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
        for path, values, rows in self.batches():
            for row, content, length in zip(rows, values, byte_lengths(values), strict=True):
                if length is None:
                    raise DataError(f"{self.source}: {path}: the image of row {row} is null; drop or fix the row")
                if length > MAX_IMAGE_BYTES:
                    raise DataError(
                        f"{self.source}: {path}: the image of row {row} has {length} bytes, more than "
                        f"{MAX_IMAGE_BYTES}; drop the row"
                    )
                yield f"row {row} of {path}", content.as_py()

    def size_of_lists(self, wanted: tuple[int, int] | None) -> tuple[int, int]:
        """Returns the columns and rows of images in lists of pixels, by the length of the first list.

        Args:
          wanted: the size that is asked for; see size_of_list.

        Raises:
          DataError: neither the asked size nor a square has so many pixels, or the lists are in colour.
        """
        lists = (value for _, values, _ in self.batches() for value in values if value.is_valid)
        first = next(lists, None)
        usual = MNIST_SHAPE.width, MNIST_SHAPE.height
        count = prod(usual) if first is None else len(first.values)
        if wanted is not None and count == 3 * prod(wanted):
            raise DataError(
                f"{self.source}: lists of {count} numbers, three for each of {wanted[0]}x{wanted[1]} pixels: lists are "
                "read as grey pixels; write encoded images for those in colour"
            )
        size = size_of_list(count, wanted or usual)
        if size is None:
            raise DataError(
                f"{self.source}: lists of {count} pixels, which no square has; say the size with --image-size "
                "WIDTHxHEIGHT, or write encoded images if they are in colour"
            )
        return size

    def pixels(self, width: int, height: int) -> "Iterator[tuple[Callable[[int], str], npt.NDArray[np.uint8]]]":
        """Yields the chosen images of lists of pixels, uint8 [k, height, width]; see PixelPieces."""
        for path, values, rows in self.batches():
            if not len(values):
                continue
            pixels = whole_images(values, width, height)
            if pixels is None:
                places = range(len(values))
                bad = next(place for place in places if whole_images(values.slice(place, 1), width, height) is None)
                raise DataError(
                    f"{self.source}: {path}: the image of row {rows[bad]} is null or not of {width * height} pixels; "
                    "drop or fix the row"
                )
            yield partial(_row_name, path, rows), pixels


def _row_name(path: str, rows: "npt.NDArray[np.int64]", place: int) -> str:
    return f"row {rows[place]} of {path}"


def _layout(storage: Storage, paths: Sequence[str], source: str) -> str:
    """Returns how the files' image columns hold images; raises DataError unless all are the same."""
    kinds = set()
    for path in paths:
        with open_parquet(storage, path, source) as file:
            kinds.add(image_layout(file, f"{source}: {path}"))
    if len(kinds) > 1:
        raise DataError(f"{source}: the files have image columns of different types; write all with one")
    return kinds.pop()
