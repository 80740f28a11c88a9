"""The networks, as plain torch modules with readable parameter names (fc1.weight, ...)."""

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mnist_ray.config.settings import TrainConfig
from mnist_ray.data.examples import IMAGE_SIDE
from mnist_ray.noise.random_streams import stream_key, uniform

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def make_network(config: TrainConfig, num_classes: int) -> nn.Sequential:
    """Returns an untrained network: images [batch, 1, 28, 28] -> logits [batch, num_classes].

    Weights follow torch's default distributions, drawn from the run's own stream. A bias that batch normalization
    would cancel is zero and stays zero: its gradient is rounding noise.
    """
    network = _layers(config, num_classes)
    _initialize(network, config.seed)
    return network


def network_of(config: TrainConfig, num_classes: int, weights: Mapping[str, Tensor]) -> nn.Sequential:
    """Returns a network with given weights; allocates memory only after checking their shapes.

    Raises:
      ValueError: the weights belong to another architecture.
    """
    # Each layer has at least one weight, so refuse a million layers without building them.
    if len(config.hidden_sizes) >= len(weights):
        raise ValueError(f"{len(config.hidden_sizes)} hidden layers, {len(weights)} tensors")
    try:
        with torch.device("meta"):
            network = _layers(config, num_classes)
    except RuntimeError as error:
        raise ValueError(f"hidden_sizes={config.hidden_sizes}: too large ({str(error).splitlines()[0]})") from None
    state = network.state_dict()
    expected = {name: tuple(value.shape) for name, value in state.items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    for name in sorted(expected.keys() | given.keys()):
        if expected.get(name) != given.get(name):
            raise ValueError(f"{name}: {given.get(name, 'missing')} instead of {expected.get(name, 'none')}")
    # With to_empty, torch would import its symbolic shapes: 0.6 s of CPU time.
    copies = {name: weights[name].to("cpu", value.dtype, copy=True) for name, value in state.items()}
    network.load_state_dict(copies, assign=True)
    return network


def _layers(config: TrainConfig, num_classes: int) -> nn.Sequential:
    layers = _mlp(config, num_classes) if config.model == "mlp" else _cnn(config, num_classes)
    return nn.Sequential(layers).to(torch.float64 if config.precision == "float64" else torch.float32)


def _mlp(config: TrainConfig, num_classes: int) -> OrderedDict[str, nn.Module]:
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    inputs = IMAGE_SIDE * IMAGE_SIDE
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


def _cnn(config: TrainConfig, num_classes: int) -> OrderedDict[str, nn.Module]:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    channels, size = 1, IMAGE_SIDE
    for number, filters in enumerate(config.hidden_sizes, start=1):
        layers[f"conv{number}"] = nn.Conv2d(channels, filters, kernel_size=5, padding=2)
        if config.batch_norm:
            layers[f"bn{number}"] = nn.BatchNorm2d(filters)
        layers[f"relu{number}"] = nn.ReLU()
        layers[f"pool{number}"] = nn.MaxPool2d(2)
        if number <= config.dropout_layers:
            layers[f"dropout{number}"] = nn.Dropout(config.dropout)
        channels, size = filters, size // 2
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(channels * size * size, num_classes)
    return layers


def _initialize(network: nn.Sequential, seed: int) -> None:
    layers = list(network.named_children())
    for position, (name, layer) in enumerate(layers):
        if not isinstance(layer, nn.Linear | nn.Conv2d):
            continue
        # torch's default, Kaiming uniform with a = sqrt(5), is uniform within 1 / sqrt(fan_in).
        bound = layer.weight[0].numel() ** -0.5
        for kind, parameter in layer.named_parameters():
            key = stream_key(seed, f"initial {name}.{kind}")
            draws = uniform([key], torch.arange(parameter.numel()), 1).reshape(parameter.shape)
            with torch.no_grad():
                parameter.copy_((2 * draws - 1) * bound)
        if layers[position + 1 : position + 2] and isinstance(layers[position + 1][1], BATCH_NORMS):
            nn.init.zeros_(layer.get_parameter("bias"))
