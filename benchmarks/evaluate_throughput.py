"""Evaluation throughput on MNIST's test split: a DataLoader loop, a plain in-memory loop, and mnist-ray's loop.

All three compute the log-probabilities of the same networks for the same images, one thread by default:

  data_loader  torchvision's data set, ToTensor and Normalize, a DataLoader without workers, one network at a time
  in_memory    uint8 images in memory, normalized batch by batch, one network at a time
  mnist_ray    evaluation.inference.log_probabilities, the evaluation job's inner loop: all networks in one pass

An item is one image under one network. `python benchmarks/evaluate_throughput.py` prints the table on stdout and its
progress on stderr.
"""

import argparse
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timing import Spread, add_timing_options, interleave, print_results, ratios, spread
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tutorial_data import MEAN, STD, add_data_option, load_mnist, torchvision_mnist

from mnist_ray.config.variants import variant_config
from mnist_ray.data.image_shape import MNIST_SHAPE
from mnist_ray.evaluation.inference import log_probabilities
from mnist_ray.models.networks import make_network
from mnist_ray.training.data import normalize

VARIANTS = ("baseline", "dropout", "dropout_batchnorm")
CONTENDERS = ("data_loader", "in_memory", "mnist_ray")
CPU = torch.device("cpu")


def data_loader_loop(networks: Sequence[nn.Module], dataset: Dataset[Any], *, batch_size: int) -> Callable[[], int]:
    """Returns a function that evaluates the next network on the whole split and returns the number of items."""
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=0)
    turns = itertools.cycle(networks)

    def evaluate() -> int:
        network = next(turns)
        with torch.inference_mode():
            scores = torch.cat([torch.log_softmax(network(images), dim=-1) for images, _ in loader])
        return len(scores)

    return evaluate


def in_memory_loop(networks: Sequence[nn.Module], images: Tensor, *, batch_size: int) -> Callable[[], int]:
    """Returns a function that evaluates the next network on the whole split and returns the number of items.

    Args:
      networks: in evaluation mode.
      images: uint8 [n, 1, 28, 28].
      batch_size: images per pass.
    """
    turns = itertools.cycle(networks)

    def evaluate() -> int:
        network = next(turns)
        with torch.inference_mode():
            batches = (normalize(batch, mean=MEAN, std=STD, dtype=torch.float32) for batch in images.split(batch_size))
            scores = torch.cat([torch.log_softmax(network(batch), dim=-1) for batch in batches])
        return len(scores)

    return evaluate


def mnist_ray_loop(networks: Sequence[nn.Module], images: Tensor, *, batch_size: int) -> Callable[[], int]:
    """Returns a function that evaluates all networks on the whole split and returns the number of items."""
    normalizations = [(MEAN, STD)] * len(networks)

    def evaluate() -> int:
        scores = log_probabilities(networks, images, normalizations=normalizations, batch_size=batch_size, device=CPU)
        return scores.shape[0] * scores.shape[1]

    return evaluate


def measure(arguments: argparse.Namespace) -> list[dict[str, str | Spread]]:
    """Returns the rates and ratios of each variant, whose networks differ by their seeds."""
    train, test = load_mnist(arguments.data_dir)
    rows: list[dict[str, str | Spread]] = []
    batch_size = arguments.batch_size
    with torchvision_mnist(train, test) as (_, dataset):
        for variant in VARIANTS:
            configs = [variant_config(variant, {"seed": seed}) for seed in range(arguments.models)]
            networks = [make_network(config, MNIST_SHAPE, 10).eval() for config in configs]
            loops = {
                "data_loader": data_loader_loop(networks, dataset, batch_size=batch_size),
                "in_memory": in_memory_loop(networks, test.images, batch_size=batch_size),
                "mnist_ray": mnist_ray_loop(networks, test.images, batch_size=batch_size),
            }
            rates = interleave(
                loops,
                rounds=arguments.rounds,
                chunk_seconds=arguments.chunk_seconds,
                clock=arguments.clock,
                label=variant,
            )
            rows.append(
                {"variant": variant, "models": str(arguments.models)}
                | {f"{name}_items_per_s": spread(rates[name]) for name in CONTENDERS}
                | {f"ratio_to_{name}": ratios(rates, "mnist_ray", name) for name in CONTENDERS[:2]}
            )
    return rows


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Evaluation throughput on MNIST, in images x models per second.")
    add_data_option(parser)
    add_timing_options(parser)
    parser.add_argument("--models", type=int, default=8, help="networks of each variant (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=1000, help="images per pass (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print_results(measure(arguments), as_json=arguments.json)


if __name__ == "__main__":
    main()
