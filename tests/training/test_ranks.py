"""One rank equals two and three: real processes that talk over gloo on the loopback interface."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from mnist_ray.config.settings import TrainConfig
from mnist_ray.config.variants import variant_config
from mnist_ray.data.image_shape import MNIST_SHAPE
from mnist_ray.data.training_data import TrainingData
from mnist_ray.models.networks import make_network
from mnist_ray.models.ranks import Ranks
from mnist_ray.noise.random_streams import permutation, stream_key
from mnist_ray.results.history import EpochResult
from mnist_ray.results.train_state import TrainState
from mnist_ray.training import loop
from mnist_ray.training.data import normalize
from mnist_ray.training.loop import fit
from tests.support.tiny_digits import tiny_digits
from tests.support.warm_processes import start, wait

CPU = torch.device("cpu")
WORLD_SIZES = (2, 3)
DDP = "plain networks for DistributedDataParallel"
FLOAT32 = "float32 over 20 steps"
RESUMED = "float32, resumed"
EVERYTHING: dict[str, object] = {
    "dropout": 0.3,
    "batch_norm": True,
    "label_smoothing": 0.1,
    "weight_decay": 1e-3,
    "gradient_clip_norm": 1.0,
    "schedule": "cosine",
    "warmup_epochs": 0.5,
    "augmentation": "affine_elastic",
    "epochs": 2,
    "precision": "float64",
}
MLP: dict[str, object] = {"hidden_sizes": (16, 12)}
CNN: dict[str, object] = {"model": "cnn", "hidden_sizes": (3, 4), "epochs": 2}


class OwnNetwork(nn.Module):
    """What a person's own network may have: one dropout called twice, whole channels dropped, a layer left out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 5, stride=4, bias=False)
        self.norm = nn.BatchNorm2d(4, momentum=None)
        self.channels = nn.Dropout2d(0.25)
        self.dropout = nn.Dropout(0.3)
        self.inner = nn.Linear(144, 144)
        self.plain = nn.BatchNorm1d(144, affine=False)
        self.last = nn.Linear(144, 10)
        self.num_steps = 0

    def forward(self, images: Tensor) -> Tensor:
        values = self.channels(functional.gelu(self.norm(self.conv(images)))).flatten(1)
        self.num_steps += self.training
        if self.num_steps % 2 or not self.training:
            values = values + self.inner(self.dropout(values))
        return self.last(self.dropout(self.plain(values)))


def own_network(*_: object) -> nn.Module:
    torch.manual_seed(5)
    return OwnNetwork().double()


@dataclasses.dataclass(frozen=True)
class Case:
    """A run's settings, how many examples it has, and what makes its network."""

    settings: dict[str, object]
    num_examples: int
    num_validation: int = 50
    make_network: Callable[..., nn.Module] = make_network


CASES = {
    "an mlp with a partial last batch": Case(EVERYTHING | MLP | {"epochs": 3}, 2 * 64 + 37),
    "an mlp with a last batch of one row": Case(EVERYTHING | MLP, 2 * 64 + 1),
    "a cnn with a last batch of two rows and one for validation": Case(EVERYTHING | CNN, 64 + 2, 1),
    "rmsprop and as many examples as ranks": Case(EVERYTHING | MLP | {"optimizer": "rmsprop"}, 3),
    "sgd without noise": Case(EVERYTHING | MLP | {"optimizer": "sgd", "augmentation": "none", "dropout": 0.0}, 100),
    FLOAT32: Case(
        EVERYTHING | MLP | {"precision": "float32", "epochs": 1, "global_batch_size": 16}, num_examples=20 * 16
    ),
    "a residual network": Case(
        EVERYTHING | {"model": "resnet", "hidden_sizes": (3, 4), "augmentation": "none"}, 64 + 2, num_validation=1
    ),
    "a network of one's own": Case(EVERYTHING, 2 * 64 + 37, 1, own_network),
    RESUMED: Case({"hidden_sizes": (128, 64), "epochs": 2, "optimizer": "sgd"}, 150),
    DDP: Case(MLP | {"precision": "float64", "epochs": 2, "weight_decay": 1e-3}, 150),
}


def config_of(case: Case) -> TrainConfig:
    return variant_config("baseline", {"dataset": "digits", **case.settings})


def data_of(case: Case) -> TrainingData:
    examples = tiny_digits()
    rows, held_out = slice(0, case.num_examples), slice(1000, 1000 + case.num_validation)
    return TrainingData(
        images=examples.images[rows],
        labels=examples.labels[rows],
        validation_images=examples.images[held_out],
        validation_labels=examples.labels[held_out],
        mean=0.2,
        std=0.35,
        bright_ground_share=0.0,
        class_names=examples.class_names,
        fingerprint=examples.fingerprint,
    )


def states(case: Case, ranks: Ranks, state: TrainState | None = None) -> list[TrainState]:
    with patch.object(loop, "make_network", case.make_network):
        return list(fit(config_of(case), data_of(case), device=CPU, ranks=ranks, state=state))


def train(case: Case, ranks: Ranks) -> TrainState:
    return states(case, ranks)[-1]


def train_with_ddp(case: Case, ranks: Ranks) -> dict[str, Tensor]:
    """The usual way: torch's own wrapper, its rank's rows of each batch, torch's own optimizer."""
    config, data = config_of(case), data_of(case)
    network = make_network(config, MNIST_SHAPE, 10)
    wrapped = DistributedDataParallel(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    pixels = normalize(data.images, mean=data.mean, std=data.std, dtype=torch.float64)
    for epoch in range(1, config.epochs + 1):
        order = permutation(stream_key(config.seed, "shuffle", epoch), len(data.labels))
        for batch in torch.split(order, config.global_batch_size):
            mine = batch[ranks.rank :: ranks.world_size]
            loss = functional.cross_entropy(wrapped(pixels[mine]), data.labels[mine], reduction="sum")
            optimizer.zero_grad()
            # DDP averages over the ranks, and the loss is a mean over the global batch.
            (loss * ranks.world_size / len(batch)).backward()
            optimizer.step()
    return network.state_dict()


def result_of(state: TrainState) -> dict[str, object]:
    history = [dataclasses.asdict(row) for row in state.history]
    return {"history": history, "model": state.model, "optimizer": state.optimizer, "correct": correct_in(state)}


def correct_in(state: TrainState) -> list[bool]:
    assert state.correct is not None
    return list(state.correct.tolist())


def run_rank(rank: int, folder: Path) -> None:
    """What each process does: all cases with each number of ranks it belongs to."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    for world_size in WORLD_SIZES:
        if rank >= world_size:
            continue
        store = torch.distributed.FileStore(str(folder / f"store{world_size}"), world_size)
        torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
        ranks = Ranks(rank, world_size)
        results = {}
        for name, case in CASES.items():
            results[name] = result_of(train(case, ranks))
        results["ddp"] = {"model": train_with_ddp(CASES[DDP], ranks)}
        first, *_ = states(CASES[RESUMED], ranks)
        *_, last = states(CASES[RESUMED], ranks, state=first)
        results["resumed"] = result_of(last)
        torch.save(results, folder / f"{rank}_of_{world_size}.pt")
        torch.distributed.destroy_process_group()


def run_group(folder: Path) -> None:
    """Forks the ranks off one process, so that the imports, most of the time here, are paid once."""
    torch.multiprocessing.start_processes(run_rank, args=(folder,), nprocs=max(WORLD_SIZES), start_method="fork")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the results of every rank of every group lie."""
    path = tmp_path_factory.mktemp("ranks")
    assert wait(start(run_group, path)) == 0
    return path


@pytest.fixture(scope="module")
def alone() -> dict[str, TrainState]:
    return {name: train(case, Ranks()) for name, case in CASES.items()}


def results_of(folder: Path, name: str, world_size: int) -> list[dict[str, object]]:
    return [torch.load(folder / f"{rank}_of_{world_size}.pt")[name] for rank in range(world_size)]


def greatest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("name", CASES)
def test_several_ranks_give_what_one_gives(
    name: str, world_size: int, folder: Path, alone: dict[str, TrainState]
) -> None:
    tolerance = 1e-4 if name in (FLOAT32, RESUMED) else 1e-9
    for result in results_of(folder, name, world_size):
        assert greatest_difference(result["model"], alone[name].model) < tolerance
        for row, expected in zip(result["history"], alone[name].history, strict=True):
            same_time = dataclasses.replace(EpochResult(**row), epoch_seconds=expected.epoch_seconds)
            numbers = pytest.approx(dataclasses.astuple(expected), rel=0, abs=tolerance)
            assert dataclasses.astuple(same_time) == numbers
        assert result["correct"] == correct_in(alone[name])


@pytest.mark.slow
@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("name", CASES)
def test_all_ranks_hold_the_same_bits(name: str, world_size: int, folder: Path) -> None:
    first, *others = results_of(folder, name, world_size)
    for other in others:
        assert greatest_difference(first["model"], other["model"]) == 0
        assert greatest_difference(first["optimizer"], other["optimizer"]) == 0
        assert first["correct"] == other["correct"]


@pytest.mark.slow
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_resumed_run_has_the_bits_of_one_that_was_not_interrupted(world_size: int, folder: Path) -> None:
    for whole, resumed in zip(
        results_of(folder, RESUMED, world_size), results_of(folder, "resumed", world_size), strict=True
    ):
        assert greatest_difference(resumed["model"], whole["model"]) == 0
        assert greatest_difference(resumed["optimizer"], whole["optimizer"]) == 0
        assert resumed["correct"] == whole["correct"]


@pytest.mark.slow
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_ranks_give_what_torchs_own_data_parallel_gives(
    world_size: int, folder: Path, alone: dict[str, TrainState]
) -> None:
    for result in results_of(folder, "ddp", world_size):
        assert greatest_difference(result["model"], alone[DDP].model) < 1e-9


def test_the_cases_really_train(alone: dict[str, TrainState]) -> None:
    for name, case in CASES.items():
        untrained = case.make_network(config_of(case), MNIST_SHAPE, 10).state_dict()
        assert greatest_difference(alone[name].model, untrained) > 1e-4


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_each_row_of_a_batch_belongs_to_one_rank(world_size: int) -> None:
    rows = torch.arange(13)
    taken = [rows[Ranks(rank, world_size).rows(13)].tolist() for rank in range(world_size)]
    assert sorted(row for rank in taken for row in rank) == list(range(13))
    assert max(map(len, taken)) - min(map(len, taken)) <= 1
    assert taken[0][:2] == [0, world_size]


def test_one_process_sums_and_gathers_without_a_process_group() -> None:
    values = torch.tensor([1.0, 2.0])
    assert Ranks().sum_(values) is values
    assert values.tolist() == [1.0, 2.0]
    assert Ranks().gather(values).tolist() == [[1.0, 2.0]]
