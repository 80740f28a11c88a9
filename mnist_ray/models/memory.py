"""The memory that a run needs in training."""

from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from mnist_ray.config.batches import largest_batch
from mnist_ray.config.settings import TrainConfig
from mnist_ray.data.image_shape import ImageShape
from mnist_ray.errors import ConfigError
from mnist_ray.models.networks import make_network
from mnist_ray.models.own_network import errors_of_code

# Weights, their gradients, and up to two moments of the optimizer.
_COPIES_OF_WEIGHTS = 4
# For each layer: its output, the tensors kept for the backward pass, the gradient and temporaries.
_COPIES_IN_TRAINING = 4
# For the largest layer, whose input and output are alive at once.
_COPIES_IN_VALIDATION = 3


def bytes_of_run(config: TrainConfig, image_shape: ImageShape, *, num_classes: int, validation_batch: int) -> int:
    """Conservatively estimates the device memory of one run of a stack, without the data."""
    network = make_network(config, image_shape, num_classes)
    size = next(network.parameters()).element_size()
    num_weights = sum(parameter.numel() for parameter in network.parameters())
    outputs: list[int] = [prod(image_shape)]

    def note(_: nn.Module, __: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            outputs.append(output.numel())

    _, *layers = network.modules()
    for layer in layers:
        layer.register_forward_hook(note)
    # The meta device propagates only shapes, without memory or arithmetic; the user's code may not know it.
    device = "cpu" if config.is_own_network else "meta"
    images = torch.zeros(1, *image_shape, dtype=next(network.parameters()).dtype, device=device)
    with torch.no_grad(), errors_of_code(config, ConfigError):
        network.to(device).eval()(images)
    # The sum of both: a recorded step keeps its memory during validation.
    in_training = _COPIES_IN_TRAINING * largest_batch(config.global_batch_size) * sum(outputs)
    in_validation = _COPIES_IN_VALIDATION * validation_batch * max(outputs)
    return size * (_COPIES_OF_WEIGHTS * num_weights + in_training + in_validation)
