"""Training on a GPU: stacks, recorded steps and precisions, against runs alone, plain steps and a CPU."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from mnist_ray.config.settings import TrainConfig
from mnist_ray.config.variants import variant_config
from mnist_ray.data.image_shape import MNIST_SHAPE
from mnist_ray.data.training_data import TrainingData
from mnist_ray.evaluation.inference import log_probabilities
from mnist_ray.models.networks import make_network
from mnist_ray.optimizers.optimizers import OPTIMIZERS
from mnist_ray.results.train_state import TrainState
from mnist_ray.training.data import prepare_data
from mnist_ray.training.loop import Divergence, Training, fit
from tests.support.tiny_digits import tiny_digits

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: there is none on this machine"),
]

CPU, GPU = torch.device("cpu"), torch.device("cuda")
# 1,296 examples: 20 whole batches and a partial one in each epoch.
BASE = {"dataset": "digits", "train_limit": 1440, "batch_norm": True, "epochs": 1}
OWN: list[dict[str, object]] = [
    {"seed": 0, "dropout": 0.0},
    {"seed": 0, "dropout": 0.3, "weight_decay": 1e-4},
    {"seed": 1, "dropout": 0.5, "learning_rate": 3e-3, "label_smoothing": 0.1},
    {"seed": 2, "dropout": 0.2, "schedule": "cosine", "warmup_epochs": 0.5, "gradient_clip_norm": 0.5},
]
NETWORKS = {
    "mlp": {},
    "cnn": {"model": "cnn", "hidden_sizes": (8, 16)},
    "augmented": {"augmentation": "affine_elastic"},
}
# The other engine.
RESNET: dict[str, object] = {"model": "resnet", "hidden_sizes": (8, 16)}


def configs_of(network: str, **settings: object) -> list[TrainConfig]:
    return [variant_config("dropout", {**BASE, **NETWORKS[network], **own, **settings}) for own in OWN]


def data_of(config: TrainConfig, device: torch.device = GPU) -> TrainingData:
    return prepare_data(config, tiny_digits(1440), device=device)


def trained(
    configs: Sequence[TrainConfig], *, device: torch.device = GPU, tabled: bool | None = None
) -> list[TrainState | Divergence]:
    training = Training(configs, data_of(configs[0], device), device=device, tabled=tabled)
    last: dict[int, TrainState | Divergence] = {}
    while training.active:
        for run, result in training.train_epoch().items():
            last[run] = result if isinstance(result, Divergence) else training.state(run)
    return [last[run] for run in range(len(configs))]


def assert_close(actual: object, expected: object, tolerance: float) -> None:
    assert isinstance(actual, TrainState)
    assert isinstance(expected, TrainState)
    assert len(actual.history) == len(expected.history)
    for name, value in actual.model.items():
        torch.testing.assert_close(value, expected.model[name], rtol=0, atol=tolerance)
    # In float32, rounding may decide between two classes.
    if tolerance <= 1e-9:
        assert np.array_equal(actual.correct, expected.correct)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_run_in_a_stack_has_the_weights_that_it_has_alone(network: str) -> None:
    # Rounding differences grow with the steps: 20 of them in float32, a whole run in float64.
    for settings, tolerance in (({}, 1e-4), ({"precision": "float64", "epochs": 3}, 1e-9)):
        configs = configs_of(network, **settings)
        for config, together in zip(configs, trained(configs), strict=True):
            assert_close(together, trained([config])[0], tolerance)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
@pytest.mark.parametrize("network", NETWORKS)
def test_recorded_steps_do_what_steps_do_that_are_not_recorded(network: str, optimizer: str) -> None:
    configs = configs_of(network, optimizer=optimizer)
    for recorded, plain in zip(trained(configs), trained(configs, tabled=False), strict=True):
        assert_close(recorded, plain, 1e-4)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_gpu_gives_the_weights_of_a_cpu(optimizer: str) -> None:
    configs = configs_of("mlp", optimizer=optimizer, precision="float64", epochs=2)
    for on_gpu, on_cpu in zip(trained(configs), trained(configs, device=CPU), strict=True):
        assert_close(on_gpu, on_cpu, 1e-9)


def test_modules_on_a_gpu_give_the_weights_of_a_cpu() -> None:
    configs = configs_of("mlp", **RESNET, precision="float64", train_limit=300)
    for on_gpu, on_cpu in zip(trained(configs), trained(configs, device=CPU), strict=True):
        assert_close(on_gpu, on_cpu, 1e-9)


@pytest.mark.parametrize("settings", [{}, RESNET])
def test_a_rerun_has_the_same_bits(settings: dict[str, object]) -> None:
    configs = configs_of("mlp", **settings, epochs=3)
    for first, second in zip(trained(configs), trained(configs), strict=True):
        assert_close(first, second, 0.0)


def test_a_stack_that_loses_a_run_goes_on_with_the_others() -> None:
    configs = configs_of("mlp", epochs=2, precision="float64", optimizer="sgd")
    broken = [configs[0], configs[1].model_copy(update={"learning_rate": 1e38}), *configs[2:]]
    with_it, without = trained(broken), trained([configs[0], *configs[2:]])
    assert isinstance(with_it[1], Divergence)
    for actual, expected in zip([with_it[0], *with_it[2:]], without, strict=True):
        assert_close(actual, expected, 1e-9)


def test_recorded_steps_are_recorded_again_when_the_stack_becomes_smaller() -> None:
    configs = configs_of("mlp", epochs=3)
    training = Training(configs, data_of(configs[0]), device=GPU)
    training.train_epoch()
    training.stop([0, 2])
    while training.active:
        training.train_epoch()
    for run in (1, 3):
        history = training.state(run).history
        assert [row.epoch for row in history] == [1, 2, 3]
        assert history[-1].train_loss < history[0].train_loss


@pytest.mark.parametrize("precision", ["bf16", "tf32", "float32"])
def test_every_precision_learns(precision: str) -> None:
    for state in trained(configs_of("mlp", precision=precision, epochs=8)):
        assert isinstance(state, TrainState)
        assert state.history[-1].val_accuracy > 0.9


def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one() -> None:
    config = configs_of("mlp", epochs=3)[1]
    states = list(fit(config, data_of(config), device=GPU))
    *_, resumed = fit(config, data_of(config), device=GPU, state=states[0])
    assert_close(resumed, states[-1], 0.0)


def test_log_probabilities_are_those_of_a_cpu() -> None:
    config = configs_of("mlp")[0]
    images = tiny_digits(200).images
    of_device = [
        log_probabilities(
            [make_network(config, MNIST_SHAPE, 10).eval().to(device)],
            images,
            normalizations=[(0.1, 0.3)],
            batch_size=64,
            device=device,
        )
        for device in (CPU, GPU)
    ]
    torch.testing.assert_close(of_device[1], of_device[0], rtol=0, atol=1e-4)


def test_the_memory_of_a_run_is_that_of_its_weights_gradients_optimizer_and_activations() -> None:
    peaks = {}
    for count in (8, 72):
        configs = [variant_config("dropout_batchnorm", {**BASE, "seed": seed}) for seed in range(count)]
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        trained(configs)
        peaks[count] = torch.cuda.max_memory_allocated()
    of_values = 4 * 4 * 243_000
    of_activations = 64 * (4 * 784 + 24 * (256 + 128 + 64)) * 4
    assert (peaks[72] - peaks[8]) / 64 < 1.2 * (of_values + of_activations), peaks
