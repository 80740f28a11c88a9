"""Wall time of a whole grid on MNIST: Ray Tune with Ray Train as in Ray's guide, compared with mnist-ray tune.

The grid is dropout {0, 0.3, 0.5} x batch norm {no, yes} x weight decay {0, 1e-5} of the network 784-256-128-64-10, each
cell with two seeds: 24 runs of one epoch at batch 64, learning rate 1e-3, trained in three ways:

  conventional  one Tune trial per run, with a TorchTrainer of one worker inside; the worker trains like the tutorial:
                torchvision's data set, ToTensor and Normalize, a DataLoader without workers, the plain module, Adam,
                .item() after each step, validation the same way, a checkpoint reported with torch.save
  in-memory     the same trials with efficient plain PyTorch: the file is read into one normalized float tensor,
                randperm and index_select, fused Adam, no .item()
  ours          mnist-ray tune on the same grid

Each way runs in its own process and is timed from start to exit, including imports, Ray's start, data, training,
validation, checkpoints and Ray's end. All use CPUs only, with one thread per worker, and train --workers runs (ours:
stacks) at once. All hold out a tenth of the examples for validation. Ray's dashboard is off.

Advantages of the conventional ways: MNIST is already unpacked, while ours unpacks it; torchvision is imported only in
the workers that use it; only Ray logs; validation uses large batches. Ray's settings are at their defaults, except for
the trials' resources: Tune's default of a CPU for each trial, which only waits for its worker, would leave none for the
workers.

`python benchmarks/grid.py` prints the table on stdout and its progress on stderr, and takes many minutes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import ray
import ray.train
import torch
from ray import tune
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback
from timing import Cell, print_results, ratios, spread
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, random_split
from tutorial_data import MEAN, STD, add_data_option, load_mnist, torchvision_mnist

from mnist_ray.config.yaml_files import yaml_text
from mnist_ray.data.idx import USUAL_NAMES
from mnist_ray.results.grid_folder import GridFolder
from mnist_ray.storage.storage import open_storage

ROOT = Path(__file__).resolve().parents[1]
WAYS = ("conventional", "in-memory", "ours")
GRID: dict[str, list[Any]] = {"dropout": [0.0, 0.3, 0.5], "batch_norm": [False, True], "weight_decay": [0.0, 1e-5]}
HIDDEN_SIZES = (256, 128, 64)
DROPOUT_LAYERS = 2
LEARNING_RATE = 1e-3
BATCH_SIZE = 64
VALIDATION_BATCH_SIZE = 1000
VALIDATION_FRACTION = 0.1
GRID_NAME = "grid"


@dataclass(frozen=True)
class Outcome:
    """The outcome of training the whole grid in one way.

    Attributes:
      seconds: wall time of its process.
      accuracies: validation accuracy of each run.
    """

    seconds: float
    accuracies: list[float]


# Code of the conventional ways' workers. Imports that only one way needs are inside its functions.


def plain_network(settings: dict[str, Any]) -> nn.Sequential:
    """Returns the network of a cell: images [batch, 1, 28, 28] -> logits [batch, 10]."""
    layers: list[nn.Module] = [nn.Flatten()]
    inputs = 28 * 28
    for number, size in enumerate(HIDDEN_SIZES, start=1):
        layers.append(nn.Linear(inputs, size))
        if settings["batch_norm"]:
            layers.append(nn.BatchNorm1d(size))
        layers.append(nn.ReLU())
        if number <= DROPOUT_LAYERS:
            layers.append(nn.Dropout(settings["dropout"]))
        inputs = size
    return nn.Sequential(*layers, nn.Linear(inputs, 10))


def conventional_run(settings: dict[str, Any]) -> None:
    """Trains and reports one run like the tutorial."""
    from torchvision import datasets, transforms

    torch.manual_seed(settings["seed"])
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((MEAN,), (STD,))])
    dataset = datasets.MNIST(settings["mnist_folder"], train=True, transform=transform)
    limit = settings["train_limit"]
    dataset.data, dataset.targets = dataset.data[:limit], dataset.targets[:limit]
    shares = [1 - VALIDATION_FRACTION, VALIDATION_FRACTION]
    train, validation = random_split(dataset, shares, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(train, batch_size=BATCH_SIZE, shuffle=True, num_workers=0)
    network = plain_network(settings)
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, weight_decay=settings["weight_decay"])
    total_loss = 0.0
    for images, labels in loader:
        optimizer.zero_grad()
        loss = functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        total_loss += loss.item()
    report(network, DataLoader(validation, batch_size=VALIDATION_BATCH_SIZE), train_loss=total_loss / len(loader))


def in_memory_run(settings: dict[str, Any]) -> None:
    """Trains and reports one run with efficient plain PyTorch."""
    torch.manual_seed(settings["seed"])
    raw = Path(settings["mnist_folder"], "MNIST", "raw")
    images_file, labels_file = (raw / name for name in USUAL_NAMES["train"])
    limit = settings["train_limit"]
    pixels = torch.from_numpy(np.fromfile(images_file, np.uint8, offset=16)).view(-1, 1, 28, 28)[:limit]
    images = pixels.float().div_(255).sub_(MEAN).div_(STD)
    labels = torch.from_numpy(np.fromfile(labels_file, np.uint8, offset=8))[:limit].long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    validation, train = order.tensor_split([round(VALIDATION_FRACTION * len(labels))])
    network = plain_network(settings)
    optimizer = torch.optim.Adam(
        network.parameters(), lr=LEARNING_RATE, weight_decay=settings["weight_decay"], fused=True
    )
    for places in torch.randperm(len(train)).split(BATCH_SIZE):
        rows = train.index_select(0, places)
        optimizer.zero_grad()
        functional.cross_entropy(network(images.index_select(0, rows)), labels.index_select(0, rows)).backward()
        optimizer.step()
    report(network, [(images[rows], labels[rows]) for rows in validation.split(VALIDATION_BATCH_SIZE)])


def report(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], **metrics: float) -> None:
    """Validates a network and reports its accuracy, with its weights as the checkpoint."""
    network.eval()
    with torch.no_grad():
        hits = [network(images).argmax(dim=1) == labels for images, labels in batches]
    metrics["val_accuracy"] = torch.cat(hits).float().mean().item()
    with tempfile.TemporaryDirectory() as folder:
        torch.save(network.state_dict(), Path(folder, "model.pt"))
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


RUNS: dict[str, Callable[[dict[str, Any]], None]] = {"conventional": conventional_run, "in-memory": in_memory_run}


def run_trial(settings: dict[str, Any]) -> None:
    """A Tune trial: starts a Ray Train run and forwards its report to Tune.

    Reference: https://docs.ray.io/en/latest/train/user-guides/hyperparameter-optimization.html
    """
    trainer = TorchTrainer(
        RUNS[settings["way"]],
        train_loop_config=settings,
        scaling_config=ray.train.ScalingConfig(num_workers=1),
        run_config=ray.train.RunConfig(
            name=tune.get_context().get_trial_id(),
            storage_path=settings["storage_folder"],
            callbacks=[TuneReportCallback()],
        ),
    )
    trainer.fit()


def train_with_tune(arguments: argparse.Namespace) -> None:
    """Trains the grid in a conventional way, in its own process, and writes the accuracies to a file."""
    way, mnist_folder, folder = arguments.child
    ray.init(address="local", include_dashboard=False, num_cpus=arguments.workers)
    constants = {"way": way, "mnist_folder": mnist_folder, "storage_folder": folder}
    axes = {**axes_of(arguments), "seed": list(range(arguments.seeds))}
    tuner = tune.Tuner(
        tune.with_resources(run_trial, {"CPU": 0, "node:__internal_head__": 0.001}),
        param_space={
            **{name: tune.grid_search(levels) for name, levels in axes.items()},
            "train_limit": arguments.train_limit,
            **constants,
        },
        tune_config=tune.TuneConfig(max_concurrent_trials=arguments.workers),
        run_config=tune.RunConfig(name=GRID_NAME, storage_path=folder),
    )
    reported = [result.metrics for result in tuner.fit() if not result.error]
    saved = [metrics for metrics in reported if Path(metrics["checkpoint_path"], "model.pt").is_file()]
    Path(folder, "accuracies.json").write_text(json.dumps([metrics["val_accuracy"] for metrics in saved]))


# Code that starts and times the three processes.


def axes_of(arguments: argparse.Namespace) -> dict[str, list[Any]]:
    """Returns the grid's axes; axes that are not to vary keep only their first level."""
    return {name: levels if name in arguments.axes else levels[:1] for name, levels in GRID.items()}


def our_command(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """Writes the grid as a YAML file and returns the command that trains it."""
    settings = {
        "variant": "dropout",
        "dataset": "mnist",
        "hidden_sizes": list(HIDDEN_SIZES),
        "dropout_layers": DROPOUT_LAYERS,
        "learning_rate": LEARNING_RATE,
        "epochs": 1,
        "global_batch_size": BATCH_SIZE,
        "train_limit": arguments.train_limit,
        "validation_fraction": VALIDATION_FRACTION,
        **axes_of(arguments),
    }
    grid_file = folder / "grid.yaml"
    grid_file.write_text(yaml_text(settings))
    options = {
        "--grid": grid_file,
        "--seeds": arguments.seeds,
        "--num-workers": arguments.workers,
        "--name": GRID_NAME,
        "--storage": folder,
        "--data-dir": arguments.data_dir.absolute(),
    }
    command = [sys.executable, "-m", "mnist_ray", "tune"]
    return command + [str(part) for option in options.items() for part in option]


def train_grid(way: str, arguments: argparse.Namespace, mnist_folder: str) -> Outcome:
    """Trains the grid in one way and checks that all its runs were trained.

    Args:
      way: one of WAYS.
      arguments: the script's.
      mnist_folder: folder of torchvision's MNIST.

    Raises:
      SystemExit: the process failed, or a run is missing.
    """
    with tempfile.TemporaryDirectory(prefix="mnist-ray-grid-") as name:
        folder = Path(name)
        child = [sys.executable, __file__, *sys.argv[1:], "--child", way, mnist_folder, name]
        command = our_command(arguments, folder) if way == "ours" else child
        with open(folder / "log", "w") as log:
            started = time.perf_counter()
            # umask: Ray writes a token into the home folder.
            process = subprocess.run(
                command, env=environment(), cwd=ROOT, umask=0o077, stdout=log, stderr=log, check=False
            )
            seconds = time.perf_counter() - started
        accuracies = [] if process.returncode else accuracies_of(way, folder)
        num_runs = prod(map(len, axes_of(arguments).values())) * arguments.seeds
        if len(accuracies) != num_runs:
            said = (folder / "log").read_text()[-3000:]
            raise SystemExit(f"{said}\n{way}: exit code {process.returncode}, {len(accuracies)} of {num_runs} runs")
    return Outcome(seconds, accuracies)


def environment() -> dict[str, str]:
    """Returns the processes' environment: a Ray of their own, one thread per worker, no GPU."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
    return {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def accuracies_of(way: str, folder: Path) -> list[float]:
    """Returns the validation accuracy of each run in the folder of one way."""
    if way == "ours":
        rows = GridFolder(open_storage(str(folder)), GRID_NAME).read_runs()
        return [row["best_val_accuracy"] for row in rows if row["status"] == "finished"]
    accuracies: list[float] = json.loads((folder / "accuracies.json").read_text())
    return accuracies


def measure(arguments: argparse.Namespace) -> list[dict[str, Cell]]:
    """Trains the grid in every way once per round, starting each round with the next way; returns a row per way."""
    ways = [way for way in WAYS if way in arguments.only]
    outcomes: dict[str, list[Outcome]] = {way: [] for way in ways}
    with torchvision_mnist(*load_mnist(arguments.data_dir)) as (dataset, _):
        for index in range(arguments.rounds):
            first = index % len(ways)
            for way in ways[first:] + ways[:first]:
                outcome = train_grid(way, arguments, str(dataset.root))
                outcomes[way].append(outcome)
                summary = f"{outcome.seconds:.1f} s, mean validation accuracy {fmean(outcome.accuracies):.4f}"
                print(f"round {index + 1} of {arguments.rounds}: {way}: {summary}", file=sys.stderr)
    seconds = {way: [outcome.seconds for outcome in outcomes[way]] for way in ways}
    return [
        {
            "way": way,
            "runs": len(outcomes[way][0].accuracies),
            "val_accuracy": fmean(value for outcome in outcomes[way] for value in outcome.accuracies),
            "seconds": spread(seconds[way]),
            **({"ratio_of_seconds_to_ours": ratios(seconds, way, "ours")} if "ours" in ways else {}),
        }
        for way in ways
    ]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_option(parser)
    parser.add_argument("--rounds", type=int, default=1, help="measurements of each way (%(default)s)")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each cell (%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes that train at once (%(default)s)")
    parser.add_argument("--train-limit", type=int, help="use only the first N training images")
    parser.add_argument("--axes", nargs="*", choices=GRID, default=list(GRID), help="axes that vary (all)")
    parser.add_argument("--only", nargs="+", choices=WAYS, default=WAYS, help="ways to measure (all)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        train_with_tune(arguments)
        return
    torch.set_num_threads(1)
    print_results(measure(arguments), as_json=arguments.json)


if __name__ == "__main__":
    main()
