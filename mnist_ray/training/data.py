"""The examples of a run: the validation split, and the pixels as a network sees them."""

import math
from collections import Counter
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path

import torch
from torch import Tensor

from mnist_ray.config.settings import DATA_SETTINGS, TrainConfig
from mnist_ray.data.datasets import DATASETS, load_examples
from mnist_ray.data.examples import Examples
from mnist_ray.data.polarity import bright_ground_share
from mnist_ray.data.training_data import PerChannel, TrainingData
from mnist_ray.errors import DataError
from mnist_ray.noise.random_streams import permutation, stream_key


def split_validation(labels: Tensor, *, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Splits off a validation set, class by class, with its own seed.

    Args:
      labels: int64 [n].
      fraction: share of each class to hold out, rounded; at least one example of a class of two.

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
    examples = limit_examples(config, examples)
    images, labels = examples.images, examples.labels
    if given := examples.num_validation:
        train, validation = torch.arange(len(labels)).split([len(labels) - given, given])
    else:
        train, validation = split_validation(labels, fraction=config.validation_fraction, seed=config.validation_seed)
    if not len(train) or not len(validation):
        raise DataError(
            f"dataset={config.dataset!r}: {len(labels)} examples give {len(train)} for training and "
            f"{len(validation)} for validation; each needs at least one"
        )
    mean, std = channel_statistics(images[train])
    return TrainingData(
        images=images[train].to(device),
        labels=labels[train].to(device),
        validation_images=images[validation].to(device),
        validation_labels=labels[validation].to(device),
        mean=mean,
        std=std,
        bright_ground_share=bright_ground_share(images[train][:, 0].numpy()) if images.shape[1] == 1 else None,
        class_names=examples.class_names,
        fingerprint=examples.fingerprint,
        conversion=examples.conversion,
        found=examples.found,
        is_validation_given=given > 0,
        wide_bits=examples.wide_bits,
    )


# Bounds the memory of a copy.
_IMAGES_COUNTED = 1000


def channel_statistics(images: Tensor) -> tuple[PerChannel, PerChannel]:
    """Returns mean and standard deviation of each channel's pixels, as fractions of 255.

    Args:
      images: uint8 [n, channels, height, width].
    """
    of_channels = []
    values = torch.arange(256)
    for channel in images.unbind(1):
        # Integer sums are the same on every machine.
        counts = sum(torch.bincount(some.flatten(), minlength=256) for some in channel.split(_IMAGES_COUNTED))
        assert isinstance(counts, Tensor)
        mean = int((counts * values).sum()) / channel.numel()
        variance = max(int((counts * values * values).sum()) / channel.numel() - mean * mean, 1.0)
        of_channels.append((mean / 255, math.sqrt(variance) / 255))
    if len(of_channels) == 1:
        return of_channels[0]
    means, stds = zip(*of_channels, strict=True)
    return means, stds


def limit_examples(config: TrainConfig, examples: Examples) -> Examples:
    """Reduces a training set to train_limit examples; a validation set that came with the data stays whole.

    Named sets are in random order, so the first N are kept. The user's own data may be sorted by class, so the first
    examples of each class are kept in proportion, with their own fingerprint: a run never resumes on other rows.

    Raises:
      DataError: fewer than one example per class.
    """
    num_training = len(examples) - examples.num_validation
    limit = config.train_limit
    if limit is None or limit >= num_training:
        return examples
    if config.dataset in DATASETS:
        return replace(examples, images=examples.images[:limit], labels=examples.labels[:limit])
    source = f"dataset={config.dataset!r}"
    rows = stratified_rows(examples.labels[:num_training], limit, source=source)
    rows = torch.cat([rows, torch.arange(num_training, len(examples))])
    limited = replace(examples, images=examples.images[rows], labels=examples.labels[rows])
    return replace(limited, fingerprint=limited.stream(source).scan()[0])


def stratified_rows(labels: Tensor, limit: int, *, source: str) -> Tensor:
    """Chooses examples in proportion to class sizes, by largest remainders, at least one per class.

    Args:
      labels: int64 [n].
      limit: number of examples, at most n.

    Returns:
      The first rows of each class, int64 [limit], ascending.

    Raises:
      DataError: there are more classes than the limit.
    """
    sizes = Counter(labels.tolist())
    if limit < len(sizes):
        raise DataError(f"{source}: train_limit={limit} is less than one example for each of the {len(sizes)} classes")
    counts = {label: max(limit * size // len(labels), 1) for label, size in sorted(sizes.items())}

    def lacking(label: int) -> int:
        return limit * sizes[label] - counts[label] * len(labels)

    for label in sorted(counts, key=lacking, reverse=True)[: max(limit - sum(counts.values()), 0)]:
        counts[label] += 1
    for _ in range(sum(counts.values()) - limit):
        counts[min((label for label in counts if counts[label] > 1), key=lacking)] -= 1
    rows = [torch.nonzero(labels == label).flatten()[:count] for label, count in counts.items()]
    return torch.cat(rows).sort().values


def data_settings(config: TrainConfig) -> TrainConfig:
    """Returns the config reduced to the settings that a run's examples depend on; all others are the defaults."""
    return TrainConfig(**{name: getattr(config, name) for name in DATA_SETTINGS})


def load_data(config: TrainConfig, data_dir: Path, device: torch.device) -> TrainingData:
    """Loads a run's examples to a device.

    Raises:
      DataError: the data is missing, damaged or too small.
      StorageError: the storage of the user's own data can't be read.
    """
    examples = load_examples(config.dataset, "train", data_dir=data_dir, options=config.image_options)
    return prepare_data(config, examples, device=device)


def cached_data(config: TrainConfig, data_dir: Path, device: torch.device) -> TrainingData:
    """Returns a run's examples as `load_data` does, without reading again what the last call read.

    For a process that goes from stack to stack within one command: it doesn't notice when files change.
    """
    return _cached(data_settings(config), data_dir, device)


_cached = lru_cache(maxsize=1)(load_data)


def normalize(images: Tensor, *, mean: PerChannel, std: PerChannel, dtype: torch.dtype) -> Tensor:
    """Returns (images / 255 - mean) / std for uint8 images [..., channels, height, width]."""
    if not isinstance(mean, tuple) and not isinstance(std, tuple):
        return images.to(dtype).sub_(mean * 255).mul_(1 / (std * 255))
    assert isinstance(mean, tuple)
    assert isinstance(std, tuple)
    offset, scale = _offset_and_scale(mean, std, dtype, images.device)
    return images.to(dtype).sub_(offset).mul_(scale)


@cache
def _offset_and_scale(
    mean: tuple[float, ...], std: tuple[float, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Returns each channel's offset and scale, [channels, 1, 1]."""
    # Kept, because a recorded step can't copy from the host.
    means, stds = (torch.tensor(values, dtype=torch.float64)[:, None, None] * 255 for values in (mean, std))
    return means.to(device, dtype), (1 / stds).to(device, dtype)
