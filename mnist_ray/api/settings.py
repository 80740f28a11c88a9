"""The settings of a run as keyword arguments, for editors and type checkers.

A copy of TrainConfig's fields, because a TypedDict has to be written out; a test compares them.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from mnist_ray.config.settings import Precision
from mnist_ray.data.image_shape import Color, Fit


class GridSettings(TypedDict, total=False):
    """Settings of every run of a grid; `mnist-ray tune --help` describes them."""

    variant: str
    dataset: str
    model: str
    hidden_sizes: Sequence[int]
    dropout: float
    dropout_layers: int
    batch_norm: bool
    model_settings: Mapping[str, Any]
    optimizer: str
    learning_rate: float
    momentum: float
    weight_decay: float
    schedule: str
    warmup_epochs: float
    step_epochs: int
    step_factor: float
    gradient_clip_norm: float | None
    epochs: int
    global_batch_size: int
    label_smoothing: float
    augmentation: str
    early_stopping_patience: int | None
    precision: Precision
    train_limit: int | None
    validation_fraction: float
    validation_seed: int
    image_size: str | int | None
    color: Color | None
    fit: Fit


class RunSettings(GridSettings, total=False):
    """Settings of one run; `mnist-ray train --help` describes them."""

    seed: int
