"""Which validation examples a checkpoint's network predicts correctly, as checkpoint.json keeps it."""

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.config.settings import DATA_SETTINGS, TrainConfig


@dataclass(frozen=True, eq=False)
class Validation:
    """The predictions of one checkpoint on its validation examples.

    Attributes:
      correct: bool [validation examples], in the order of TrainingData.validation_labels.
      examples: equal for two runs only if they have the same validation examples, in the same order.
    """

    correct: NDArray[np.bool_]
    examples: tuple[object, ...]


def packed(correct: NDArray[np.bool_] | None) -> dict[str, Any] | None:
    """Returns the field `validation` of checkpoint.json: a bit for each example, from the highest of a byte, in base64.

    Args:
      correct: see TrainState.
    """
    if correct is None:
        return None
    return {"num_examples": len(correct), "correct": b64encode(np.packbits(correct).tobytes()).decode()}


def unpacked(document: Mapping[str, Any]) -> NDArray[np.bool_] | None:
    """Returns what was packed into a checkpoint.json; None if it has no such field."""
    field = document.get("validation")
    if field is None:
        return None
    content = np.frombuffer(b64decode(field["correct"]), np.uint8)
    return np.unpackbits(content, count=field["num_examples"]).astype(bool)


def validation_in(document: Mapping[str, Any], config: TrainConfig) -> Validation | None:
    """Returns the validation in a checkpoint.json with this config; None if it has none."""
    correct = unpacked(document)
    if correct is None:
        return None
    settings = (getattr(config, name) for name in DATA_SETTINGS)
    return Validation(correct, (document["data_sha256"], len(correct), *settings))
