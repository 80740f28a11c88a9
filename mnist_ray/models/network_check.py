"""Checks the user's own network on a few random images before a run begins."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from mnist_ray.config.batches import batch_sizes
from mnist_ray.config.settings import TrainConfig
from mnist_ray.data.image_shape import ImageShape
from mnist_ray.data.training_data import TrainingData
from mnist_ray.errors import ConfigError
from mnist_ray.models.dropout import DROPOUTS
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


def check_networks(configs: Iterable[TrainConfig], data: TrainingData, *, num_workers: int = 1) -> list[str]:
    """Checks that the networks of some runs can be made for this data; the user's own, that they can be trained on it.

    Args:
      num_workers: that share a run.

    Changes neither the storage nor the states of the global random generators.

    Returns:
      If several workers share a run, a line for each network whose result depends on their number.

    Raises:
      ConfigError: what is wrong with a network, in one line.
    """
    # All other settings matter to the loop, not to the network.
    configs = list(configs)
    for config in configs:
        check_network(config, data.image_shape, len(data.class_names))
    own = {
        (config.model, config.model_settings, config.code_sha256, config.precision, config.global_batch_size): config
        for config in configs
        if config.is_own_network
    }
    draws = [config.model for config in own.values() if _check(config, data, num_workers)]
    if num_workers == 1:
        return []
    return [
        f"network {model}: draws random numbers besides dropout, so its results depend on the number of workers"
        for model in dict.fromkeys(draws)
    ]


def _check(config: TrainConfig, data: TrainingData, num_workers: int) -> bool:
    """Checks one network; returns whether it draws random numbers besides dropout."""
    num_classes = len(data.class_names)
    network, images = own_network(config, data.image_shape, num_classes), _images(config, data.image_shape)
    _check_state(config, network)
    network.to(images.dtype)
    smallest = min(batch_sizes(len(data.labels), config.global_batch_size))
    with errors_of_code(config, ConfigError), _layers_named(network):
        _check_outputs(config, network.eval(), images, num_classes)
        if smallest < num_workers:
            _check_without_rows(config, network, images)
        _check_gradients(config, network.train(), images[:smallest], num_classes)
        return _draws(network, images)


@contextmanager
def _layers_named(network: nn.Module) -> Iterator[None]:
    """Adds a note to an error that arises in a layer: which one, and the shape of what it was given."""
    names = {id(layer): name for name, layer in network.named_modules() if name}
    entered: list[tuple[nn.Module, tuple[Any, ...]]] = []

    def enter(layer: nn.Module, given: tuple[Any, ...]) -> None:
        if id(layer) in names:
            entered.append((layer, given))

    def leave(layer: nn.Module, *_: object) -> None:
        if id(layer) in names:
            entered.pop()

    # For all modules: a scripted one takes no hook of its own.
    handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
    try:
        yield
    except Exception as error:
        if entered:
            layer, given = entered[-1]
            shapes = ", ".join(str(tuple(each.shape)) for each in given if isinstance(each, Tensor))
            error.add_note(f"in layer {names[id(layer)]} ({type(layer).__name__}), given {shapes}")
        raise
    finally:
        for handle in handles:
            handle.remove()


def _images(config: TrainConfig, image_shape: ImageShape) -> Tensor:
    """Returns normalized images: uniform pixels with mean 0 and standard deviation 1."""
    count = _ROWS * image_shape.channels * image_shape.height * image_shape.width
    draws = uniform([stream_key(0, "network check")], torch.arange(count), 1).reshape(_ROWS, *image_shape)
    dtype = torch.float64 if config.precision == "float64" else torch.float32
    return (draws.to(dtype) - 0.5) * 12**0.5


def _refuse(config: TrainConfig, problem: str) -> ConfigError:
    return ConfigError(f"model={config.model!r}: {problem}")


def _check_state(config: TrainConfig, network: nn.Module) -> None:
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
    for name, value in network.state_dict().items():
        if not isinstance(value, torch.Tensor):
            raise _refuse(config, f"its state_dict holds {name}, a {type(value).__name__}; only tensors can be saved")


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


def _check_without_rows(config: TrainConfig, network: nn.Module, images: Tensor) -> None:
    """Checks that a network computes no images: of a small last batch, some workers have none."""
    try:
        with torch.no_grad():
            network(images[:0])
    except RuntimeError as error:
        raise _refuse(
            config,
            f"a worker may have no images of an epoch's last batch, and forward can't compute none ({error}); use "
            "flatten(1) instead of view and reshape, or fewer workers",
        ) from error


def _check_gradients(config: TrainConfig, network: nn.Module, images: Tensor, num_classes: int) -> None:
    """Checks that the loss has a gradient by every parameter that is to be trained."""
    labels = torch.arange(len(images)) % num_classes
    missing = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
    places = {name: parameter.data_ptr() for name, parameter in network.named_parameters()}
    for number in range(_PASSES):
        with torch.enable_grad(), seeded_generators(number):
            output = _output(config, network, images, num_classes)
            if not output.requires_grad:
                raise _refuse(
                    config, "the logits have no gradient: forward detaches them, or computes without autograd"
                )
            cross_entropy(output, labels).backward()
        for name, parameter in network.named_parameters():
            if parameter.data_ptr() != places[name]:
                raise _refuse(config, f"forward puts another tensor into {name}.data; change it in place, with copy_")
        missing = {name: parameter for name, parameter in missing.items() if parameter.grad is None}
        if not missing:
            return
    names = list(missing)
    more = f" and {len(names) - _NAMES_SAID} more" if len(names) > _NAMES_SAID else ""
    raise _refuse(
        config,
        f"never get a gradient, as forward doesn't use them or detaches them: {', '.join(names[:_NAMES_SAID])}{more}; "
        "use them, leave them out, or freeze them with requires_grad_(False)",
    )


def _draws(network: nn.Module, images: Tensor) -> bool:
    """Tells whether a network in training draws numbers that depend on the rows that a worker has, apart from dropout.

    A dropout draws such numbers if the first dimension of what it gets is not the batch.
    """
    has_other_rows = False

    def look(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        nonlocal has_other_rows
        has_other_rows = has_other_rows or len(given[0]) % len(images) != 0

    for layer in network.modules():
        if type(layer) in DROPOUTS:
            # At this rate it draws nothing.
            layer.p = 0.0  # type: ignore[assignment]
            layer.register_forward_pre_hook(look)
    with torch.no_grad(), seeded_generators(0):
        network(images)
        return has_other_rows or have_drawn(0)
