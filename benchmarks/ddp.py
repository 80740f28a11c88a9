"""Training throughput of one run on several ranks: the cost and benefit of DDP for a network of this size.

Every contender trains `dropout_batchnorm` on MNIST with mnist-ray's own steps, in whole epochs as in a job, with one
thread per process and one process per rank:

  single       one process, no process group
  one rank     one process that calls all collectives (the sum of the gradients, batch norm's statistics and their
               gradient) in a group of its own, without other ranks to wait for; a job with one worker calls none
  strong       N ranks that share each batch of 64
  weak         N ranks with 64 rows of each batch of N x 64
  independent  N runs with different seeds, no process group

The ratio compares samples/s, summed over all processes, with `single` in the same round; its upper limit is N. The
processes are started and warmed up before the timing, and are idle between turns. With `--backend nccl` each rank has a
GPU; `single` and `independent` then run recorded CUDA graphs, as jobs do; the contenders with collectives can't.

`python benchmarks/ddp.py` prints the table on stdout and its progress on stderr.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from commands import Child
from timing import Cell, Spread, add_timing_options, interleave, print_results, ratios, spread
from torch import Tensor
from tutorial_data import add_data_option, load_mnist

from mnist_ray.config.variants import variant_config
from mnist_ray.models.ranks import Ranks
from mnist_ray.training.data import prepare_data
from mnist_ray.training.loop import Training

VARIANT = "dropout_batchnorm"
BATCH_SIZE = 64
SINGLE, ONE_RANK, STRONG, WEAK, INDEPENDENT = "single", "one rank", "strong", "weak", "independent"
CONTENDERS = (SINGLE, ONE_RANK, STRONG, WEAK, INDEPENDENT)


@dataclass(frozen=True)
class TalkingRanks(Ranks):
    """Ranks that call the collectives even in a group of one.

    Attributes:
      group: the process group; None for the group of all processes.
    """

    group: Any = field(default=None, compare=False)

    def sum_(self, tensor: Tensor) -> Tensor:
        torch.distributed.all_reduce(tensor, group=self.group)
        return tensor

    def gather(self, tensor: Tensor) -> Tensor:
        gathered = [torch.empty_like(tensor) for _ in range(self.world_size)]
        torch.distributed.all_gather(gathered, tensor, group=self.group)
        return torch.stack(gathered)


def batch_size(name: str, num_ranks: int) -> int:
    """Returns the size of a contender's global batch."""
    return BATCH_SIZE * (num_ranks if name == WEAK else 1)


# Code of a rank's process.


def train_as_rank(rank: int, store: str, arguments: argparse.Namespace) -> None:
    """Reads contenders' names from stdin, trains an epoch of each and answers with the name."""
    device = torch.device("cuda", rank) if arguments.backend == "nccl" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(
        arguments.backend, init_method=f"file://{store}", rank=rank, world_size=arguments.ranks
    )
    alone = [torch.distributed.new_group([each]) for each in range(arguments.ranks)][rank]
    trainings: dict[str, Training] = {}
    for line in sys.stdin:
        name = json.loads(line)
        if name not in trainings:
            trainings[name] = training_of(name, rank, alone, device, arguments)
        trainings[name].train_epoch()
        print(json.dumps(name), flush=True)


def training_of(name: str, rank: int, alone: Any, device: torch.device, arguments: argparse.Namespace) -> Training:
    """Returns a rank's training for a contender."""
    ranks = {
        ONE_RANK: TalkingRanks(group=alone),
        STRONG: TalkingRanks(rank, arguments.ranks),
        WEAK: TalkingRanks(rank, arguments.ranks),
    }.get(name, Ranks())
    settings = {
        "epochs": 1_000_000,
        "validation_fraction": 1e-6,
        "train_limit": arguments.examples,
        "global_batch_size": batch_size(name, arguments.ranks),
        "seed": rank if name == INDEPENDENT else 0,
    }
    config = variant_config(VARIANT, settings)
    examples, _ = load_mnist(arguments.data_dir)
    # A recorded step can't call collectives, not even in a group of one.
    tabled = False if name == ONE_RANK else None
    data = prepare_data(config, examples, device=device)
    return Training([config], data, device=device, ranks=ranks, tabled=tabled)


# Code of the parent process, which asks the ranks in turn.


def epoch_of(name: str, children: Sequence[Child], num_examples: int) -> Callable[[], int]:
    """Returns a function that trains an epoch of a contender and returns the samples of all its processes."""
    taking_part = children[:1] if name in (SINGLE, ONE_RANK) else children
    samples = num_examples * (len(children) if name == INDEPENDENT else 1)

    def epoch() -> int:
        for child in taking_part:
            child.ask(name)
        for child in taking_part:
            child.answer()
        return samples

    return epoch


def measure(arguments: argparse.Namespace) -> list[dict[str, Cell]]:
    """Returns rates and ratios of the contenders."""
    config = variant_config(VARIANT, {"validation_fraction": 1e-6, "train_limit": arguments.examples})
    examples, _ = load_mnist(arguments.data_dir)
    num_examples = len(prepare_data(config, examples, device=torch.device("cpu")).labels)
    with tempfile.TemporaryDirectory(prefix="mnist-ray-ddp-") as folder:
        children: list[Child] = []
        try:
            for rank in range(arguments.ranks):
                children.append(Child(__file__, *sys.argv[1:], "--child", str(rank), str(Path(folder, "store"))))
            rates = interleave(
                {name: epoch_of(name, children, num_examples) for name in CONTENDERS},
                rounds=arguments.rounds,
                chunk_seconds=arguments.chunk_seconds,
                clock=arguments.clock,
                label=f"{arguments.ranks} ranks, {arguments.backend}",
            )
        finally:
            for child in children:
                child.end()
    return [
        {
            "contender": name,
            "processes": str(1 if name in (SINGLE, ONE_RANK) else arguments.ranks),
            "batch_size": str(batch_size(name, arguments.ranks)),
            "samples_per_s": spread(rates[name]),
            "steps_per_s": spread([rate / batch_size(name, arguments.ranks) for rate in rates[name]]),
            "ratio_to_single": ratios(rates, name, SINGLE),
        }
        for name in CONTENDERS
    ]


def verdict(rows: Sequence[dict[str, Cell]], num_ranks: int) -> str:
    """Returns a sentence that says whether DDP pays off for this network."""
    by_name = {str(row["contender"]): row["ratio_to_single"] for row in rows}
    strong, weak, independent = (by_name[name] for name in (STRONG, WEAK, INDEPENDENT))
    assert isinstance(strong, Spread)
    assert isinstance(weak, Spread)
    assert isinstance(independent, Spread)
    best = max(strong.median, weak.median)
    pays = "does not pay" if best < 1 or best < independent.median else "pays"
    return (
        f"DDP {pays} for this network here: {num_ranks} ranks train {strong.median:.2f} times as many samples/s as one "
        f"process with the same batches, {weak.median:.2f} times with batches {num_ranks} times as large; {num_ranks} "
        f"independent runs train {independent.median:.2f} times as many. DDP is meant for larger networks and batches."
    )


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
    rows = measure(arguments)
    print_results(rows, as_json=arguments.json, note=verdict(rows, arguments.ranks))


if __name__ == "__main__":
    main()
