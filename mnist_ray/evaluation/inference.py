"""Loads networks and computes class probabilities; one pass over the images serves any number of networks."""

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor, nn

from mnist_ray.config.batches import images_at_once
from mnist_ray.config.own_code import check_code
from mnist_ray.data.training_data import PerChannel
from mnist_ray.errors import CheckpointError
from mnist_ray.models.networks import network_of
from mnist_ray.results.checkpoint_folder import Checkpoint
from mnist_ray.training.data import normalize


def load_network(checkpoint: Checkpoint) -> nn.Module:
    """Returns a checkpoint's network in evaluation mode.

    Raises:
      CheckpointError: the weights belong to another architecture than the config, or the network's code has changed.
      ConfigError: the code is not given.
    """
    check_code(checkpoint.config, f"run {checkpoint.run!r}")
    try:
        network = network_of(checkpoint.config, checkpoint.image_shape, len(checkpoint.class_names), checkpoint.model)
    except ValueError as error:
        reason = str(error)[:300]
        raise CheckpointError(
            f"run {checkpoint.run!r}: weights of another architecture than its config: {reason}"
        ) from None
    return network.eval()


def log_probabilities(
    networks: Sequence[nn.Module],
    images: Tensor,
    *,
    normalizations: Sequence[tuple[PerChannel, PerChannel]],
    batch_size: int,
    device: torch.device,
    done: Callable[[int], None] = lambda _: None,
) -> Tensor:
    """Computes the class log-probabilities of every image under every network.

    A network's result does not depend on the other networks.

    Args:
      networks: plain modules in evaluation mode, on the device.
      images: uint8 [n, channels, height, width].
      normalizations: (mean, std) of each network, as fractions of 255.
      batch_size: images in one pass; fewer if they are large, so that memory stays bounded.
      device: where the networks are.
      done: called with the number of images that a network has just scored.

    Returns:
      [networks, n, classes] on the CPU, float64 if any network computes in float64, else float32.
    """
    dtypes = [next(network.parameters()).dtype for network in networks]
    batches = []
    batch_size = images_at_once(batch_size, prod(images.shape[1:]))
    with torch.inference_mode():
        for batch in images.split(batch_size):
            on_device = batch.to(device)
            inputs: dict[object, Tensor] = {}
            outputs = []
            for network, (mean, std), dtype in zip(networks, normalizations, dtypes, strict=True):
                key = (mean, std, dtype)
                if key not in inputs:
                    inputs[key] = normalize(on_device, mean=mean, std=std, dtype=dtype)
                outputs.append(torch.log_softmax(network(inputs[key]), dim=-1).cpu())
                done(len(batch))
            batches.append(torch.stack(outputs))
    return torch.cat(batches, dim=1)
