"""What a checkpoint keeps of a run."""

from dataclasses import dataclass

from torch import Tensor

from mnist_ray.results.history import EpochResult


@dataclass(frozen=True)
class TrainState:
    """All that is needed to go on after an epoch as if nothing had happened.

    Attributes:
      history: the epochs done.
      model: the plain network's state_dict.
      optimizer: the optimizer's tensors by name.
    """

    history: tuple[EpochResult, ...]
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
