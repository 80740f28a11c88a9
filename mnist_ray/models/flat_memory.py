"""The layout of a run's parameters in one flat tensor, the same in both engines and in checkpoints."""

from collections.abc import Iterable
from math import prod

import torch
from torch import Tensor, nn

# 16 float32 are 64 bytes: data on a 64-byte boundary takes the same vector code in stacks of any size.
ALIGNMENT = 16


def padded(shape: Iterable[int]) -> int:
    """Returns a parameter's length in elements, padded so that the next one starts on a 64-byte boundary."""
    return -(-prod(shape) // ALIGNMENT) * ALIGNMENT


def flatten(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Moves parameters and their gradients into two flat tensors; returns the first, with the second as its `.grad`.

    An optimizer then updates a network by one call. A network still finds its parameters where they were: the
    parameters become views.
    """
    parameters = list(parameters)
    flat = torch.zeros(
        sum(padded(parameter.shape) for parameter in parameters), dtype=parameters[0].dtype, device=parameters[0].device
    )
    flat.grad = torch.zeros_like(flat)
    start = 0
    for parameter in parameters:
        part = slice(start, start + parameter.numel())
        flat[part] = parameter.detach().flatten()
        parameter.data = flat[part].view(parameter.shape)
        parameter.grad = flat.grad[part].view(parameter.shape)
        start += padded(parameter.shape)
    return flat
