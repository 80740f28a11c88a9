"""The examples of a run: the validation split, and the pixels as a network sees them."""

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from mnist_ray.config import TrainConfig
from mnist_ray.data import Examples, load_examples
from mnist_ray.errors import DataError
from mnist_ray.polarity import bright_ground_share
from mnist_ray.random_streams import permutation, stream_key

_DATA_SETTINGS = ("dataset", "train_limit", "validation_fraction", "validation_seed")


@dataclass(frozen=True)
class TrainingData:
    """The examples of a run on its device; images uint8 [n, 1, 28, 28], labels int64 [n].

    Attributes:
      mean, std: of the training pixels as fractions of 255; what the network sees is (pixel / 255 - mean) / std.
      bright_ground_share: share of the training images that polarity.has_bright_ground calls bright.
      class_names: one a class.
      fingerprint: SHA-256 of the whole training split, in hexadecimal.
    """

    images: Tensor
    labels: Tensor
    validation_images: Tensor
    validation_labels: Tensor
    mean: float
    std: float
    bright_ground_share: float
    class_names: tuple[str, ...]
    fingerprint: str


def split_validation(labels: Tensor, *, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Splits off a validation set, class by class, by a seed of its own.

    Args:
      labels: int64 [n].
      fraction: share of each class that is held out, rounded, at least one example of a class of two.
      seed: seed of the split.

    Returns:
      Rows for training and rows for validation, each int64, ascending.
    """
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in sorted(set(labels.tolist())):
        rows = torch.nonzero(labels == label).flatten()
        count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        held_out[rows[permutation(stream_key(seed, "validation", label), len(rows))[:count]]] = True
    return torch.nonzero(~held_out).flatten(), torch.nonzero(held_out).flatten()


def prepare_data(config: TrainConfig, examples: Examples, *, device: torch.device) -> TrainingData:
    """Splits a training set into training and validation examples on a device.

    Raises:
      DataError: too few examples to split.
    """
    limit = config.train_limit or len(examples)
    images, labels = examples.images[:limit], examples.labels[:limit]
    train, validation = split_validation(labels, fraction=config.validation_fraction, seed=config.validation_seed)
    if not len(train) or not len(validation):
        raise DataError(
            f"dataset={config.dataset!r}: {len(labels)} examples give {len(train)} for training and "
            f"{len(validation)} for validation; each needs at least one"
        )
    # Sums of integers: the same on every machine.
    pixels = images[train].to(torch.int64)
    count = pixels.numel()
    mean = int(pixels.sum()) / count
    variance = max(int((pixels * pixels).sum()) / count - mean * mean, 1.0)
    return TrainingData(
        images=images[train].to(device),
        labels=labels[train].to(device),
        validation_images=images[validation].to(device),
        validation_labels=labels[validation].to(device),
        mean=mean / 255,
        std=math.sqrt(variance) / 255,
        bright_ground_share=bright_ground_share(images[train][:, 0].numpy()),
        class_names=examples.class_names,
        fingerprint=examples.fingerprint,
    )


def data_settings(config: TrainConfig) -> TrainConfig:
    """Returns a config with the settings that a run's examples depend on, and defaults for all others."""
    return TrainConfig(**{name: getattr(config, name) for name in _DATA_SETTINGS})


def load_data(config: TrainConfig, data_dir: Path, device: torch.device) -> TrainingData:
    """Returns a run's examples on a device; those of the run before, if they are the same, without loading them.

    Raises:
      DataError: the data is missing, damaged or too small.
      StorageError: the storage of the user's own data can't be read.
    """
    return _load(data_settings(config), data_dir, device)


# One set at a time: a worker goes through the stacks of one data set before the next.
@lru_cache(maxsize=1)
def _load(config: TrainConfig, data_dir: Path, device: torch.device) -> TrainingData:
    return prepare_data(config, load_examples(config.dataset, "train", data_dir=data_dir), device=device)


def normalize(images: Tensor, *, mean: float, std: float, dtype: torch.dtype) -> Tensor:
    """Returns (images / 255 - mean) / std for uint8 images of any shape."""
    return images.to(dtype).sub_(mean * 255).mul_(1 / (std * 255))
