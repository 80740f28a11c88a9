"""Loads MNIST for the benchmarks: through torchvision, like the tutorial, and through mnist-ray."""

import argparse
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_ray.data.datasets import default_data_dir, load_examples
from mnist_ray.data.examples import Examples
from mnist_ray.data.idx import IMAGES_MAGIC, LABELS_MAGIC, USUAL_NAMES

if TYPE_CHECKING:
    from torchvision import datasets

# Statistics of the 60,000 training images, as in the tutorial.
MEAN, STD = 0.1307, 0.3081
_SHARED_DATA_DIR = Path(__file__).resolve().parents[2] / "shared" / "mnist"


def add_data_option(parser: argparse.ArgumentParser) -> None:
    """Adds --data-dir; default: MNIST_RAY_DATA, files next to the checkout, or mnist-ray's cache folder."""
    default = default_data_dir()
    if _SHARED_DATA_DIR.is_dir() and not default.is_dir():
        default = _SHARED_DATA_DIR
    parser.add_argument("--data-dir", type=Path, default=default, help="folder of the MNIST files (%(default)s)")


def load_mnist(data_dir: Path) -> tuple[Examples, Examples]:
    """Returns MNIST's training and test split."""
    return load_examples("mnist", "train", data_dir=data_dir), load_examples("mnist", "test", data_dir=data_dir)


@contextmanager
def torchvision_mnist(train: Examples, test: Examples) -> Iterator[tuple["datasets.MNIST", "datasets.MNIST"]]:
    """Yields the splits as torchvision's data sets with the tutorial's transform, from a temporary folder."""
    # torchvision takes a second to import, and not all benchmarks need it.
    from torchvision import datasets, transforms

    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))])
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, "MNIST", "raw")
        raw.mkdir(parents=True)
        for names, examples in ((USUAL_NAMES["train"], train), (USUAL_NAMES["test"], test)):
            write_idx(raw, names, examples)
        yield tuple(datasets.MNIST(folder, train=is_train, transform=transform) for is_train in (True, False))


def write_idx(folder: Path, names: tuple[str, str], examples: Examples) -> None:
    """Writes a split as a pair of IDX files."""
    count = len(examples)
    images, labels = examples.images.numpy().tobytes(), examples.labels.byte().numpy().tobytes()
    (folder / names[0]).write_bytes(struct.pack(">IIII", IMAGES_MAGIC, count, 28, 28) + images)
    (folder / names[1]).write_bytes(struct.pack(">II", LABELS_MAGIC, count) + labels)
