"""The networks, as plain torch modules with readable parameter names (fc1.weight, ...)."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional

from mnist_ray.config.settings import TrainConfig
from mnist_ray.data.image_shape import ImageShape
from mnist_ray.errors import ConfigError
from mnist_ray.models.own_network import own_network
from mnist_ray.noise.random_streams import stream_key, uniform
from mnist_ray.text.sizes import count_text

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def make_network(config: TrainConfig, image_shape: ImageShape, num_classes: int) -> nn.Module:
    """Returns an untrained network: images [batch, *image_shape] -> logits [batch, num_classes].

    Weights follow torch's default distributions, drawn from the run's own stream. A bias that batch normalization
    would cancel is zero and stays zero: its gradient is rounding noise. The user's own network starts with the weights
    that its function gives it.

    Raises:
      ConfigError: the network is too deep for the images, or see own_network.
      CheckpointError: the code of the user's own network has changed.
    """
    if config.is_own_network:
        return own_network(config, image_shape, num_classes).to(_dtype(config))
    network = _layers(config, image_shape, num_classes)
    _initialize(network, config.seed)
    return network


def check_network(config: TrainConfig, image_shape: ImageShape, num_classes: int) -> None:
    """Checks that a built-in network can be made, without its memory; the user's own is checked by network_check.

    Raises:
      ConfigError: see make_network.
    """
    if not config.is_own_network:
        with torch.device("meta"):
            _layers(config, image_shape, num_classes)


def network_of(
    config: TrainConfig, image_shape: ImageShape, num_classes: int, weights: Mapping[str, Tensor]
) -> nn.Module:
    """Returns a network with given weights; allocates memory only after checking their shapes.

    Raises:
      ValueError: the weights belong to another architecture.
      ConfigError, CheckpointError: see make_network.
    """
    if config.is_own_network:
        network = make_network(config, image_shape, num_classes)
        _check_shapes(network.state_dict(), weights)
        # In place, so that weights which two layers share stay shared.
        network.load_state_dict(weights)
        return network
    # Each layer has at least one weight, so refuse a million layers without building them.
    if len(config.hidden_sizes) >= len(weights):
        raise ValueError(f"{len(config.hidden_sizes)} hidden layers, {len(weights)} tensors")
    try:
        with torch.device("meta"):
            network = _layers(config, image_shape, num_classes)
    except RuntimeError as error:
        raise ValueError(f"hidden_sizes={config.hidden_sizes}: too large ({str(error).splitlines()[0]})") from None
    state = network.state_dict()
    _check_shapes(state, weights)
    # With to_empty, torch would import its symbolic shapes: 0.6 s of CPU time.
    copies = {name: weights[name].to("cpu", value.dtype, copy=True) for name, value in state.items()}
    network.load_state_dict(copies, assign=True)
    return network


def _check_shapes(state: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    expected = {name: tuple(value.shape) for name, value in state.items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    for name in sorted(expected.keys() | given.keys()):
        if expected.get(name) != given.get(name):
            raise ValueError(f"{name}: {given.get(name, 'missing')} instead of {expected.get(name, 'none')}")


def _layers(config: TrainConfig, image_shape: ImageShape, num_classes: int) -> nn.Sequential:
    layers = BUILDERS[config.model](config, image_shape, num_classes)
    return nn.Sequential(layers).to(_dtype(config))


def _dtype(config: TrainConfig) -> torch.dtype:
    return torch.float64 if config.precision == "float64" else torch.float32


def _mlp(config: TrainConfig, image_shape: ImageShape, num_classes: int) -> OrderedDict[str, nn.Module]:
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    inputs = prod(image_shape)
    for number, size in enumerate(config.hidden_sizes, start=1):
        layers[f"fc{number}"] = nn.Linear(inputs, size)
        if config.batch_norm:
            layers[f"bn{number}"] = nn.BatchNorm1d(size)
        layers[f"relu{number}"] = nn.ReLU()
        if number <= config.dropout_layers:
            layers[f"dropout{number}"] = nn.Dropout(config.dropout)
        inputs = size
    layers[f"fc{len(config.hidden_sizes) + 1}"] = nn.Linear(inputs, num_classes)
    return layers


def _cnn(config: TrainConfig, image_shape: ImageShape, num_classes: int) -> OrderedDict[str, nn.Module]:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels, height, width = image_shape
    for number, filters in enumerate(config.hidden_sizes, start=1):
        if min(height, width) < 2:
            fewer = f"at most {count_text(number - 1, 'hidden layer')}"
            raise ConfigError(
                f"hidden_sizes={config.hidden_sizes}: layer pool{number} gets {width}x{height} of the images' "
                f"{image_shape.width}x{image_shape.height} pixels and can't halve them; use "
                f"{fewer if number > 1 else 'larger images, or model=mlp'}"
            )
        layers[f"conv{number}"] = nn.Conv2d(channels, filters, kernel_size=5, padding=2)
        if config.batch_norm:
            layers[f"bn{number}"] = nn.BatchNorm2d(filters)
        layers[f"relu{number}"] = nn.ReLU()
        layers[f"pool{number}"] = nn.MaxPool2d(2)
        if number <= config.dropout_layers:
            layers[f"dropout{number}"] = nn.Dropout(config.dropout)
        channels, height, width = filters, height // 2, width // 2
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(channels * height * width, num_classes)
    return layers


def _resnet(config: TrainConfig, image_shape: ImageShape, num_classes: int) -> OrderedDict[str, nn.Module]:
    first = config.hidden_sizes[0]
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(image_shape.channels, first, kernel_size=3, padding=1, bias=not config.batch_norm)
    )
    if config.batch_norm:
        layers["bn1"] = nn.BatchNorm2d(first)
    layers["relu1"] = nn.ReLU()
    channels = first
    for number, filters in enumerate(config.hidden_sizes, start=1):
        layers[f"block{number}"] = ResidualBlock(channels, filters, batch_norm=config.batch_norm)
        if number <= config.dropout_layers:
            layers[f"dropout{number}"] = nn.Dropout(config.dropout)
        channels = filters
    layers["pool"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(channels, num_classes)
    return layers


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a 1x1 convolution as shortcut; halves height and width.

    Reference: He, Zhang, Ren, Sun 2016, "Deep residual learning for image recognition".
    """

    def __init__(self, channels: int, filters: int, *, batch_norm: bool) -> None:
        """Maps [batch, channels, height, width] to [batch, filters, ceil(height / 2), ceil(width / 2)]."""
        super().__init__()

        def norm() -> nn.Module:
            return nn.BatchNorm2d(filters) if batch_norm else nn.Identity()

        bias = not batch_norm
        self.conv1 = nn.Conv2d(channels, filters, kernel_size=3, stride=2, padding=1, bias=bias)
        self.bn1 = norm()
        self.conv2 = nn.Conv2d(filters, filters, kernel_size=3, padding=1, bias=bias)
        self.bn2 = norm()
        self.shortcut = nn.Conv2d(channels, filters, kernel_size=1, stride=2)

    def forward(self, images: Tensor) -> Tensor:
        """Returns relu(f(images) + shortcut(images))."""
        inner = functional.relu(self.bn1(self.conv1(images)))
        return functional.relu(self.bn2(self.conv2(inner)) + self.shortcut(images))


# The built-in networks: the setting `model` -> the layers of a config.
BUILDERS: dict[str, Callable[[TrainConfig, ImageShape, int], OrderedDict[str, nn.Module]]] = {
    "mlp": _mlp,
    "cnn": _cnn,
    "resnet": _resnet,
}


def _initialize(network: nn.Sequential, seed: int) -> None:
    for name, layer in network.named_modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        # torch's default, Kaiming uniform with a = sqrt(5), is uniform within 1 / sqrt(fan_in).
        bound = layer.weight[0].numel() ** -0.5
        for kind, parameter in layer.named_parameters():
            key = stream_key(seed, f"initial {name}.{kind}")
            draws = uniform([key], torch.arange(parameter.numel()), 1).reshape(parameter.shape)
            with torch.no_grad():
                parameter.copy_((2 * draws - 1) * bound)
    for name in _biases_before_batch_norm(network):
        nn.init.zeros_(network.get_parameter(name))


def cancelled_biases(network: nn.Module) -> list[str]:
    """Returns the names of zero biases that the next layer, a batch normalization, cancels: they stay zero."""
    return [name for name in _biases_before_batch_norm(network) if not network.get_parameter(name).any()]


def _biases_before_batch_norm(network: nn.Module) -> list[str]:
    # Only a Sequential calls its layers in their order.
    layers = list(network.named_children()) if type(network) is nn.Sequential else []
    return [
        f"{name}.bias"
        for (name, layer), (_, follower) in pairwise(layers)
        if isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None and isinstance(follower, BATCH_NORMS)
    ]
