"""Training throughput on MNIST: the tutorial's loop, a plain in-memory loop, and mnist-ray's loop.

The first three train the same networks on the same images with the same batch size, one thread by default:

  tutorial   torchvision's data set, ToTensor and Normalize, a DataLoader without workers, the plain module, Adam,
             .item() after each step
  in_memory  one normalized float tensor, randperm and index_select, the plain module, fused Adam, no .item()
  mnist_ray  mnist_ray.training.loop.fit, whole epochs as in a job, including shuffle, noise, losses, accuracies and the
             state after each epoch; validation on one image per class
  products   only the step's matrix products, which no loop can do without

`python benchmarks/train_throughput.py` prints the table on stdout and its progress on stderr.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch
from timing import Spread, add_timing_options, interleave, print_results, ratios, spread
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from tutorial_data import MEAN, STD, add_data_option, load_mnist, torchvision_mnist

from mnist_ray.config.settings import TrainConfig
from mnist_ray.config.variants import variant_config
from mnist_ray.data.examples import Examples
from mnist_ray.data.image_shape import MNIST_SHAPE
from mnist_ray.models.matmul import bmm, bmm_into
from mnist_ray.models.networks import make_network
from mnist_ray.training.data import normalize, prepare_data
from mnist_ray.training.loop import fit

VARIANTS = ("baseline", "dropout", "dropout_batchnorm")
CONTENDERS = ("tutorial", "in_memory", "mnist_ray", "products")
BATCH_SIZE = 64
CPU = torch.device("cpu")


def tutorial_loop(config: TrainConfig, dataset: torch.utils.data.Dataset[Any]) -> Callable[[], int]:
    """Returns a function that trains for one step and returns its number of samples."""
    torch.manual_seed(config.seed)
    network = make_network(config, MNIST_SHAPE, 10)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    loader = DataLoader(dataset, batch_size=BATCH_SIZE, shuffle=True, num_workers=0)
    batches = _forever(loader)

    def step() -> int:
        images, labels = next(batches)
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        loss.item()
        return len(labels)

    return step


def _forever(loader: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader


def in_memory_loop(config: TrainConfig, images: Tensor, labels: Tensor) -> Callable[[], int]:
    """Returns a function that trains for one step and returns its number of samples.

    Args:
      config: the network and the optimizer's settings.
      images: float32 [n, 1, 28, 28], normalized.
      labels: int64 [n].
    """
    torch.manual_seed(config.seed)
    network = make_network(config, MNIST_SHAPE, 10)
    optimizer = torch.optim.Adam(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    batches = _shuffled_rows(len(labels))

    def step() -> int:
        rows = next(batches)
        optimizer.zero_grad()
        functional.cross_entropy(network(images.index_select(0, rows)), labels.index_select(0, rows)).backward()
        optimizer.step()
        return len(rows)

    return step


def _shuffled_rows(num_examples: int) -> Iterator[Tensor]:
    while True:
        yield from torch.randperm(num_examples).split(BATCH_SIZE)


def mnist_ray_loop(config: TrainConfig, examples: Examples) -> Callable[[], int]:
    """Returns a function that trains for one epoch and returns its number of samples."""
    states = fit(config, prepare_data(config, examples, device=CPU), device=CPU)

    def epoch() -> int:
        return next(states).history[-1].examples

    return epoch


def matrix_products(config: TrainConfig) -> Callable[[], int]:
    """Returns a function that computes a step's matrix products on random numbers and returns its number of samples."""
    layers = [layer for layer in make_network(config, MNIST_SHAPE, 10).modules() if isinstance(layer, nn.Linear)]
    inputs = [torch.randn(1, BATCH_SIZE, layer.in_features) for layer in layers]
    gradients = [torch.randn(1, BATCH_SIZE, layer.out_features) for layer in layers]
    weights = [layer.weight.detach()[None].clone() for layer in layers]
    by_weights = [torch.empty_like(weight) for weight in weights]

    def step() -> int:
        for values, weight in zip(inputs, weights, strict=True):
            bmm(values, weight.transpose(1, 2))
        for number in reversed(range(len(layers))):
            bmm_into(by_weights[number], gradients[number].transpose(1, 2), inputs[number])
            if number:
                bmm(gradients[number], weights[number])
        return BATCH_SIZE

    return step


def measure(arguments: argparse.Namespace) -> list[dict[str, str | Spread]]:
    """Returns the rates and ratios of each variant."""
    train, test = load_mnist(arguments.data_dir)
    images = normalize(train.images, mean=MEAN, std=STD, dtype=torch.float32)
    # More epochs than the rounds can use, and the smallest possible validation set.
    settings = {"epochs": 1_000_000, "validation_fraction": 1e-6, "global_batch_size": BATCH_SIZE}
    rows: list[dict[str, str | Spread]] = []
    with torchvision_mnist(train, test) as (dataset, _):
        for variant in VARIANTS:
            config = variant_config(variant, settings)
            loops = {
                "tutorial": tutorial_loop(config, dataset),
                "in_memory": in_memory_loop(config, images, train.labels),
                "mnist_ray": mnist_ray_loop(config, train),
                "products": matrix_products(config),
            }
            rates = interleave(
                loops,
                rounds=arguments.rounds,
                chunk_seconds=arguments.chunk_seconds,
                clock=arguments.clock,
                label=variant,
            )
            rows.append(
                {"variant": variant}
                | {f"{name}_samples_per_s": spread(rates[name]) for name in CONTENDERS}
                | {f"ratio_to_{name}": ratios(rates, "mnist_ray", name) for name in CONTENDERS if name != "mnist_ray"}
            )
    return rows


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description="Training throughput on MNIST, in samples per second.")
    add_data_option(parser)
    add_timing_options(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print_results(measure(arguments), as_json=arguments.json)


if __name__ == "__main__":
    main()
