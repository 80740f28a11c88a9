"""Training throughput of stacks, in samples per second over all runs, compared with training one run at a time.

The runs are cells of the regularization grid (dropout and weight decay differ). As in a grid, the runs of a stack
mostly share a seed, and therefore batches and noise; --distinct-seeds gives every run its own seed.
"""

import argparse
from collections.abc import Callable, Iterator

import torch
from timing import Spread, add_timing_options, interleave, print_results, ratios, spread
from torch import Tensor
from torch.nn import functional
from tutorial_data import add_data_option, load_mnist

from mnist_ray.config.settings import TrainConfig
from mnist_ray.data.examples import Examples
from mnist_ray.data.training_data import TrainingData
from mnist_ray.grids.grid import expand, grid_settings, read_grid
from mnist_ray.models.networks import make_network
from mnist_ray.training.data import normalize, prepare_data
from mnist_ray.training.loop import Training

SIZES = {"cpu": (1, 2, 4, 8, 32), "cuda": (1, 4, 16, 32, 80, 160)}


def configs_of(batch_norm: bool, count: int, *, distinct_seeds: bool) -> list[TrainConfig]:
    """Returns cells of the regularization grid with dropout, seed by seed."""
    settings = {"batch_norm": batch_norm, "dropout": [0.2, 0.3, 0.5], "epochs": 1_000_000, "dataset": "mnist"}
    grid = read_grid(grid_settings("regularization"), seeds=str(count), overrides=settings, source="benchmark")
    runs = [run.config for run in expand(grid, name="benchmark", max_runs=100_000)]
    if distinct_seeds:
        return [runs[index * count + index] for index in range(min(count, len(runs) // count))]
    return sorted(runs, key=lambda config: config.seed)[:count]


def separate_loop(config: TrainConfig, data: TrainingData) -> Callable[[], int]:
    """Returns a function that trains one step of a network in plain PyTorch and returns the number of samples."""
    torch.manual_seed(config.seed)
    network = make_network(config, data.image_shape, len(data.class_names)).to(data.images.device)
    optimizer = torch.optim.Adam(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    images = normalize(data.images, mean=data.mean, std=data.std, dtype=torch.float32)
    batches = _shuffled(len(data.labels), config.global_batch_size, images.device)

    def step() -> int:
        rows = next(batches)
        optimizer.zero_grad()
        functional.cross_entropy(network(images.index_select(0, rows)), data.labels.index_select(0, rows)).backward()
        optimizer.step()
        return len(rows)

    return step


def _shuffled(count: int, batch_size: int, device: torch.device) -> Iterator[Tensor]:
    while True:
        yield from torch.randperm(count).to(device).split(batch_size)


def stack_loop(configs: list[TrainConfig], data: TrainingData) -> Callable[[], int]:
    """Returns a function that trains a stack for an epoch and returns the samples of all its runs."""
    training = Training(configs, data, device=data.images.device)

    def epoch() -> int:
        training.train_epoch()
        return len(configs) * len(data.labels)

    return epoch


def measure(arguments: argparse.Namespace, device: torch.device, examples: Examples) -> list[dict[str, str | Spread]]:
    """Returns rates and ratios with and without batch norm, for each stack size."""
    rows: list[dict[str, str | Spread]] = []
    sizes = arguments.sizes or SIZES[device.type]
    for batch_norm in (False, True):
        config = configs_of(batch_norm, 1, distinct_seeds=False)[0]
        limited = config.model_copy(update={"train_limit": arguments.examples, "validation_fraction": 1e-6})
        data = prepare_data(limited, examples, device=device)
        contenders = {"separate": separate_loop(config, data)} | {
            f"stack of {size}": stack_loop(configs_of(batch_norm, size, distinct_seeds=arguments.distinct_seeds), data)
            for size in sizes
        }
        label = "batch norm" if batch_norm else "no batch norm"
        rates = interleave(
            contenders,
            rounds=arguments.rounds,
            chunk_seconds=arguments.chunk_seconds,
            clock=arguments.clock,
            label=label,
        )
        rows += [
            {
                "network": label,
                "contender": name,
                "samples_per_s": spread(rates[name]),
                "ratio_to_separate": ratios(rates, name, "separate"),
                "ratio_to_stack_of_1": ratios(rates, name, f"stack of {sizes[0]}"),
            }
            for name in contenders
        ]
    return rows


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_option(parser)
    add_timing_options(parser)
    parser.add_argument("--sizes", type=int, nargs="+", help="runs in a stack, 1 first (1 2 4 8 32, on a GPU to 160)")
    parser.add_argument("--examples", type=int, default=12_800, help="training examples per epoch (%(default)s)")
    parser.add_argument("--distinct-seeds", action="store_true", help="give every run its own seed")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    examples, _ = load_mnist(arguments.data_dir)
    print_results(measure(arguments, device, examples), as_json=arguments.json)


if __name__ == "__main__":
    main()
