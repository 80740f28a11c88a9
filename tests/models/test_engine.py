"""The two engines: which one a config gets, and that both compute the same numbers."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mnist_ray.config.own_code import giving, use_model
from mnist_ray.config.settings import TrainConfig
from mnist_ray.config.variants import VARIANTS, variant_config
from mnist_ray.data.image_shape import MNIST_SHAPE
from mnist_ray.models.engine import Engine, engine_of, make_engine
from mnist_ray.models.modules import Modules
from mnist_ray.models.networks import make_network
from mnist_ray.models.ranks import Ranks
from mnist_ray.models.stack import Stack
from mnist_ray.models.training_pass import TrainingPass
from mnist_ray.noise.step_streams import SeededStreams
from mnist_ray.results.train_state import TrainState
from mnist_ray.training import loop
from mnist_ray.training.data import prepare_data
from mnist_ray.training.loop import Divergence, Training
from tests.support.own_networks import write_nets
from tests.support.tiny_digits import tiny_digits

CPU = torch.device("cpu")
STACKED_VARIANTS = [name for name in VARIANTS if name != "resnet"]
# What takes part in a step besides the network.
EVERYTHING: dict[str, object] = {
    "dataset": "digits",
    "label_smoothing": 0.1,
    "gradient_clip_norm": 1.0,
    "weight_decay": 1e-3,
}


def made(configs: Sequence[TrainConfig]) -> Engine:
    return make_engine([make_network(config, MNIST_SHAPE, 10) for config in configs], device=CPU)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("settings", [{}, {"optimizer": "sgd"}, {"precision": "bf16"}, {"dropout": 0.0}])
def test_the_config_alone_chooses_the_engine(variant: str, settings: dict[str, object]) -> None:
    expected = Modules if variant == "resnet" else Stack
    for size in (1, 2, 5):
        configs = [variant_config(variant, {**settings, "seed": seed}) for seed in range(size)]
        engine = made(configs)
        assert type(engine) is expected
        assert engine_of(make_network(configs[0], MNIST_SHAPE, 10), Ranks()) is expected
        assert engine_of(make_network(configs[0], MNIST_SHAPE, 10), Ranks(0, 2)) is Modules


def trained(
    configs: Sequence[TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
    make: Callable[..., Engine] = make_engine,
    *,
    states: Sequence[TrainState] | None = None,
    stop_after: int = 1000,
) -> list[TrainState]:
    monkeypatch.setattr(loop, "make_engine", make)
    training = Training(configs, prepare_data(configs[0], tiny_digits(), device=CPU), device=CPU, states=states)
    last: dict[int, TrainState] = {}
    while training.active and len(next(iter(last.values()), TrainState((), {}, {})).history) < stop_after:
        for run, reached in training.train_epoch().items():
            assert not isinstance(reached, Divergence)
            last[run] = training.state(run)
    return [last[run] for run in range(len(configs))]


def greatest_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


@pytest.mark.parametrize("variant", STACKED_VARIANTS)
@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        pytest.param({"precision": "float64", "epochs": 3, "train_limit": 150}, 1e-9, id="float64, a whole run"),
        # Adam blows up rounding where batch norm cancels a gradient, also if only the rows of a batch are reordered.
        pytest.param(
            {"optimizer": "sgd", "learning_rate": 0.05, "epochs": 1, "train_limit": 356, "global_batch_size": 16},
            1e-4,
            id="float32, 20 steps",
        ),
    ],
)
def test_both_engines_compute_the_same_numbers(
    variant: str, settings: dict[str, object], tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = variant_config(variant, {**EVERYTHING, **settings})
    (stacked,) = trained([config], monkeypatch)
    (plain,) = trained([config], monkeypatch, Modules)
    assert greatest_difference(plain.model, stacked.model) < tolerance
    assert greatest_difference(plain.optimizer, stacked.optimizer) < tolerance
    for mine, other in zip(plain.history, stacked.history, strict=True):
        assert mine.train_loss == pytest.approx(other.train_loss, rel=0, abs=tolerance)
        assert mine.val_loss == pytest.approx(other.val_loss, rel=0, abs=tolerance)
        assert (mine.train_accuracy, mine.val_accuracy) == (other.train_accuracy, other.val_accuracy)
    assert np.array_equal(plain.correct, stacked.correct)


def test_a_run_goes_on_in_the_other_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**EVERYTHING, "precision": "float64", "epochs": 4, "train_limit": 200}
    config = variant_config("dropout_batchnorm", settings)
    (whole,) = trained([config], monkeypatch)
    for first, second in ((make_engine, Modules), (Modules, make_engine)):
        half = trained([config], monkeypatch, first, stop_after=2)
        (resumed,) = trained([config], monkeypatch, second, states=half)
        assert greatest_difference(resumed.model, whole.model) < 1e-9


RESNET: dict[str, object] = {**EVERYTHING, "hidden_sizes": (4, 6), "dropout": 0.3, "epochs": 3, "train_limit": 100}


def test_modules_have_the_same_bits_alone_in_a_stack_and_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    own = [{"seed": 0}, {"seed": 1, "dropout": 0.0, "learning_rate": 1e-3}, {"seed": 0, "weight_decay": 1e-2}]
    configs = [variant_config("resnet", {**RESNET, "early_stopping_patience": None, **each}) for each in own]
    together = trained(configs, monkeypatch)
    for config, expected in zip(configs, together, strict=True):
        (alone,) = trained([config], monkeypatch)
        assert greatest_difference(alone.model, expected.model) == 0
        assert greatest_difference(alone.optimizer, expected.optimizer) == 0
        (resumed,) = trained([config], monkeypatch, states=trained([config], monkeypatch, stop_after=1))
        assert greatest_difference(resumed.model, expected.model) == 0
    assert greatest_difference(together[0].model, together[2].model) > 1e-4


def test_a_run_that_leaves_early_leaves_the_others_their_bits() -> None:
    configs = [variant_config("resnet", {**RESNET, "seed": seed}) for seed in range(3)]
    data = prepare_data(configs[0], tiny_digits(), device=CPU)
    together, alone = Training(configs, data, device=CPU), Training(configs[1:2], data, device=CPU)
    together.train_epoch()
    together.stop([0, 2])
    while together.active:
        together.train_epoch()
    while alone.active:
        alone.train_epoch()
    assert greatest_difference(together.state(1).model, alone.state(0).model) == 0


class Noisy(nn.Module):
    """Draws from every global generator."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 10)

    def forward(self, images: Tensor) -> Tensor:
        scale = torch.rand(()) + random.random() + np.random.rand()
        return self.fc1(images.flatten(1)) * scale


def test_the_global_generators_depend_on_seed_step_and_rank_alone() -> None:
    images, labels = torch.ones(1, 4, 1, 28, 28), torch.zeros(1, 4, dtype=torch.int64)
    torch.manual_seed(0)
    network = Noisy()
    state = network.state_dict()

    def loss(seed: int, step: int, rank: int = 0) -> float:
        torch.manual_seed(seed + 100 * step)  # What ran before doesn't matter.
        network.load_state_dict(state)
        engine = make_engine([network], device=CPU, ranks=Ranks(rank))
        streams = SeededStreams([seed], step)
        return float(engine.forward_backward(images, labels, TrainingPass(streams, torch.arange(4), 4))[0])

    assert loss(0, 0) == loss(0, 0)
    assert len({loss(0, 0), loss(0, 1), loss(1, 0), loss(0, 0, rank=1)}) == 4


def test_a_network_that_draws_from_the_global_generators_has_the_same_bits_rerun_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_nets(
        tmp_path,
        "import random\nimport numpy\n\n\nclass Noisy(Net):\n    def forward(self, images):\n"
        "        draws = torch.rand(()), random.random(), numpy.random.rand()\n"
        "        return super().forward(images * sum(draws))\n",
    )
    with giving([]):
        settings = {"dataset": "digits", "epochs": 3, "train_limit": 150, "model": use_model(f"{path}:Noisy")}
        config = variant_config("baseline", settings)
        (whole,) = trained([config], monkeypatch)
        (again,) = trained([config], monkeypatch)
        half = trained([config], monkeypatch, stop_after=1)
        (resumed,) = trained([config], monkeypatch, states=half)
    for other in (again, resumed):
        assert greatest_difference(other.model, whole.model) == 0
        assert greatest_difference(other.optimizer, whole.optimizer) == 0


def test_an_engine_of_modules_evaluates_without_dropout_and_keeps_plain_names() -> None:
    config = variant_config("resnet", {**RESNET, "dropout": 0.5, "precision": "float64"})
    plain = make_network(config, MNIST_SHAPE, 10).eval()
    engine = made([config, config])
    images = torch.rand(6, 1, 28, 28, dtype=torch.float64)
    labels = torch.arange(6)
    losses, correct = engine.evaluate(images, labels)
    expected = nn.functional.cross_entropy(plain(images), labels, reduction="sum").detach()
    torch.testing.assert_close(losses, expected.expand(2), rtol=0, atol=1e-12)
    assert correct.tolist() == [(plain(images).argmax(1) == labels).tolist()] * 2
    assert list(engine.state_dict(1)) == list(plain.state_dict())


@pytest.mark.parametrize(
    ("device", "backend"),
    [
        ("cpu", "gloo"),
        pytest.param(
            "cuda",
            "nccl",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
        ),
    ],
)
def test_a_group_of_one_rank_computes_what_a_process_without_a_group_does(
    device: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    config = variant_config("resnet", {**RESNET, "precision": "float64"})
    place = torch.device(device)
    images = torch.rand(1, 12, 1, 28, 28, dtype=torch.float64, device=place)
    labels = torch.arange(12, device=place)[None] % 10
    torch.distributed.init_process_group(backend, init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        plain, shared = (Modules([make_network(config, MNIST_SHAPE, 10)], device=place) for _ in range(2))
        shared.share()
        for step in range(3):
            training = TrainingPass(SeededStreams([0], step), torch.arange(12, device=place), 12)
            results = [engine.forward_backward(images, labels, training) for engine in (plain, shared)]
            torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-9)
            torch.testing.assert_close(shared.gradients[0], plain.gradients[0], rtol=0, atol=1e-9)
        assert greatest_difference(shared.state_dict(0), plain.state_dict(0)) < 1e-9
    finally:
        torch.distributed.destroy_process_group()
