"""CIFAR-10, CIFAR-100 and SVHN, from existing files or a download, read by torchvision, which is imported only then."""

import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnist_ray.data.digits import DIGIT_NAMES
from mnist_ray.data.downloads import download_folder, move_files, torchvision_set
from mnist_ray.data.examples import Examples, Split, make_examples
from mnist_ray.data.image_shape import ImageShape
from mnist_ray.errors import DataError

COLOUR_SHAPE = ImageShape(3, 32, 32)


@dataclass(frozen=True)
class ColourSet:
    """A data set of 32x32 images in colour, in torchvision's own files.

    Args:
      name: our name, and a folder in the data folder where users may put the files.
      torchvision_name: torchvision's class, and the folder that downloads go to.
      subfolder: the folder of the files inside these; empty for none.
      file_names: files that a split needs.
      archive: what torchvision downloads and unpacks, which users may put there instead; None if it is the file itself.
      options: torchvision's arguments for a split.
    """

    name: str
    torchvision_name: str
    class_names: tuple[str, ...]
    subfolder: str
    file_names: Mapping[Split, tuple[str, ...]]
    archive: str | None
    options: Mapping[Split, Mapping[str, Any]]

    def folders(self, data_dir: Path) -> list[Path]:
        """Returns the folders to search."""
        return [data_dir, data_dir / self.name, data_dir / self.torchvision_name]


_CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR100_CLASSES = (
    *("apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy"),
    *("bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock"),
    *("cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish"),
    *("forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion"),
    *("lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange"),
    *("orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine"),
    *("possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk"),
    *("skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank"),
    *("telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale"),
    *("willow_tree", "wolf", "woman", "worm"),
)
_OF_CIFAR: dict[Split, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
# torchvision checks the files of both splits before it reads one.
_CIFAR10_FILES = ("batches.meta", "test_batch", *(f"data_batch_{number}" for number in range(1, 6)))
_CIFAR100_FILES = ("meta", "train", "test")

_SETS = (
    ColourSet(
        "cifar10", "CIFAR10", _CIFAR10_CLASSES, "cifar-10-batches-py",
        {"train": _CIFAR10_FILES, "test": _CIFAR10_FILES}, "cifar-10-python.tar.gz", _OF_CIFAR,
    ),
    ColourSet(
        "cifar100", "CIFAR100", _CIFAR100_CLASSES, "cifar-100-python",
        {"train": _CIFAR100_FILES, "test": _CIFAR100_FILES}, "cifar-100-python.tar.gz", _OF_CIFAR,
    ),
    ColourSet(
        "svhn", "SVHN", DIGIT_NAMES, "", {"train": ("train_32x32.mat",), "test": ("test_32x32.mat",)}, None,
        {"train": {"split": "train"}, "test": {"split": "test"}},
    ),
)  # fmt: skip
COLOUR_SETS = {entry.name: entry for entry in _SETS}


def load_colour_set(wanted: ColourSet, split: Split, *, data_dir: Path, download: bool) -> Examples:
    """Loads a split from files in the data folder, downloading them if they are missing.

    torchvision compares each file with the official one's MD5 before it reads it: CIFAR's files are pickles, which
    could run code.

    Args:
      data_dir: folder to search; only a download, or unpacking an archive, writes to it, as <data_dir>/<Name>.

    Raises:
      DataError: files that aren't the official ones, or missing files that can't be downloaded.
    """
    folder = _find_files(wanted, split, data_dir)
    if folder is None:
        archive = _find_archive(wanted, data_dir)
        if archive is None and not download:
            raise DataError(
                f"dataset={wanted.name}: not in {data_dir} and downloading is off; {_offline(wanted, data_dir)}"
            )
        _download(wanted, split, data_dir, archive)
        folder = _find_files(wanted, split, data_dir)
        assert folder is not None
    return _read(wanted, split, folder)


def _find_files(wanted: ColourSet, split: Split, data_dir: Path) -> Path | None:
    for folder in wanted.folders(data_dir):
        if all((folder / wanted.subfolder / name).is_file() for name in wanted.file_names[split]):
            return folder
    return None


def _find_archive(wanted: ColourSet, data_dir: Path) -> Path | None:
    paths = [folder / wanted.archive for folder in wanted.folders(data_dir)] if wanted.archive else []
    return next((path for path in paths if path.is_file()), None)


def _read(wanted: ColourSet, split: Split, folder: Path) -> Examples:
    import numpy as np
    import torch

    try:
        with warnings.catch_warnings():
            # CIFAR's pickles hold arrays in a way that NumPy deprecates.
            warnings.simplefilter("ignore")
            loaded = torchvision_set(wanted.torchvision_name, folder, **wanted.options[split])
    except RuntimeError:
        raise DataError(
            f"{folder / wanted.subfolder}: its files are not the official ones of {wanted.name}: the MD5 differs; get "
            "them again"
        ) from None
    is_last = loaded.data.shape[-1] == COLOUR_SHAPE.channels  # CIFAR's channels come last
    images = np.ascontiguousarray(loaded.data.transpose(0, 3, 1, 2) if is_last else loaded.data)
    labels = torch.as_tensor(loaded.targets if hasattr(loaded, "targets") else loaded.labels, dtype=torch.int64)
    source = f"dataset={wanted.name} ({folder})"
    return make_examples(torch.from_numpy(images), labels, class_names=wanted.class_names, source=source)


def _offline(wanted: ColourSet, data_dir: Path) -> str:
    files = wanted.archive or " and ".join(name for names in wanted.file_names.values() for name in names)
    return f"put {files} into {data_dir}, or point --data-dir or MNIST_RAY_DATA to the folder with it"


def _download(wanted: ColourSet, split: Split, data_dir: Path, archive: Path | None) -> None:
    with download_folder(wanted.name, data_dir, _offline(wanted, data_dir)) as temporary:
        if archive:
            # torchvision unpacks an archive with the official MD5 without downloading it.
            shutil.copy(archive, temporary)
        torchvision_set(wanted.torchvision_name, temporary, download=True, **wanted.options[split])
        target = data_dir / wanted.torchvision_name / wanted.subfolder
        move_files(temporary / wanted.subfolder, wanted.file_names[split], target)
