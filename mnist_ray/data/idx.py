"""IDX files: the format of the MNIST family, raw or .gz.

A file is a big-endian header (magic number: element type and number of dimensions; then each dimension as a 32-bit
number) and the elements. The reader allocates nothing before checking the header against the file's size.

Reference: "THE IDX FILE FORMAT" in LeCun, Cortes, Burges, "The MNIST database of handwritten digits".
"""

import gzip
import math
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from mnist_ray.data.decoded_images import PixelPieces
from mnist_ray.data.examples import ExampleStream, Split, check_labels
from mnist_ray.data.image_shape import ImageOptions
from mnist_ray.data.image_survey import form_of_sizes
from mnist_ray.errors import DataError
from mnist_ray.storage.storage import check_uri
from mnist_ray.text.escape import printable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    IntegerArray = npt.NDArray[np.integer]

# In the folder of the four files, if the classes have names.
CLASS_NAMES = "classes.txt"

IMAGES_MAGIC = 0x0803  # bytes, 3 dimensions: [n, rows, columns]
COLOURS_MAGIC = 0x0804  # bytes, 4 dimensions: [n, rows, columns, 3]
LABELS_MAGIC = 0x0801  # bytes, 1 dimension: [n]
WIDE_LABELS_MAGIC = 0x0C02  # 32-bit integers, 2 dimensions: [n, columns], the label in the first (QMNIST)

ELEMENT_TYPES = {0x08: "u1", 0x0C: ">i4"}
MAX_CONTENT_BYTES = 8 << 30
# The deflate format's maximum compression ratio.
MAX_GZIP_RATIO = 1032
CHUNK_BYTES = 1 << 20
_AT_ONCE = 1000

# File names of each split: images, labels.
USUAL_NAMES: dict[Split, tuple[str, str]] = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def find_idx(folder: Path, name: str) -> Path | None:
    """Returns the file of that name in a folder, raw or .gz, or with its other spelling (train-images.idx3-ubyte)."""
    for spelling in (name, name.replace("-idx", ".idx")):
        for suffix in ("", ".gz"):
            path = folder / (spelling + suffix)
            if path.is_file():
                return path
    return None


def read_idx(path: Path, magic: int) -> "IntegerArray":
    """Reads one IDX file.

    Args:
      path: the file; a .gz file is unpacked, never beyond the size in its header.
      magic: IMAGES_MAGIC, LABELS_MAGIC or WIDE_LABELS_MAGIC.

    Returns:
      The elements with the header's shape, in the file's own byte order.

    Raises:
      DataError: missing, unreadable, wrong magic number, empty, truncated, trailing bytes, or a damaged .gz.
    """
    import numpy as np

    is_packed = path.suffix == ".gz"
    try:
        with open(path, "rb") as raw, unpacked(raw, path, is_packed=is_packed) as file:
            capacity = path.stat().st_size * (MAX_GZIP_RATIO if is_packed else 1)
            shape, content = _read_checked(file, path, magic, capacity=capacity)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return np.frombuffer(content, dtype=ELEMENT_TYPES[magic >> 8]).reshape(shape)


@contextmanager
def unpacked(file: BinaryIO, source: object, *, is_packed: bool) -> Iterator[BinaryIO]:
    """Yields the content of a raw or .gz file; a damaged .gz raises DataError inside the block."""
    try:
        yield cast(BinaryIO, gzip.GzipFile(fileobj=file)) if is_packed else file
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{source}: damaged .gz file ({error}); get it again") from None


def _read_checked(file: BinaryIO, path: Path, magic: int, *, capacity: int) -> tuple[tuple[int, ...], bytearray]:
    """Reads header and elements; for capacity see read_shape."""
    shape = read_shape(file, path, magic, capacity=capacity, max_bytes=MAX_CONTENT_BYTES)
    num_bytes = math.prod(shape) * (4 if magic >> 8 == 0x0C else 1)
    announced = announcement(shape)
    content = bytearray()
    while len(content) < num_bytes and (chunk := file.read(min(CHUNK_BYTES, num_bytes - len(content)))):
        content += chunk
    if len(content) < num_bytes:
        raise DataError(f"{path}: cut short: {announced}, {len(content)} of {num_bytes} bytes are there; get it again")
    # Only reading to the end makes gzip verify its checksum.
    if file.read(1):
        raise DataError(f"{path}: {announced}, but more bytes follow; get it again")
    return shape, content


def read_shape(
    file: BinaryIO, source: object, magic: int, *, capacity: int, max_bytes: int | None = None
) -> tuple[int, ...]:
    """Reads an IDX header.

    Args:
      file: the file, at its beginning.
      capacity: maximum bytes of header and elements, given the file's size.
      max_bytes: maximum bytes of the elements; None for no limit.

    Raises:
      DataError: wrong magic number, no elements, too many, or more than the file can hold.
    """
    num_dimensions = magic & 0xFF
    header = file.read(4 + 4 * num_dimensions)
    if len(header) >= 4 and header[:4] != struct.pack(">I", magic):
        raise DataError(f"{source}: starts with 0x{header[:4].hex()}, not with the magic number 0x{magic:08x}")
    if len(header) < 4 + 4 * num_dimensions:
        raise DataError(f"{source}: cut short in the header; get it again")
    shape = struct.unpack(f">{num_dimensions}I", header[4:])
    num_bytes = math.prod(shape) * (4 if magic >> 8 == 0x0C else 1)
    if num_bytes == 0:
        raise DataError(f"{source}: {announcement(shape)}, an empty set; at least one example is needed")
    if max_bytes is not None and num_bytes > max_bytes:
        raise DataError(f"{source}: {announcement(shape)}, more than the {max_bytes >> 30} GiB a split may have")
    if len(header) + num_bytes > capacity:
        raise DataError(f"{source}: cut short: {announcement(shape)}, more than the file holds; get it again")
    return shape


def announcement(shape: tuple[int, ...]) -> str:
    """Describes the shape in a header."""
    return f"the header announces {' x '.join(map(str, shape))} elements"


def read_images(path: Path) -> "npt.NDArray[np.uint8]":
    """Reads the images of an IDX file, uint8 [n, rows, columns].

    Raises:
      DataError: see read_idx.
    """
    return cast("npt.NDArray[np.uint8]", read_idx(path, IMAGES_MAGIC))


def read_labels(path: Path) -> "Tensor":
    """Reads the labels of an IDX file, int64 [n]: its bytes, or the first column of several.

    Raises:
      DataError: see read_idx.
    """
    import numpy as np
    import torch

    if "idx2-int" in path.name:
        return torch.from_numpy(read_idx(path, WIDE_LABELS_MAGIC)[:, 0].astype(np.int64))
    return torch.from_numpy(read_idx(path, LABELS_MAGIC).astype(np.int64))


def stream_idx_folder(place: str, split: Split, options: ImageOptions) -> ExampleStream:
    """Reads idx:FOLDER (a local folder or its file:// URI), the user's own set under the four usual file names.

    The classes are 0 to the largest training label, in both splits; their names are the lines of the file classes.txt,
    or the numbers if there is no such file. Images have 3 dimensions in grey, [n, rows,
    columns], and 4 in colour, [n, rows, columns, 3].

    Raises:
      DataError: a file is missing or damaged, the counts differ, a test label exceeds the training labels, or the
        images need a size.
    """
    folder = Path(check_uri(place))
    images_name, labels_name = USUAL_NAMES[split]
    images = _read_any_images(_existing(folder, images_name))
    labels = read_labels(_existing(folder, labels_name))
    train_labels = labels if split == "train" else read_labels(_existing(folder, USUAL_NAMES["train"][1]))
    class_names = _class_names(folder, int(train_labels.max()) + 1)
    source = f"dataset=idx:{folder} ({split})"
    count, rows, columns = images.shape[:3]
    sizes = Counter({(columns, rows): count})
    is_colour = _has_colours(images)
    other = find_idx(folder, USUAL_NAMES["test" if split == "train" else "train"][0])
    if other and (options.size is None or options.color is None):
        # All splits decide.
        others = _read_any_images(other)
        sizes[others.shape[2], others.shape[1]] += len(others)
        is_colour = is_colour or _has_colours(others)
    form = form_of_sizes(options, sizes, is_colour=is_colour, source=source)
    check_labels(count, labels, class_names=class_names, source=source)
    return ExampleStream(
        labels, class_names, form.shape, source, lambda _=None: PixelPieces([("image {}".format, images)], form, source)
    )


def _class_names(folder: Path, count: int) -> tuple[str, ...]:
    path = folder / CLASS_NAMES
    try:
        # Not splitlines: what only some programs take for the end of a line is a part of a name.
        lines = path.read_text("utf-8-sig").rstrip().split("\n")
    except FileNotFoundError:
        if path.is_symlink():
            raise DataError(f"{path}: a link that leads nowhere; mend or remove it") from None
        return tuple(map(str, range(count)))
    except OSError as error:
        raise DataError(f"{path}: can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text; save it as such") from None
    names = [line.strip(" \t\r") for line in lines] if lines != [""] else []
    if len(names) != count:
        raise DataError(
            f"{path}: has {len(names)} names, the training labels are 0 to {count - 1}; it needs a line for each "
            "of them, that of class 0 first"
        )
    for number, name in enumerate(names):
        if not name or printable(name) != name:
            raise DataError(
                f"{path}: the name of class {number} is empty or holds control characters; change line {number + 1}"
            )
        if name in names[:number]:
            raise DataError(f"{path}: classes {names.index(name)} and {number} have the same name {name!r}; change one")
    return tuple(names)


def _read_any_images(path: Path) -> "npt.NDArray[np.uint8]":
    """Reads images, uint8 [n, rows, columns] or [n, rows, columns, 3]."""
    is_colour = _starts_with(path, COLOURS_MAGIC)
    images = cast("npt.NDArray[np.uint8]", read_idx(path, COLOURS_MAGIC if is_colour else IMAGES_MAGIC))
    if is_colour and images.shape[3] != 3:
        raise DataError(f"{path}: {announcement(images.shape)}; the last dimension of colours must be 3")
    return images


def _has_colours(images: "npt.NDArray[np.uint8]") -> bool:
    pieces = (images[first : first + _AT_ONCE] for first in range(0, len(images), _AT_ONCE))
    return images.ndim == 4 and any((some != some[..., :1]).any() for some in pieces)


def _starts_with(path: Path, magic: int) -> bool:
    """Tells whether an IDX file has a magic number; False if it can't be read, which reading it reports."""
    try:
        with open(path, "rb") as raw, unpacked(raw, path, is_packed=path.suffix == ".gz") as file:
            return file.read(4) == struct.pack(">I", magic)
    except (OSError, DataError):
        return False


def _existing(folder: Path, name: str) -> Path:
    path = find_idx(folder, name)
    if path is None:
        names = ", ".join(name for pair in USUAL_NAMES.values() for name in pair)
        raise DataError(f"dataset=idx:{folder}: has no {name}[.gz]; the folder needs the files {names}, raw or .gz")
    return path
