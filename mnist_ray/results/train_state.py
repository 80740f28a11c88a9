"""The state of a run that a checkpoint stores."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mnist_ray.results.history import EpochResult


@dataclass(frozen=True)
class TrainState:
    """Everything needed to continue after an epoch as if uninterrupted.

    Attributes:
      history: the epochs done.
      model: the plain network's state_dict.
      optimizer: the optimizer's tensors by name.
      correct: which validation examples the model predicts correctly, bool [validation examples]; None in a checkpoint
        of an older version.
    """

    history: tuple[EpochResult, ...]
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    correct: NDArray[np.bool_] | None = None
