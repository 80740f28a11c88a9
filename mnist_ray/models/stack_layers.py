"""Layers over a stack of runs, with explicit forward and backward passes.

Values are [runs, local_batch, features] or [runs, local_batch, channels, height, width]; every layer treats
the runs as K separate networks. `forward` keeps what `backward` needs; `backward` takes the gradient w.r.t. the
output, stores the parameters' gradients and returns the gradient w.r.t. the input.
The tests compare each layer with autograd over the plain torch.nn layer.
"""

# The layers' methods are documented once, in Layer; not every layer needs the pass.
# ruff: noqa: ARG002, D102

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from mnist_ray.models.dropout import DRAW_RANGE, dropped_draws
from mnist_ray.models.matmul import bmm, bmm_into
from mnist_ray.models.training_pass import TrainingPass

_THRESHOLD_BACKWARD = torch.ops.aten.threshold_backward.grad_input


class Parameter(NamedTuple):
    """One parameter of every run in the stack, and its gradient; both [runs, *shape]."""

    value: Tensor
    gradient: Tensor


class Layer(Protocol):
    """One layer of every network in the stack."""

    def forward(self, inputs: Tensor, training: TrainingPass | None) -> Tensor:
        """Returns the output; `training` is None in evaluation."""

    def backward(self, gradient: Tensor) -> Tensor:
        """Stores the parameters' gradients and returns the gradient w.r.t. the input of the last forward pass."""


class LayerOfRuns(NamedTuple):
    """One layer of the plain networks of a stack.

    Attributes:
      name: its name in the networks.
      modules: the layer of each run, without weights.
      parameters: by name; without a bias that the next layer cancels.
      buffers: by name, [runs, ...].
      dtype: type of the values between layers.
      product_dtype: type that matrix products and convolutions round their inputs to.
    """

    name: str
    modules: Sequence[Any]
    parameters: Mapping[str, Parameter]
    buffers: dict[str, Tensor]
    dtype: torch.dtype
    product_dtype: torch.dtype
    device: torch.device


class Flatten:
    """[runs, batch, ...] -> [runs, batch, features]."""

    def forward(self, inputs: Tensor, training: TrainingPass | None) -> Tensor:
        self._shape = inputs.shape
        return inputs.flatten(2)

    def backward(self, gradient: Tensor) -> Tensor:
        return gradient.view(self._shape)


class Linear:
    """y = x W^T + b, weight [runs, outputs, inputs]; no bias where batch norm would cancel it."""

    def __init__(self, weight: Parameter, bias: Parameter | None, dtype: torch.dtype) -> None:
        self._weight, self._bias, self._dtype = weight, bias, dtype

    def forward(self, inputs: Tensor, training: TrainingPass | None) -> Tensor:
        self._inputs = _cast(inputs, self._dtype)
        weight = _cast(self._weight.value, self._dtype).transpose(1, 2)
        bias = None if self._bias is None else _cast(self._bias.value, self._dtype)
        return _cast(bmm(self._inputs, weight, bias=bias), inputs.dtype)

    def backward(self, gradient: Tensor) -> Tensor:
        self.backward_parameters(gradient)
        product = bmm(_cast(gradient, self._dtype), _cast(self._weight.value, self._dtype))
        return _cast(product, gradient.dtype)

    def backward_parameters(self, gradient: Tensor) -> None:
        """The backward pass of a network's first layer, which needs no gradient w.r.t. the images."""
        bmm_into(self._weight.gradient, _cast(gradient, self._dtype).transpose(1, 2), self._inputs)
        if self._bias is not None:
            torch.sum(gradient, dim=1, out=self._bias.gradient)


def _cast(values: Tensor, dtype: torch.dtype) -> Tensor:
    # Tensor.to takes time even when there is nothing to do, and a step has dozens of calls.
    return values if values.dtype == dtype else values.to(dtype)


class Conv2d:
    """Convolution with stride 1, weight [runs, outputs, channels, size, size].

    On a CPU each network has its own convolution, since the bits of a grouped convolution depend on the number of
    groups; on other devices the networks are the groups of one convolution.
    """

    def __init__(self, weight: Parameter, bias: Parameter | None, *, padding: int, dtype: torch.dtype) -> None:
        self._weight, self._bias, self._padding, self._dtype = weight, bias, padding, dtype

    def forward(self, inputs: Tensor, training: TrainingPass | None) -> Tensor:
        self._inputs = inputs.to(self._dtype)
        return _joined([self._forward(part).to(inputs.dtype) for part in _parts(inputs)])

    def backward(self, gradient: Tensor) -> Tensor:
        by_inputs = [self._backward(gradient, part, by_inputs=True) for part in _parts(gradient)]
        return _joined([part.to(gradient.dtype) for part in by_inputs])

    def backward_parameters(self, gradient: Tensor) -> None:
        """The backward pass of a network's first layer, which needs no gradient w.r.t. the images."""
        for part in _parts(gradient):
            self._backward(gradient, part, by_inputs=False)

    def _forward(self, part: slice) -> Tensor:
        inputs = self._inputs[part]
        bias = None if self._bias is None else self._bias.value[part].to(self._dtype).flatten()
        outputs = functional.conv2d(
            _as_channels(inputs), self._filters(part), bias, padding=self._padding, groups=len(inputs)
        )
        return torch.unflatten(outputs, 1, (len(inputs), -1)).transpose(0, 1)

    def _filters(self, part: slice) -> Tensor:
        return self._weight.value[part].to(self._dtype).flatten(0, 1)  # [runs * outputs, channels, size, size]

    def _backward(self, gradient: Tensor, part: slice, *, by_inputs: bool) -> Tensor:
        """Stores the gradients of a part's parameters; returns the gradient w.r.t. its inputs, empty if not wanted."""
        outputs, inputs, filters = gradient[part].to(self._dtype), self._inputs[part], self._filters(part)
        by_input, by_weight, by_bias = torch.ops.aten.convolution_backward(
            _as_channels(outputs), _as_channels(inputs), filters, [len(filters)], [1, 1], [self._padding] * 2, [1, 1],
            False, [0, 0], len(inputs), [by_inputs, True, self._bias is not None],
        )  # fmt: skip
        target = self._weight.gradient[part]
        target.copy_(by_weight.view_as(target))
        if self._bias is not None:
            target = self._bias.gradient[part]
            target.copy_(by_bias.view_as(target))
        return torch.unflatten(by_input, 1, (len(inputs), -1)).transpose(0, 1) if by_inputs else gradient[:0]


def _parts(stacked: Tensor) -> list[slice]:
    """Returns the groups of runs that share one convolution."""
    if stacked.device.type == "cpu":
        return [slice(run, run + 1) for run in range(len(stacked))]
    return [slice(0, len(stacked))]


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _as_channels(stacked: Tensor) -> Tensor:
    """[runs, batch, channels, height, width] -> [batch, runs * channels, height, width]."""
    return stacked.transpose(0, 1).flatten(1, 2)


class BatchNorm:
    """Batch normalization.

    Reference: Ioffe and Szegedy 2015.
    """

    def __init__(
        self, weight: Parameter, bias: Parameter, running: dict[str, Tensor], *, epsilon: float, momentum: float
    ) -> None:
        self._weight, self._bias, self._running = weight, bias, running
        self._epsilon, self._momentum = epsilon, momentum

    def forward(self, inputs: Tensor, training: TrainingPass | None) -> Tensor:
        trailing = (1,) * (inputs.dim() - 3)
        self._shape = (inputs.shape[0], 1, inputs.shape[2], *trailing)
        weight, bias = self._weight.value.view(self._shape), self._bias.value.view(self._shape)
        if training is None:
            mean, variance = (self._running[name].view(self._shape) for name in ("running_mean", "running_var"))
            return (inputs - mean) * (weight * torch.rsqrt(variance + self._epsilon)) + bias
        self._dims = [dim for dim in range(1, inputs.dim()) if dim != 2]
        self._count = inputs.numel() // (inputs.shape[0] * inputs.shape[2])
        mean = inputs.sum(self._dims, keepdim=True) / self._count
        centered = inputs - mean
        squares = centered.square().sum(self._dims, keepdim=True)
        self._inverse_deviation = (squares / self._count).add_(self._epsilon).rsqrt_()
        self._normalized = centered.mul_(self._inverse_deviation)
        self._track(mean, squares)
        return torch.addcmul(bias, self._normalized, weight)

    def backward(self, gradient: Tensor) -> Tensor:
        by_bias = torch.sum(gradient, self._dims, out=self._bias.gradient).view(self._shape)
        by_weight = torch.sum(gradient * self._normalized, self._dims, out=self._weight.gradient).view(self._shape)
        scale = self._weight.value.view(self._shape) * self._inverse_deviation
        centered = torch.sub(gradient, by_bias, alpha=1 / self._count)
        return centered.addcmul_(self._normalized, by_weight, value=-1 / self._count).mul_(scale)

    def _track(self, mean: Tensor, squares: Tensor) -> None:
        unbiased = squares / max(self._count - 1, 1)
        for name, value in (("running_mean", mean), ("running_var", unbiased)):
            running = self._running[name]
            running.lerp_(value.view_as(running), self._momentum)
        self._running["num_batches_tracked"] += 1


class ReLU:
    """max(x, 0), in place: no layer before it keeps its output."""

    def forward(self, inputs: Tensor, training: TrainingPass | None) -> Tensor:
        self._outputs = torch.relu_(inputs)
        return self._outputs

    def backward(self, gradient: Tensor) -> Tensor:
        return _THRESHOLD_BACKWARD(gradient, self._outputs, 0, grad_input=gradient)  # type: ignore[no-any-return]


class MaxPool2d:
    """Largest value of each 2x2 square."""

    def forward(self, inputs: Tensor, training: TrainingPass | None) -> Tensor:
        self._inputs = inputs.flatten(0, 1)
        outputs, self._indices = functional.max_pool2d(self._inputs, 2, return_indices=True)
        return torch.unflatten(outputs, 0, inputs.shape[:2])

    def backward(self, gradient: Tensor) -> Tensor:
        by_inputs = torch.ops.aten.max_pool2d_with_indices_backward(
            gradient.flatten(0, 1), self._inputs, [2, 2], [2, 2], [0, 0], [1, 1], False, self._indices
        )
        return torch.unflatten(by_inputs, 0, gradient.shape[:2])


class Dropout:
    """Inverted dropout, each run with its own rate, its noise from the run's own stream.

    Works in place: the preceding ReLU then sees dropped units as zero, but their gradient is zero anyway.

    A unit is zeroed if a uniform 16-bit draw lies below rate * 65536, rounded: the rate is exact to 8e-6, and the
    scale of the kept units follows the rounded rate, so their mean is exact.

    Reference: Srivastava et al. 2014.
    """

    def __init__(self, name: str, rates: Sequence[float], *, dtype: torch.dtype, device: torch.device) -> None:
        dropped = [dropped_draws(rate) for rate in rates]
        self._name = name
        self._active = any(dropped)
        thresholds = [count - DRAW_RANGE // 2 for count in dropped]
        scales = [DRAW_RANGE / (DRAW_RANGE - count) for count in dropped]
        self._thresholds = torch.tensor(thresholds, dtype=torch.int16, device=device)[:, None, None]
        self._scales = torch.tensor(scales, dtype=dtype, device=device)[:, None, None]

    def forward(self, inputs: Tensor, training: TrainingPass | None) -> Tensor:
        if training is None or not self._active:
            return inputs
        features = inputs.shape[2:].numel()
        draws = training.streams.draws16(self._name, training.rows, features)
        # `out` yields 0.0 or 1.0 directly, five times as fast as a cast from bool.
        kept = torch.ge(draws, self._thresholds, out=torch.empty_like(draws, dtype=inputs.dtype))
        self._factors = kept.mul_(self._scales).view(inputs.shape)
        return inputs.mul_(self._factors)

    def backward(self, gradient: Tensor) -> Tensor:
        return gradient.mul_(self._factors) if self._active else gradient


class Stacked(NamedTuple):
    """The stacked form of a type of layer.

    Attributes:
      make: makes the layer of a stack.
      fits: whether a layer's arguments are such that `make` can be used.
    """

    make: Callable[[LayerOfRuns], Layer]
    fits: Callable[[Any], bool] = lambda _: True


def _linear(layer: LayerOfRuns) -> Layer:
    return Linear(layer.parameters["weight"], layer.parameters.get("bias"), layer.product_dtype)


def _conv2d(layer: LayerOfRuns) -> Layer:
    weight, bias = layer.parameters["weight"], layer.parameters.get("bias")
    return Conv2d(weight, bias, padding=layer.modules[0].padding[0], dtype=layer.product_dtype)


def _is_simple_conv2d(child: nn.Conv2d) -> bool:
    given = (child.stride, child.dilation, child.groups, child.padding_mode)
    return given == ((1, 1), (1, 1), 1, "zeros") and child.padding in {(size, size) for size in range(64)}


def _batch_norm(layer: LayerOfRuns) -> Layer:
    child, parameters = layer.modules[0], layer.parameters
    return BatchNorm(
        parameters["weight"], parameters["bias"], layer.buffers, epsilon=child.eps, momentum=child.momentum
    )


def _is_simple_batch_norm(child: nn.BatchNorm1d | nn.BatchNorm2d) -> bool:
    return child.affine and child.track_running_stats and child.momentum is not None


def _dropout(layer: LayerOfRuns) -> Layer:
    rates = [float(module.p) for module in layer.modules]
    return Dropout(layer.name, rates, dtype=layer.dtype, device=layer.device)


def _is_2x2(child: nn.MaxPool2d) -> bool:
    sizes = (child.kernel_size, child.stride, child.padding, child.dilation)
    is_simple = not child.return_indices and not child.ceil_mode
    return is_simple and all(size in (right, (right, right)) for size, right in zip(sizes, (2, 2, 0, 1), strict=True))


# A network of these layers trains as part of a stack; see stack.why_not_stacked.
STACKED: dict[type[nn.Module], Stacked] = {
    nn.Flatten: Stacked(lambda _: Flatten(), lambda child: (child.start_dim, child.end_dim) == (1, -1)),
    nn.Linear: Stacked(_linear),
    nn.Conv2d: Stacked(_conv2d, _is_simple_conv2d),
    nn.BatchNorm1d: Stacked(_batch_norm, _is_simple_batch_norm),
    nn.BatchNorm2d: Stacked(_batch_norm, _is_simple_batch_norm),
    nn.ReLU: Stacked(lambda _: ReLU()),
    nn.MaxPool2d: Stacked(lambda _: MaxPool2d(), _is_2x2),
    nn.Dropout: Stacked(_dropout, lambda child: child.p < 1),
}
