"""Names that are safe as those of folders: of runs, grids, variants and evaluations."""

import re

from mnist_ray.data.datasets import DATASETS
from mnist_ray.errors import ConfigError

MAX_NAME = 64
# The names of its runs begin with it.
MAX_GRID_NAME = 32
NAME_PATTERN = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME - 1}}}")
EVALUATION_PATTERN = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,199}")

_LONGEST_PART = 24
_SUFFIX = re.compile(r"(\.(parquet|idx|gz))+$")
# Folders that say what a data set is for; their parent says which it is.
_GENERAL = {"train", "training", "test", "testing", "val", "validation"}


def name_of(text: str, length: int = _LONGEST_PART) -> str:
    """Returns the beginning of a text in characters that names may have; "data" if it has none."""
    return re.sub("[^A-Za-z0-9._-]+", "-", text).strip("-._")[:length].rstrip("-._") or "data"


def place_name(uri: str) -> str:
    """Returns the short name of a path or URI, which is its last part: `photos`; of photos/train, `photos-train`."""
    parts = [part for part in _SUFFIX.sub("", uri.rstrip("/").rpartition("://")[2]).split("/") if part]
    return name_of("-".join(parts[-2:] if parts and parts[-1].lower() in _GENERAL else parts[-1:]))


def dataset_name(dataset: str) -> str:
    """Returns the short name of a data set, such as mnist, or photos for folder:/home/me/photos.

    Two folders may have the same.
    """
    _, colon, place = dataset.partition(":")
    return place_name(place) if colon else name_of(dataset)


def loading_words(*datasets: str) -> str:
    """Returns what a command does that loads data sets, such as 'loading mnist' or 'reading the images of photos'."""
    named = [dataset for dataset in datasets if dataset in DATASETS]
    own = [dataset_name(dataset) for dataset in datasets if dataset not in DATASETS]
    parts = [f"loading {', '.join(named)}"] * bool(named) + [f"reading the images of {', '.join(own)}"] * bool(own)
    return " and ".join(parts)


def check_name(value: str, setting: str = "name") -> str:
    """Returns the name of a run, grid or variant if it is safe as a folder name.

    Raises:
      ConfigError: the name breaks the rule.
    """
    if not NAME_PATTERN.fullmatch(value):
        raise ConfigError(
            f"{setting}={value!r}: use 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit"
        )
    return value


def check_evaluation_name(value: str) -> str:
    """Returns the name of an evaluation if it is valid.

    Raises:
      ConfigError: the name breaks the rule.
    """
    if not EVALUATION_PATTERN.fullmatch(value):
        raise ConfigError(
            f"evaluation={value!r}: not a name as `mnist-ray evaluations` lists them: letters, digits, '.', '_' or '-'"
        )
    return value
