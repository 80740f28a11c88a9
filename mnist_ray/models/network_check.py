"""Checks the user's own network on a few random images before a run begins."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mnist_ray.config.settings import TrainConfig
from mnist_ray.data.image_shape import ImageShape
from mnist_ray.data.training_data import TrainingData
from mnist_ray.errors import ConfigError
from mnist_ray.models.dropout import DROPOUTS, replace_modules
from mnist_ray.models.networks import check_network
from mnist_ray.models.own_network import errors_of_code, own_network
from mnist_ray.noise.global_generators import have_drawn, seeded_generators
from mnist_ray.noise.random_streams import stream_key, uniform

_ROWS = 4
# A network may leave layers out at random.
_PASSES = 20
# How far the number of rows in a batch may move an output by rounding alone.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-9}
_NAMES_SAID = 3


def check_networks(configs: Iterable[TrainConfig], data: TrainingData) -> list[str]:
    """Checks that the networks of some runs can be made for this data; the user's own, that they can be trained on it.

    Changes neither the storage nor the states of the global random generators.

    Returns:
      Lines to say if several workers share a run: which networks' results depend on the number of workers.

    Raises:
      ConfigError: what is wrong with a network, in one line.
    """
    # All other settings matter to the loop, not to the network.
    configs = list(configs)
    for config in configs:
        check_network(config, data.image_shape, len(data.class_names))
    own = {
        (config.model, config.model_settings, config.code_sha256, config.precision): config
        for config in configs
        if config.is_own_network
    }
    draws = [config.model for config in own.values() if _check(config, data.image_shape, len(data.class_names))]
    return [
        f"network {model}: draws random numbers besides dropout, so its results depend on the number of workers"
        for model in dict.fromkeys(draws)
    ]


def _check(config: TrainConfig, image_shape: ImageShape, num_classes: int) -> bool:
    """Checks one network; returns whether it draws random numbers besides dropout."""
    network, images = own_network(config, image_shape, num_classes), _images(config, image_shape)
    _check_parameters(config, network)
    network.to(images.dtype)
    with errors_of_code(config, ConfigError):
        _check_outputs(config, network.eval(), images, num_classes)
        _check_gradients(config, network.train(), images, num_classes)
        return _draws(network, images)


def _images(config: TrainConfig, image_shape: ImageShape) -> Tensor:
    """Returns normalized images: uniform pixels with mean 0 and standard deviation 1."""
    count = _ROWS * image_shape.channels * image_shape.height * image_shape.width
    draws = uniform([stream_key(0, "network check")], torch.arange(count), 1).reshape(_ROWS, *image_shape)
    dtype = torch.float64 if config.precision == "float64" else torch.float32
    return (draws.to(dtype) - 0.5) * 12**0.5


def _refuse(config: TrainConfig, problem: str) -> ConfigError:
    return ConfigError(f"model={config.model!r}: {problem}")


def _check_parameters(config: TrainConfig, network: nn.Module) -> None:
    parameters = dict(network.named_parameters())
    if not any(parameter.requires_grad for parameter in parameters.values()):
        lack = "all its parameters are frozen (requires_grad=False)" if parameters else "has no parameters"
        raise _refuse(config, f"{lack}; there is nothing to train")
    for name, tensor in (*parameters.items(), *network.named_buffers()):
        if tensor.device.type != "cpu":
            raise _refuse(config, f"{name} is on {tensor.device}; leave the device to mnist-ray")
    for name, parameter in parameters.items():
        if parameter.dtype != torch.float32:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise _refuse(config, f"{name} is {kind}; make it float32: the setting precision converts it")


def _check_outputs(config: TrainConfig, network: nn.Module, images: Tensor, num_classes: int) -> None:
    """Checks a network in evaluation mode: an image's output depends on that image alone."""
    with torch.no_grad(), seeded_generators(0):
        whole = _output(config, network, images, num_classes)
        if not torch.equal(whole, _output(config, network, images, num_classes)):
            raise _refuse(config, "gives other outputs for the same images, in evaluation mode; make it deterministic")
        for rows in (slice(1, _ROWS), slice(0, 1)):
            part = _output(config, network, images[rows], num_classes)
            tolerance = _TOLERANCE[images.dtype] * float(whole.abs().max().clamp(min=1))
            if not torch.allclose(part, whole[rows], rtol=0, atol=tolerance):
                raise _refuse(
                    config,
                    "an image's output depends on the other images of its batch, in evaluation mode; use running "
                    "statistics, as nn.BatchNorm2d does after eval()",
                )


def _output(config: TrainConfig, network: nn.Module, images: Tensor, num_classes: int) -> Tensor:
    given = tuple(images.shape)
    output = network(images)
    if not isinstance(output, Tensor):
        raise _refuse(config, f"forward returned {type(output).__name__}; it must return the logits, a tensor")
    if output.shape != (len(images), num_classes):
        raise _refuse(
            config,
            f"forward returned {tuple(output.shape)} for images {given}; it must return logits "
            f"{(len(images), num_classes)}, one per image and class",
        )
    if output.dtype != images.dtype:
        kinds = [str(dtype).removeprefix("torch.") for dtype in (output.dtype, images.dtype)]
        raise _refuse(config, "forward returned {} for images of {}; return the same type".format(*kinds))
    if not output.isfinite().all():
        raise _refuse(config, f"forward returned values that are not finite for images {given} of ordinary pixels")
    return output


def _check_gradients(config: TrainConfig, network: nn.Module, images: Tensor, num_classes: int) -> None:
    """Checks that the loss has a gradient by every parameter that is to be trained."""
    labels = torch.arange(len(images)) % num_classes
    missing = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    for number in range(_PASSES):
        with torch.enable_grad(), seeded_generators(number):
            output = _output(config, network, images, num_classes)
            if not output.requires_grad:
                raise _refuse(
                    config, "the logits have no gradient: forward detaches them, or computes without autograd"
                )
            cross_entropy(output, labels).backward()
        missing = {name: parameter for name, parameter in missing.items() if parameter.grad is None}
        if not missing:
            return
    names = list(missing)
    more = f" and {len(names) - _NAMES_SAID} more" if len(names) > _NAMES_SAID else ""
    raise _refuse(
        config,
        f"never get a gradient, as forward doesn't use them: {', '.join(names[:_NAMES_SAID])}{more}; use them, leave "
        "them out, or freeze them with requires_grad_(False)",
    )


def _draws(network: nn.Module, images: Tensor) -> bool:
    """Tells whether a network in training mode draws from the global generators, dropout layers left out."""
    replace_modules(network, lambda _, layer: nn.Identity() if type(layer) in DROPOUTS else None)
    with torch.no_grad(), seeded_generators(0):
        network(images)
        return have_drawn(0)
