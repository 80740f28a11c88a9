"""What computes the steps of runs: stacks of known layers, or any modules."""

from collections.abc import Sequence
from typing import Protocol, Self

import torch
from torch import Tensor, nn

from mnist_ray.models.modules import Modules
from mnist_ray.models.ranks import Ranks
from mnist_ray.models.stack import Stack, why_not_stacked
from mnist_ray.models.training_pass import TrainingPass


class Engine(Protocol):
    """K runs with the same shapes that train together."""

    @property
    def parameters(self) -> list[Tensor]:
        """K flat tensors, one per run, with `.grad` set, for the optimizer to update."""

    @property
    def gradients(self) -> Tensor | Sequence[Tensor]:
        """The gradient of each run's parameters, flat; after a step, of the global batch."""

    def __len__(self) -> int:
        """K."""

    def forward_backward(self, images: Tensor, labels: Tensor, training: TrainingPass) -> tuple[Tensor, Tensor]:
        """Fills the gradients for one global batch, of which this rank has some rows.

        Args:
          images: [runs, local_batch, *image_shape], normalized.
          labels: int64 [runs, local_batch], class indices.
          training: the step's streams, rows and label smoothing.

        Returns:
          This rank's share of each run's mean loss over the global batch (nats), [runs], and its number of correct
          predictions, int64 [runs]; both on the device, since copying them waits for the GPU.
        """

    def evaluate(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Computes the loss without dropout and with running batch-norm statistics.

        Args:
          images: [local_batch, *image_shape], normalized, the same for all runs.
          labels: int64 [local_batch].

        Returns:
          The sum of losses over this rank's rows (nats), float64 [runs], and which predictions are correct, bool
          [runs, local_batch].
        """

    def take(self, runs: Sequence[int]) -> Self:
        """Returns an engine of some of the runs; this one must not train afterwards."""

    def state_dict(self, run: int) -> dict[str, Tensor]:
        """Returns a copy of one network's state, with the plain module's keys, on the CPU."""


def make_engine(
    networks: Sequence[nn.Module],
    *,
    device: torch.device,
    bf16: bool = False,
    ranks: Ranks = Ranks(),  # noqa: B008
) -> Engine:
    """Makes the engine for runs with the same config up to settings that a stack lets differ.

    A run has a stack's engine if its network is made of layers that stack_layers.STACKED holds, on any device and in
    stacks of any size; several ranks share a run as torch modules.

    Args:
      networks: untrained or restored, one per run; the engine may change them.
      bf16: whether matrix products and convolutions round their inputs to bfloat16.
      ranks: the processes that share every batch; more than one only for a single run.
    """
    if engine_of(networks[0], ranks) is Modules:
        return Modules(networks, device=device, bf16=bf16, ranks=ranks)
    return Stack(networks, device=device, bf16=bf16)


def engine_of(network: nn.Module, ranks: Ranks) -> type[Modules] | type[Stack]:
    """Returns the engine for runs with a network: it depends on neither the device nor the number of runs."""
    return Modules if ranks.world_size > 1 or why_not_stacked(network) else Stack
