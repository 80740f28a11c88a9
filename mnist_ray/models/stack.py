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

from mnist_ray.models.flat_memory import ALIGNMENT, padded
from mnist_ray.models.loss import cross_entropy, hits, loss_and_hits
from mnist_ray.models.networks import cancelled_biases
from mnist_ray.models.stack_layers import STACKED, Conv2d, Layer, LayerOfRuns, Linear, Parameter
from mnist_ray.models.training_pass import TrainingPass
from mnist_ray.torch_private import has_hooks


class Stack:
    """K networks with the same shapes, trained as one; see engine.Engine.

    Attributes:
      parameters: see Engine.
      gradients: [K, padded], the memory behind every `.grad`.
    """

    def __init__(self, networks: Sequence[nn.Module], *, device: torch.device, bf16: bool = False) -> None:
        """Copies the networks' weights into a stack.

        Args:
          networks: of layers that STACKED holds, differing only in weights and dropout rates.
          bf16: whether matrix products and convolutions round their inputs to bfloat16.
        """
        template = networks[0]
        self._shapes = {name: parameter.shape for name, parameter in template.named_parameters()}
        length = sum(padded(shape) for shape in self._shapes.values())
        dtype = next(template.parameters()).dtype
        values = torch.zeros(len(networks), length, dtype=dtype, device=device)
        buffers = {
            name: buffer.expand(len(networks), *buffer.shape).to(device, copy=True)
            for name, buffer in template.named_buffers()
        }
        self._cancelled = set.intersection(*(set(cancelled_biases(network)) for network in networks))
        self._product_dtype = torch.bfloat16 if bf16 else dtype
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
        """See Engine; the new stack holds copies."""
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
        lengths = [padded(shape) for shape in self._shapes.values()]
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

    def forward_backward(self, images: Tensor, labels: Tensor, training: TrainingPass) -> tuple[Tensor, Tensor]:
        """See Engine."""
        computed = [
            part._forward_backward(images[runs], labels[runs], training.of(runs))
            for runs, part in self._parts(images.shape[1])
        ]
        losses, correct = zip(*computed, strict=True)
        return torch.cat(losses), torch.cat(correct)

    def _forward_backward(self, images: Tensor, labels: Tensor, training: TrainingPass) -> tuple[Tensor, Tensor]:
        logits = self.forward(images, training)
        losses, gradient = cross_entropy(logits, labels, smoothing=training.smoothing)
        self.backward(gradient.div_(training.global_batch_size))
        return losses.sum(1) / training.global_batch_size, hits(logits, labels).sum(1)

    def evaluate(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """See Engine."""
        computed = [
            loss_and_hits(part.forward(images.expand(len(part), *images.shape)), labels.expand(len(part), -1))
            for _, part in self._parts(len(images))
        ]
        losses, correct = zip(*computed, strict=True)
        return torch.cat(losses), torch.cat(correct)

    def _parts(self, num_rows: int) -> list[tuple[slice, "Stack"]]:
        """Returns the groups of runs that compute a batch as one program, and a stack of each group.

        On a CPU a run gets the same bits as alone if each run's share of every tensor starts on a 64-byte boundary,
        as with batches of a multiple of 16 rows. With other batches, often an epoch's last, and with a single-unit
        layer, the runs compute one after the other.
        """
        if not self._singles or (num_rows % ALIGNMENT == 0 and not self._has_single_units):
            return [(slice(0, len(self)), self)]
        return [(slice(run, run + 1), single) for run, single in enumerate(self._singles)]

    def forward(self, images: Tensor, training: TrainingPass | None = None) -> Tensor:
        """Computes the logits of each network.

        Args:
          images: [runs, batch, *image_shape], normalized.
          training: None for evaluation: no dropout, running batch-norm statistics.

        Returns:
          [runs, batch, classes].
        """
        values = images
        for layer in self._layers:
            values = layer.forward(values, training)
        return values

    def backward(self, gradient: Tensor) -> None:
        """Fills `gradients`.

        Args:
          gradient: of the loss w.r.t. the logits of the last training pass, [runs, batch, classes].
        """
        for layer in reversed(self._layers):
            if layer is self._first:
                self._first.backward_parameters(gradient)
                return
            gradient = layer.backward(gradient)

    def state_dict(self, run: int) -> dict[str, Tensor]:
        """See Engine."""
        return {name: value[run].to("cpu", copy=True) for name, value in self._values().items()}

    def load_state_dicts(self, states: Sequence[dict[str, Tensor]]) -> None:
        """Sets weights and batch-norm statistics from the plain modules' state_dicts, one per run."""
        for name, value in self._values().items():
            for run, state in enumerate(states):
                value[run].copy_(state[name])

    def _values(self) -> dict[str, Tensor]:
        return {name: parameter.value for name, parameter in self._parameters.items()} | self._buffers

    def _make_layers(self, networks: Sequence[nn.Module]) -> list[Layer]:
        made = []
        for name, child in networks[0].named_children():
            of_layer = {key: value for key, value in self._parameters.items() if key.rpartition(".")[0] == name}
            layer = LayerOfRuns(
                name,
                [network.get_submodule(name) for network in networks],
                {key.rpartition(".")[2]: value for key, value in of_layer.items() if key not in self._cancelled},
                {key: self._buffers[f"{name}.{key}"] for key, _ in child.named_buffers()},
                self.gradients.dtype,
                self._product_dtype,
                self.gradients.device,
            )
            made.append(STACKED[type(child)].make(layer))
        self._first = next(layer for layer in made if isinstance(layer, Linear | Conv2d))
        return made


def why_not_stacked(network: nn.Module) -> str | None:
    """Returns why a network can't be part of a stack, as a clause; None if it can."""
    if type(network) is not nn.Sequential:
        return f"{type(network).__name__} is not a plain nn.Sequential"
    children = list(network.named_children())
    if len(children) < len(network):
        return "one of its layers is used twice"
    for name, child in children:
        kind = type(child).__name__
        if type(child) not in STACKED:
            return f"layer {name} ({kind}) has no stacked form"
        if not STACKED[type(child)].fits(child) or has_hooks(child):
            return f"layer {name} ({kind}) has no stacked form with these arguments"
    if len(list(network.parameters())) < sum(len(list(child.parameters())) for _, child in children):
        return "some of its layers share weights"
    if not all(parameter.requires_grad for parameter in network.parameters()):
        return "some of its weights are frozen"
    first = next((child for _, child in children if not isinstance(child, nn.Flatten)), None)
    if not isinstance(first, nn.Linear | nn.Conv2d):
        return "its first layer has no weights"
    return None


def _unpadded(flat: Tensor, shape: torch.Size) -> Tensor:
    """[runs, padded] -> [runs, *shape], the same memory."""
    return torch.unflatten(flat[:, : prod(shape)], 1, shape)
