"""Training throughput of one run on several ranks: the cost and benefit of sharing a run among workers.

Every contender trains on MNIST with mnist-ray's own steps, in whole epochs as in a job, with one thread per process and
one process per rank:

  single       one process, no process group
  strong       N ranks that share each batch
  weak         N ranks that share batches N times as large
  independent  N runs with different seeds, no process group

The ratio compares samples/s, summed over all processes, with `single` in the same round; its upper limit is N. The
processes are started and warmed up before the timing, and are idle between turns. With `--backend nccl` each rank has a
GPU.

`python benchmarks/ddp.py` prints the table on stdout and its progress on stderr: `dropout_batchnorm` at batch 64, whose
steps take less time than their messages, and `resnet` at batch 128, whose steps take more.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed
from commands import Child
from timing import Cell, Spread, add_timing_options, interleave, print_results, ratios, spread
from tutorial_data import add_data_option, load_mnist

from mnist_ray.config.variants import variant_config
from mnist_ray.models.ranks import Ranks
from mnist_ray.training.data import prepare_data
from mnist_ray.training.loop import Training

SINGLE, STRONG, WEAK, INDEPENDENT = "single", "strong", "weak", "independent"
CONTENDERS = (SINGLE, STRONG, WEAK, INDEPENDENT)


@dataclass(frozen=True)
class Network:
    """A variant, its batch, and the share of the training examples in an epoch."""

    variant: str
    batch_size: int
    share: float

    def batch_of(self, contender: str, num_ranks: int) -> int:
        """Returns the size of a contender's global batch."""
        return self.batch_size * (num_ranks if contender == WEAK else 1)

    def examples(self, arguments: argparse.Namespace) -> int:
        """Returns the number of training examples in an epoch."""
        return max(int(arguments.examples * self.share), 1)


NETWORKS = {
    network.variant: network for network in (Network("dropout_batchnorm", 64, 1.0), Network("resnet", 128, 0.1))
}


# Code of a rank's process.


def train_as_rank(rank: int, store: str, arguments: argparse.Namespace) -> None:
    """Reads networks and contenders from stdin, trains an epoch of each and answers with the same."""
    device = torch.device("cuda", rank) if arguments.backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(
        arguments.backend, init_method=f"file://{store}", rank=rank, world_size=arguments.ranks
    )
    trainings: dict[tuple[str, str], Training] = {}
    for line in sys.stdin:
        variant, name = json.loads(line)
        if (variant, name) not in trainings:
            trainings[variant, name] = training_of(NETWORKS[variant], name, rank, device, arguments)
        trainings[variant, name].train_epoch()
        print(json.dumps([variant, name]), flush=True)


def training_of(
    network: Network, name: str, rank: int, device: torch.device, arguments: argparse.Namespace
) -> Training:
    """Returns a rank's training for a contender."""
    settings = {
        "epochs": 1_000_000,
        "validation_fraction": 1e-6,
        "train_limit": network.examples(arguments),
        "global_batch_size": network.batch_of(name, arguments.ranks),
        "seed": rank if name == INDEPENDENT else 0,
    }
    config = variant_config(network.variant, settings)
    examples, _ = load_mnist(arguments.data_dir)
    data = prepare_data(config, examples, device=device)
    ranks = Ranks(rank, arguments.ranks) if name in (STRONG, WEAK) else Ranks()
    return Training([config], data, device=device, ranks=ranks)


# Code of the parent process, which asks the ranks in turn.


def epoch_of(network: Network, name: str, children: Sequence[Child], num_examples: int) -> Callable[[], int]:
    """Returns a function that trains an epoch of a contender and returns the samples of all its processes."""
    taking_part = children[:1] if name == SINGLE else children
    samples = num_examples * (len(children) if name == INDEPENDENT else 1)

    def epoch() -> int:
        for child in taking_part:
            child.ask([network.variant, name])
        for child in taking_part:
            child.answer()
        return samples

    return epoch


def measure(network: Network, children: Sequence[Child], arguments: argparse.Namespace) -> list[dict[str, Cell]]:
    """Returns rates and ratios of the contenders for a network."""
    settings = {"validation_fraction": 1e-6, "train_limit": network.examples(arguments)}
    examples, _ = load_mnist(arguments.data_dir)
    data = prepare_data(variant_config(network.variant, settings), examples, device=torch.device("cpu"))
    rates = interleave(
        {name: epoch_of(network, name, children, len(data.labels)) for name in CONTENDERS},
        rounds=arguments.rounds,
        chunk_seconds=arguments.chunk_seconds,
        clock=arguments.clock,
        label=f"{network.variant}, {arguments.ranks} ranks, {arguments.backend}",
    )
    return [
        {
            "network": network.variant,
            "contender": name,
            "processes": str(1 if name == SINGLE else arguments.ranks),
            "batch_size": str(network.batch_of(name, arguments.ranks)),
            "samples_per_s": spread(rates[name]),
            "ratio_to_single": ratios(rates, name, SINGLE),
        }
        for name in CONTENDERS
    ]


def verdict(rows: Sequence[dict[str, Cell]], num_ranks: int) -> str:
    """Returns a sentence for each network that says whether several ranks pay."""
    sentences = []
    for variant in NETWORKS:
        ratio = {str(row["contender"]): row["ratio_to_single"] for row in rows if row["network"] == variant}
        strong, weak = ratio[STRONG], ratio[WEAK]
        assert isinstance(strong, Spread)
        assert isinstance(weak, Spread)
        pays = "pay" if strong.median > 1 else "pay with larger batches only" if weak.median > 1 else "do not pay"
        sentences.append(
            f"{variant}: {num_ranks} ranks {pays} here: {strong.median:.2f} times as many samples/s with the "
            f"same batches, {weak.median:.2f} times with batches {num_ranks} times as large."
        )
    return "\n".join(sentences)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_data_option(parser)
    add_timing_options(parser)
    parser.add_argument("--ranks", type=int, default=2, help="N (%(default)s)")
    parser.add_argument("--backend", choices=["gloo", "nccl"], default="gloo", help="nccl: GPU per rank (%(default)s)")
    parser.add_argument("--examples", type=int, default=12_800, help="training examples per epoch (%(default)s)")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.clock != "wall":
        parser.error("--clock: other processes do the work, so wall is the only clock here")
    if arguments.backend == "nccl" and torch.cuda.device_count() < arguments.ranks:
        parser.error(f"--ranks {arguments.ranks}: nccl needs a GPU for each, there are {torch.cuda.device_count()}")
    torch.set_num_threads(arguments.threads)
    if arguments.child:
        rank, store = arguments.child
        train_as_rank(int(rank), store, arguments)
        return
    with tempfile.TemporaryDirectory(prefix="mnist-ray-ddp-") as folder:
        children: list[Child] = []
        try:
            for rank in range(arguments.ranks):
                children.append(Child(__file__, *sys.argv[1:], "--child", str(rank), str(Path(folder, "store"))))
            rows = [row for network in NETWORKS.values() for row in measure(network, children, arguments)]
        finally:
            for child in children:
                child.end()
    print_results(rows, as_json=arguments.json, note=verdict(rows, arguments.ranks))


if __name__ == "__main__":
    main()
