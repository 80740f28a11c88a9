"""A summary of a data set in a line or two, shown before training or evaluation."""

from collections.abc import Iterable, Sequence

from mnist_ray.config.batches import batch_sizes
from mnist_ray.config.settings import EvaluationConfig, TrainConfig
from mnist_ray.data.datasets import DATASETS
from mnist_ray.data.examples import ExampleStream, Found
from mnist_ray.data.sources import list_words
from mnist_ray.data.training_data import TrainingData

_CLASSES_SHOWN = 5


def training_lines(config: TrainConfig, data: TrainingData, global_batch_sizes: Iterable[int]) -> list[str]:
    """Summarizes the data that some runs share, for the config of one of them."""
    counts = [
        f"{len(data.labels)} training",
        f"{len(data.validation_labels)} validation ({_validation(config, data)})",
        *([] if data.found.num_test is None else [f"{data.found.num_test} test"]),
    ]
    ends = [
        f"{batch_sizes(len(data.labels), size)[-1]} images (global batch {size})"
        for size in sorted(set(global_batch_sizes))
    ]
    is_own = config.dataset not in DATASETS
    images = data.conversion or (f"images of {data.image_shape.words}" if is_own else None)
    details = [*notes(data.found, images), f"the last batch of an epoch has {list_words(ends)}"]
    name = f"dataset {config.dataset}"
    return [f"{name}: {classes(data.class_names)}; {', '.join(counts)} images", f"{name}: {'; '.join(details)}"]


def evaluation_line(config: EvaluationConfig, examples: ExampleStream, trained_on: str | None) -> str:
    """Summarizes the split to evaluate, without conversions, which are known only after reading it.

    Args:
      config: the evaluation's config, with a data set.
      trained_on: see `trained_elsewhere`.
    """
    counts = f"{len(examples)} {config.split} images"
    details = [classes(examples.class_names), counts, *notes(examples.found, None)]
    return f"dataset {config.dataset}: {'; '.join([*details, *([trained_on] if trained_on else [])])}"


def classes(names: Sequence[str]) -> str:
    """Returns the number of classes and the first names."""
    return f"{len(names)} classes ({list_words(names, _CLASSES_SHOWN)})"


def notes(found: Found, images: str | None) -> list[str]:
    """Returns where the splits come from, what was left out and what the images are or were converted to."""
    how = [found.splits] if found.splits else []
    return [*how, *(f"left out: {clause}" for clause in found.left_out), *([images] if images else [])]


def _validation(config: TrainConfig, data: TrainingData) -> str:
    if data.is_validation_given:
        return "as given, so validation_fraction does not apply"
    return f"validation_fraction {config.validation_fraction:g}, per class"
