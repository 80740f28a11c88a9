"""The MNIST family, from existing IDX files or a download by torchvision, which is imported only then."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mnist_ray.data.digits import DIGIT_NAMES
from mnist_ray.data.downloads import download_folder, move_files, torchvision_set
from mnist_ray.data.examples import Examples, Split, make_examples
from mnist_ray.data.idx import USUAL_NAMES, find_idx, read_images, read_labels
from mnist_ray.data.image_shape import MNIST_SHAPE
from mnist_ray.errors import DataError


@dataclass(frozen=True)
class TorchvisionSet:
    """A data set that torchvision can download.

    Args:
      name: our name, and the folder in the data folder where users may put the files.
      torchvision_name: torchvision's class, and its folder.
      file_names: names of the images and of the labels of each split, without .gz.
      torchvision_split: torchvision's argument `split` (EMNIST).
      first_label: the label of the first class in the files.
      transposed: whether the files hold each image with rows and columns exchanged.
    """

    name: str
    torchvision_name: str
    class_names: tuple[str, ...]
    file_names: dict[Split, tuple[str, str]]
    torchvision_split: str | None = None
    first_label: int = 0
    transposed: bool = False

    def folders(self, data_dir: Path) -> list[Path]:
        """Returns the folders to search; only MNIST may be in data_dir itself, as its siblings share its file names."""
        own = [data_dir / self.name, data_dir / self.torchvision_name / "raw"]
        return [data_dir, *own] if self.name == "mnist" else own


def _emnist_names(split: str) -> dict[Split, tuple[str, str]]:
    return {
        "train": (f"emnist-{split}-train-images-idx3-ubyte", f"emnist-{split}-train-labels-idx1-ubyte"),
        "test": (f"emnist-{split}-test-images-idx3-ubyte", f"emnist-{split}-test-labels-idx1-ubyte"),
    }


_QMNIST_NAMES: dict[Split, tuple[str, str]] = {
    "train": ("qmnist-train-images-idx3-ubyte", "qmnist-train-labels-idx2-int"),
    "test": ("qmnist-test-images-idx3-ubyte", "qmnist-test-labels-idx2-int"),
}
_FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_KMNIST_CLASSES = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
# Small letters that look like their capitals share a class with them.
_BALANCED_CLASSES = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt")
_LETTERS_CLASSES = tuple("abcdefghijklmnopqrstuvwxyz")

_SETS = (
    TorchvisionSet("mnist", "MNIST", DIGIT_NAMES, USUAL_NAMES),
    TorchvisionSet("fashion_mnist", "FashionMNIST", _FASHION_CLASSES, USUAL_NAMES),
    TorchvisionSet("kmnist", "KMNIST", _KMNIST_CLASSES, USUAL_NAMES),
    TorchvisionSet("qmnist", "QMNIST", DIGIT_NAMES, _QMNIST_NAMES),
    TorchvisionSet(
        "emnist_balanced", "EMNIST", _BALANCED_CLASSES, _emnist_names("balanced"), "balanced", transposed=True
    ),
    TorchvisionSet(
        "emnist_letters", "EMNIST", _LETTERS_CLASSES, _emnist_names("letters"), "letters", 1, transposed=True
    ),
)
TORCHVISION_SETS = {entry.name: entry for entry in _SETS}


def load_torchvision_set(wanted: TorchvisionSet, split: Split, *, data_dir: Path, download: bool) -> Examples:
    """Loads a split from IDX files in the data folder, downloading them if they are missing.

    Args:
      data_dir: folder to search; only a download writes to it, as <data_dir>/<Name>/raw.

    Raises:
      DataError: damaged files, images that aren't 28x28, or missing files that can't be downloaded.
    """
    files = _find_files(wanted, split, data_dir)
    if files is None:
        if not download:
            raise DataError(
                f"dataset={wanted.name}: not in {data_dir} and downloading is off; {_offline(wanted, data_dir)}"
            )
        _download(wanted, split, data_dir)
        files = _find_files(wanted, split, data_dir)
        assert files is not None
    return _read(wanted, *files)


def _find_files(wanted: TorchvisionSet, split: Split, data_dir: Path) -> tuple[Path, Path] | None:
    images_name, labels_name = wanted.file_names[split]
    for folder in wanted.folders(data_dir):
        images, labels = find_idx(folder, images_name), find_idx(folder, labels_name)
        if images and labels:
            return images, labels
    return None


def _read(wanted: TorchvisionSet, images_path: Path, labels_path: Path) -> Examples:
    import torch

    images = torch.from_numpy(read_images(images_path))
    count, rows, columns = images.shape
    if (rows, columns) != MNIST_SHAPE[1:]:
        raise DataError(
            f"{images_path}: has images of {columns}x{rows}, those of {wanted.name} are 28x28;"
            f" for images of your own use dataset=idx:{images_path.parent}"
        )
    if wanted.transposed:
        images = images.transpose(1, 2).contiguous()
    return make_examples(
        images.reshape(count, 1, rows, columns),
        read_labels(labels_path) - wanted.first_label,
        class_names=wanted.class_names,
        source=f"dataset={wanted.name} ({labels_path})",
    )


def _offline(wanted: TorchvisionSet, data_dir: Path) -> str:
    names = ", ".join(f"{name}.gz" for pair in wanted.file_names.values() for name in pair)
    place = "" if wanted.name == "mnist" else f" in {wanted.name}/"
    return (
        f"put the four files {names} into {wanted.folders(data_dir)[0]},"
        f" or point --data-dir or MNIST_RAY_DATA to the folder that has them{place}"
    )


def _download(wanted: TorchvisionSet, split: Split, data_dir: Path) -> None:
    """Downloads the files; keeps only the sets of EMNIST's archive that we offer."""
    options: dict[str, Any] = {"split": wanted.torchvision_split} if wanted.torchvision_split else {}
    with download_folder(wanted.name, data_dir, _offline(wanted, data_dir)) as temporary:
        torchvision_set(wanted.torchvision_name, temporary, train=split == "train", download=True, **options)
        keep = {name for entry in _SETS for pair in entry.file_names.values() for name in pair}
        move_files(temporary, keep, data_dir / wanted.torchvision_name / "raw")
