"""Named data sets and the user's own; a split is two tensors in memory, or a stream of pieces.

Imports nothing heavy (torch, torchvision, pyarrow, Pillow, scikit-learn) before loading a split: the command line
lists these names.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mnist_ray.data.colour_sets import COLOUR_SETS, COLOUR_SHAPE, load_colour_set
from mnist_ray.data.digits import DIGIT_NAMES, load_digits
from mnist_ray.data.examples import Examples, ExampleStream, Split
from mnist_ray.data.idx import USUAL_NAMES, find_idx, stream_idx_folder
from mnist_ray.data.image_folder import stream_image_folder
from mnist_ray.data.image_shape import MNIST_SHAPE, ImageOptions, ImageShape
from mnist_ray.data.parquet import is_parquet_name, stream_parquet
from mnist_ray.data.torchvision_sets import TORCHVISION_SETS, load_torchvision_set
from mnist_ray.errors import ConfigError
from mnist_ray.storage.storage import check_uri
from mnist_ray.text.suggestions import did_you_mean, nearest

AS_THEY_ARE = ImageOptions()


@dataclass(frozen=True)
class Dataset:
    """A named data set; `load` takes split, data_dir= and download=, and returns the split's Examples."""

    class_names: tuple[str, ...]
    load: Callable[..., Examples]
    image_shape: ImageShape = MNIST_SHAPE


DATASETS: dict[str, Dataset] = {
    **{
        name: Dataset(wanted.class_names, partial(load_torchvision_set, wanted))
        for name, wanted in TORCHVISION_SETS.items()
    },
    "digits": Dataset(DIGIT_NAMES, load_digits),
    **{
        name: Dataset(wanted.class_names, partial(load_colour_set, wanted), COLOUR_SHAPE)
        for name, wanted in COLOUR_SETS.items()
    },
}

# The user's own data: prefix before the colon -> function that finds a split's images at the place after it.
FORMATS: dict[str, Callable[[str, Split, ImageOptions], ExampleStream]] = {
    "idx": stream_idx_folder,
    "folder": stream_image_folder,
    "parquet": stream_parquet,
}


def check_dataset(value: str) -> str:
    """Returns the value if it is a data set: a name, idx:FOLDER, folder:URI or parquet:URI.

    Raises:
      ValueError: the name is unknown, or the place is empty, unsupported or contains credentials.
    """
    if value in DATASETS:
        return value
    kind, colon, place = value.partition(":")
    if not colon or kind not in FORMATS:
        choices = f"{', '.join(DATASETS)}, or idx:FOLDER, folder:URI, parquet:URI"
        own = _with_kind(value)
        raise ValueError(f"choose one of {choices}{did_you_mean(own or value, [own] if own else DATASETS)}")
    try:
        checked = check_uri(place, kind)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    if kind == "idx" and checked.startswith("s3://"):
        raise ValueError(f"idx={place!r}: use a local folder; folder: and parquet: read from S3")
    return value


def _with_kind(value: str) -> str | None:
    """Returns a place of the user's own data with the prefix that it lacks or that is mistyped; None for any other."""
    prefix, colon, place = value.partition(":")
    kind = nearest(prefix, FORMATS) if colon else None
    if kind is None:
        place, kind = value, _kind_of(value)
    try:
        return f"{kind}:{place}" if kind and check_uri(place, kind) else None
    except ConfigError:
        # Such as a URI with credentials, which no message may hold.
        return None


def _kind_of(place: str) -> str | None:
    path = Path(place).expanduser()
    if place.startswith("s3://") or path.exists():
        if is_parquet_name(path.name):
            return "parquet"
        if place.startswith("s3://"):
            return "folder"
    if not path.is_dir():
        return None
    if any(find_idx(path, name) for names in USUAL_NAMES.values() for name in names):
        return "idx"
    files = [each.name for each in path.iterdir() if not each.name.startswith((".", "_"))]
    return "parquet" if files and all(map(is_parquet_name, files)) else "folder"


def load_examples(
    dataset: str, split: Split, *, data_dir: Path, download: bool = True, options: ImageOptions = AS_THEY_ARE
) -> Examples:
    """Loads one split of a data set into memory.

    Args:
      dataset: a name of DATASETS, idx:FOLDER, folder:URI or parquet:URI.
      data_dir: folder of named sets' files, also for downloads.
      options: what the user's own images become; those of named sets have one form.

    Raises:
      ValueError: see check_dataset.
      DataError: the data is missing, damaged, needs a size of its images, or can't be downloaded.
      StorageError: the storage of the user's own data can't be read.
    """
    check_dataset(dataset)
    if dataset in DATASETS:
        return DATASETS[dataset].load(split, data_dir=data_dir, download=download)
    kind, _, place = dataset.partition(":")
    return FORMATS[kind](place, split, options).load()


def stream_examples(
    dataset: str, split: Split, *, data_dir: Path, options: ImageOptions = AS_THEY_ARE
) -> ExampleStream:
    """Finds one split of a data set; doesn't load the images of the user's own folders and Parquet files.

    Args: see load_examples.

    Raises:
      ValueError: see check_dataset.
      DataError: the data is missing, damaged, needs a size of its images, or can't be downloaded; errors in the images
        are raised on reading them.
      StorageError: the storage of the user's own data can't be read.
    """
    check_dataset(dataset)
    kind, _, place = dataset.partition(":")
    if kind in FORMATS:
        return FORMATS[kind](place, split, options)
    return load_examples(dataset, split, data_dir=data_dir).stream(f"dataset={dataset}")


def data_folder(given: str | os.PathLike[str] | None) -> Path:
    """Returns the folder of the data sets; the default one if none is given.

    Raises:
      ConfigError: its name is empty.
    """
    if given is None:
        return default_data_dir()
    if not str(given).strip():
        raise ConfigError(f"--data-dir {given!r}: give a folder")
    # A shell doesn't expand the '~' in --data-dir=~/x; Path.expanduser raises for an unknown user.
    return Path(os.path.expanduser(given)).absolute()


def default_data_dir() -> Path:
    """Returns MNIST_RAY_DATA if it is set, else mnist-ray in the user's cache folder."""
    if chosen := os.environ.get("MNIST_RAY_DATA"):
        return Path(chosen).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "mnist-ray"
