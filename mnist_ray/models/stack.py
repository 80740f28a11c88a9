"""Converts plain networks with the same shapes into one batched program, and back.

A stack of K runs holds every parameter as [K, ...] and computes the K networks side by side; a single run is a
stack of one. The plain modules stay the only definition of a network: a stack is built from them, layer by layer,
and returns plain state_dicts.
"""

from collections.abc import Sequence
from copy import copy, deepcopy
from math import prod

import torch
from torch import Tensor, nn

from mnist_ray.models import stack_layers
from mnist_ray.models.networks import BATCH_NORMS
from mnist_ray.models.stack_layers import Layer, Parameter, TrainingPass

# 16 float32 are 64 bytes: data on a 64-byte boundary takes the same vector code in stacks of any size.
_ALIGNMENT = 16


class Stack:
    """K networks with the same shapes, trained as one.

    Attributes:
      parameters: K flat tensors, one per run, with `.grad` set, for the optimizer to update.
      gradients: [K, padded], the memory behind every `.grad`.
    """

    def __init__(self, networks: Sequence[nn.Module], *, device: torch.device, bf16: bool = False) -> None:
        """Copies the networks' weights into a stack.

        Args:
          networks: made by make_network, differing only in weights and dropout rates.
          bf16: whether matrix products and convolutions round their inputs to bfloat16.
        """
        template = networks[0]
        self._shapes = {name: parameter.shape for name, parameter in template.named_parameters()}
        length = sum(_padded(shape) for shape in self._shapes.values())
        dtype = next(template.parameters()).dtype
        values = torch.zeros(len(networks), length, dtype=dtype, device=device)
        buffers = {
            name: buffer.expand(len(networks), *buffer.shape).to(device, copy=True)
            for name, buffer in template.named_buffers()
        }
        self._compute_dtype = torch.bfloat16 if bf16 else dtype
        # The modules without weights tell how to build the layers.
        self._networks = [deepcopy(network).to("meta") for network in networks]
        # MKL multiplies by a single column differently for a stack than for a run.
        self._has_single_units = any(
            isinstance(child, nn.Linear) and child.out_features == 1 for child in template.children()
        )
        self._place(values, torch.zeros_like(values), buffers)
        self._singles = self._make_singles()
        self.load_state_dicts([network.state_dict() for network in networks])

    def take(self, runs: Sequence[int]) -> "Stack":
        """Copies some of the runs into a new stack."""
        taken = copy(self)
        index = torch.tensor(runs, device=self.gradients.device)
        values = self._memory.index_select(0, index)
        buffers = {name: buffer.index_select(0, index) for name, buffer in self._buffers.items()}
        taken._networks = [self._networks[run] for run in runs]
        taken._place(values, torch.zeros_like(values), buffers)
        taken._singles = taken._make_singles()
        return taken

    def _place(self, values: Tensor, gradients: Tensor, buffers: dict[str, Tensor]) -> None:
        """Builds the layers over the memory of parameters and gradients, both [runs, padded], and buffers."""
        self._memory = values
        self.gradients = gradients
        self.parameters = list(values.unbind())
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        lengths = [_padded(shape) for shape in self._shapes.values()]
        self._parameters = {
            name: Parameter(_unpadded(value, shape), _unpadded(gradient, shape))
            for (name, shape), value, gradient in zip(
                self._shapes.items(), torch.split(values, lengths, 1), torch.split(gradients, lengths, 1), strict=True
            )
        }
        self._buffers = buffers
        self._layers = self._make_layers(self._networks)

    def _make_singles(self) -> list["Stack"]:
        """Returns a stack for each single run, sharing this stack's memory; an empty list where they are never used."""
        is_used = self.gradients.device.type == "cpu" and len(self) > 1
        return [self._single(run) for run in range(len(self))] if is_used else []

    def _single(self, run: int) -> "Stack":
        part = slice(run, run + 1)
        single = copy(self)
        single._singles = []
        single._networks = self._networks[part]
        buffers = {name: buffer[part] for name, buffer in self._buffers.items()}
        single._place(self._memory[part], self.gradients[part], buffers)
        return single

    def __len__(self) -> int:
        return len(self.parameters)

    def parts(self, num_rows: int) -> list[tuple[slice, "Stack"]]:
        """Returns the groups of runs that compute a batch as one program, and a stack of each group.

        On a CPU a run gets the same bits as alone if each run's share of every tensor starts on a 64-byte boundary,
        as with batches of a multiple of 16 rows. With other batches, often an epoch's last, and with a single-unit
        layer, the runs compute one after the other.
        """
        if not self._singles or (num_rows % _ALIGNMENT == 0 and not self._has_single_units):
            return [(slice(0, len(self)), self)]
        return [(slice(run, run + 1), single) for run, single in enumerate(self._singles)]

    def forward(self, images: Tensor, training: TrainingPass | None = None) -> Tensor:
        """Computes the logits of each network.

        Args:
          images: [runs, local_batch, 1, 28, 28], normalized.
          training: None for evaluation: no dropout, running batch-norm statistics.

        Returns:
          [runs, local_batch, classes].
        """
        values = images
        for layer in self._layers:
            values = layer.forward(values, training)
        return values

    def backward(self, gradient: Tensor) -> None:
        """Fills `gradients` with this rank's share of the gradient of the global batch.

        Args:
          gradient: of the loss w.r.t. the logits of the last training pass, [runs, local_batch, classes].
        """
        for layer in reversed(self._layers):
            if layer is self._first:
                self._first.backward_parameters(gradient)
                return
            gradient = layer.backward(gradient)

    def state_dict(self, run: int) -> dict[str, Tensor]:
        """Returns a copy of one network's state, with the plain module's keys, on the CPU."""
        return {name: value[run].to("cpu", copy=True) for name, value in self._values().items()}

    def load_state_dicts(self, states: Sequence[dict[str, Tensor]]) -> None:
        """Sets weights and batch-norm statistics from the plain modules' state_dicts, one per run."""
        for name, value in self._values().items():
            for run, state in enumerate(states):
                value[run].copy_(state[name])

    def _values(self) -> dict[str, Tensor]:
        return {name: parameter.value for name, parameter in self._parameters.items()} | self._buffers

    def _make_layers(self, networks: Sequence[nn.Module]) -> list[Layer]:
        children = list(networks[0].named_children())
        followers = [child for _, child in children[1:]] + [None]
        made = []
        for (name, child), follower in zip(children, followers, strict=True):
            layer = self._make_layer(name, child, networks, has_bias=not isinstance(follower, BATCH_NORMS))
            made.append(layer)
        self._first = next(layer for layer in made if isinstance(layer, stack_layers.Linear | stack_layers.Conv2d))
        return made

    def _make_layer(self, name: str, child: nn.Module, networks: Sequence[nn.Module], *, has_bias: bool) -> Layer:
        dtype = self._compute_dtype
        weight, bias = (self._parameters.get(f"{name}.{kind}") for kind in ("weight", "bias"))
        match child:
            case nn.Linear():
                assert weight is not None
                return stack_layers.Linear(weight, bias if has_bias else None, dtype)
            case nn.Conv2d(padding=(int(padding), _)):
                assert weight is not None
                return stack_layers.Conv2d(weight, bias if has_bias else None, padding=padding, dtype=dtype)
            case nn.BatchNorm1d() | nn.BatchNorm2d():
                assert weight is not None
                assert bias is not None
                assert child.momentum is not None
                running = {key: self._buffers[f"{name}.{key}"] for key, _ in child.named_buffers()}
                return stack_layers.BatchNorm(weight, bias, running, epsilon=child.eps, momentum=child.momentum)
            case nn.Dropout():
                rates = [float(network.get_submodule(name).p) for network in networks]  # type: ignore[arg-type]
                return stack_layers.Dropout(name, rates, dtype=self.gradients.dtype, device=self.gradients.device)
            case nn.ReLU():
                return stack_layers.ReLU()
            case nn.MaxPool2d():
                return stack_layers.MaxPool2d()
            case nn.Flatten():
                return stack_layers.Flatten()
        raise TypeError(f"no stacked form of {type(child).__name__}")


def _padded(shape: torch.Size) -> int:
    """Returns a parameter's length in elements, padded so that the next one starts on a 64-byte boundary."""
    return -(-prod(shape) // _ALIGNMENT) * _ALIGNMENT


def _unpadded(flat: Tensor, shape: torch.Size) -> Tensor:
    """[runs, padded] -> [runs, *shape], the same memory."""
    return torch.unflatten(flat[:, : prod(shape)], 1, shape)
