"""The state of a run that a checkpoint stores."""

from dataclasses import dataclass

from torch import Tensor

from mnist_ray.results.history import EpochResult


@dataclass(frozen=True)
class TrainState:
    """Everything needed to continue after an epoch as if uninterrupted.

    Attributes:
      history: the epochs done.
      model: the plain network's state_dict.
      optimizer: the optimizer's tensors by name.
    """

    history: tuple[EpochResult, ...]
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
