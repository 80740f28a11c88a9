from collections.abc import Sequence
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mnist_ray.config.settings import TrainConfig
from mnist_ray.config.variants import variant_config
from mnist_ray.data.image_shape import MNIST_SHAPE
from mnist_ray.models.loss import cross_entropy
from mnist_ray.models.networks import make_network
from mnist_ray.models.stack import Stack, why_not_stacked
from mnist_ray.models.training_pass import TrainingPass
from mnist_ray.noise.random_streams import draws16, stream_key
from mnist_ray.noise.step_streams import SeededStreams
from mnist_ray.optimizers.optimizers import OPTIMIZERS, make_optimizer

CPU = torch.device("cpu")
SMALL = {
    "mlp": {"model": "mlp", "hidden_sizes": (16, 12)},
    "cnn": {"model": "cnn", "hidden_sizes": (3, 4)},
}


class MaskedDropout(nn.Module):
    """Dropout as it is defined, its mask drawn from the run's stream for one step."""

    def __init__(self, seed: int, name: str, rate: float, *, step: int) -> None:
        super().__init__()
        self.key, self.rate = stream_key(seed, name, step), rate

    def forward(self, values: Tensor) -> Tensor:
        draws = draws16([self.key], torch.arange(len(values)), values[0].numel())[0].long() + 32768
        return values * (draws >= self.rate * 65536).view(values.shape) / (1 - self.rate)


def configs_of(runs: int, **settings: object) -> list[TrainConfig]:
    """Runs with different seeds and dropout rates (multiples of 1/65536, so that the mask's rule is exact)."""
    rates = [0.25, 0.5, 0.0][:runs]
    return [variant_config("baseline", {"seed": seed, "dropout": rate, **settings}) for seed, rate in enumerate(rates)]


def batch(runs: int, size: int, *, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    images = torch.randn(runs, size, 1, 28, 28, dtype=dtype, generator=generator)
    return images, torch.randint(10, (runs, size), generator=generator)


def plain_networks(configs: Sequence[TrainConfig], *, step: int) -> list[nn.Sequential]:
    networks = []
    for config in configs:
        network = make_network(config, MNIST_SHAPE, 10)
        for name, child in network.named_children():
            if isinstance(child, nn.Dropout):
                network.set_submodule(name, MaskedDropout(config.seed, name, child.p, step=step))
        networks.append(network)
    return networks


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("model", SMALL)
def test_a_stack_has_the_logits_losses_and_gradients_of_its_plain_networks(
    model: str, batch_norm: bool, runs: int
) -> None:
    configs = configs_of(runs, **SMALL[model], batch_norm=batch_norm, precision="float64")
    stack = Stack([make_network(config, MNIST_SHAPE, 10) for config in configs], device=CPU)
    images, labels = batch(runs, 16, dtype=torch.float64)
    training = TrainingPass(SeededStreams([config.seed for config in configs], 7), torch.arange(16), 16)
    logits = stack.forward(images, training)
    losses, gradient = cross_entropy(logits, labels, smoothing=0.1)
    stack.backward(gradient / 16)
    for run, network in enumerate(plain_networks(configs, step=7)):
        expected = network(images[run])
        torch.testing.assert_close(logits[run], expected.detach(), rtol=0, atol=1e-12)
        loss = functional.cross_entropy(expected, labels[run], label_smoothing=0.1)
        torch.testing.assert_close(losses[run].mean(), loss.detach(), rtol=0, atol=1e-12)
        loss.backward()
        for name, parameter in network.named_parameters():
            torch.testing.assert_close(stack._parameters[name].gradient[run], parameter.grad, rtol=0, atol=1e-12)
        for name, buffer in network.named_buffers():
            torch.testing.assert_close(stack.state_dict(run)[name], buffer, rtol=0, atol=1e-12)
        expected = network.eval()
        for name, child in expected.named_children():
            if isinstance(child, MaskedDropout):
                expected.set_submodule(name, nn.Identity())
        torch.testing.assert_close(stack.forward(images)[run], expected(images[run]).detach(), rtol=0, atol=1e-12)


def trained(configs: Sequence[TrainConfig], *, steps: int, batch_size: int) -> list[dict[str, Tensor]]:
    """Trains the configs as one stack on random images, each run on its seed's own."""
    stack = Stack([make_network(config, MNIST_SHAPE, 10) for config in configs], device=CPU)
    optimizer = make_optimizer(configs[0].optimizer, stack.parameters, configs)
    smoothing = torch.tensor([config.label_smoothing for config in configs])[:, None]
    for step in range(steps):
        images, labels = batches_of(configs, step=step, batch_size=batch_size)
        streams = SeededStreams([config.seed for config in configs], step)
        stack.forward_backward(images, labels, TrainingPass(streams, torch.arange(batch_size), batch_size, smoothing))
        optimizer.step()
    return [stack.state_dict(run) for run in range(len(configs))]


def batches_of(configs: Sequence[TrainConfig], *, step: int, batch_size: int) -> tuple[Tensor, Tensor]:
    images, labels = [], []
    for config in configs:
        generator = torch.Generator().manual_seed(1000 * config.seed + step)
        images.append(torch.randn(batch_size, 1, 28, 28, generator=generator))
        labels.append(torch.randint(10, (batch_size,), generator=generator))
    return torch.stack(images), torch.stack(labels)


DIFFERENT: list[dict[str, object]] = [
    {"seed": 0, "dropout": 0.3, "weight_decay": 1e-5, "learning_rate": 1e-3},
    {"seed": 7, "dropout": 0.0, "weight_decay": 0.0, "learning_rate": 3e-3, "label_smoothing": 0.1},
    {"seed": 2, "dropout": 0.5, "weight_decay": 1e-2, "learning_rate": 1e-3},
]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_gives_the_same_weights_alone_and_in_a_stack(optimizer: str) -> None:
    configs = [variant_config("dropout_batchnorm", {**settings, "optimizer": optimizer}) for settings in DIFFERENT]
    together = trained(configs, steps=30, batch_size=32)
    for run, config in enumerate(configs):
        (alone,) = trained([config], steps=30, batch_size=32)
        assert [name for name in alone if not torch.equal(alone[name], together[run][name])] == []


def test_a_run_without_batch_norm_gives_the_same_weights_alone_and_in_a_stack() -> None:
    configs = [variant_config("dropout", settings) for settings in DIFFERENT]
    together = trained(configs, steps=30, batch_size=64)
    for run, config in enumerate(configs):
        (alone,) = trained([config], steps=30, batch_size=64)
        assert [name for name in alone if not torch.equal(alone[name], together[run][name])] == []


def test_a_cnn_gives_the_same_weights_alone_and_in_a_stack() -> None:
    configs = [variant_config("cnn", {**settings, "hidden_sizes": (16, 16)}) for settings in DIFFERENT]
    together = trained(configs, steps=10, batch_size=16)
    for run, config in enumerate(configs):
        (alone,) = trained([config], steps=10, batch_size=16)
        assert [name for name in alone if not torch.equal(alone[name], together[run][name])] == []


def test_a_run_that_diverges_leaves_its_neighbours_alone() -> None:
    wild = variant_config("dropout_batchnorm", {**DIFFERENT[0], "learning_rate": 1e38})
    calm = variant_config("dropout_batchnorm", DIFFERENT[1])
    broken, neighbour = trained([wild, calm], steps=5, batch_size=16)
    (alone,) = trained([calm], steps=5, batch_size=16)
    assert not all(value.isfinite().all() for value in broken.values())
    assert all(torch.equal(alone[name], neighbour[name]) for name in alone)


def test_a_state_dict_is_a_copy_that_loads_back_and_into_the_plain_network() -> None:
    configs = configs_of(3, **SMALL["mlp"], batch_norm=True)
    networks = [make_network(config, MNIST_SHAPE, 10) for config in configs]
    stack = Stack(networks, device=CPU)
    states = [stack.state_dict(run) for run in range(3)]
    for network, state in zip(networks, states, strict=True):
        assert list(state) == [*(name for name, _ in network.named_parameters()), *dict(network.named_buffers())]
        assert all(torch.equal(value, network.state_dict()[name]) for name, value in state.items())
    for parameter in stack.parameters:
        parameter.zero_()
    assert float(states[0]["fc1.weight"].abs().sum()) > 0
    stack.load_state_dicts(list(reversed(states)))
    assert torch.equal(stack.state_dict(0)["fc1.weight"], states[2]["fc1.weight"])


def test_a_stack_holds_copies_of_the_networks_weights() -> None:
    network = make_network(variant_config("baseline"), MNIST_SHAPE, 10)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    stack = Stack([network], device=CPU)
    stack.parameters[0].fill_(1.0)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_every_parameter_of_every_run_starts_on_a_64_byte_boundary() -> None:
    stack = Stack([make_network(config, MNIST_SHAPE, 10) for config in configs_of(3, hidden_sizes=(13, 7))], device=CPU)
    for value, gradient in stack._parameters.values():
        assert [tensor[run].data_ptr() % 64 for tensor in (value, gradient) for run in range(3)] == [0] * 6


def test_what_is_not_made_of_stacked_layers_is_not_stacked_and_the_reason_is_said() -> None:
    flatten, first, last, relu = nn.Flatten(), nn.Linear(784, 16), nn.Linear(16, 10), nn.ReLU()
    images = nn.Conv2d(1, 2, 3)

    class Own(nn.Sequential):
        """May compute anything."""

    hooked = nn.Linear(16, 10)
    hooked.register_forward_hook(lambda *_: None)
    frozen = nn.Linear(16, 10).requires_grad_(False)
    tied = nn.Linear(16, 16), nn.Linear(16, 16)
    tied[1].weight = tied[0].weight
    reasons = {
        why_not_stacked(network)
        for network in (
            Own(flatten, first, last),
            nn.Sequential(flatten, first, nn.Sigmoid(), last),
            nn.Sequential(flatten, first, relu, nn.Linear(16, 16), relu, last),
            nn.Sequential(flatten, relu, first, last),
            nn.Sequential(flatten, first, frozen),
            nn.Sequential(flatten, first, *tied, last),
        )
    }
    assert reasons == {
        "Own is not a plain nn.Sequential",
        "layer 2 (Sigmoid) has no stacked form",
        "one of its layers is used twice",
        "its first layer has no weights",
        "some of its weights are frozen",
        "some of its layers share weights",
    }
    for child in (
        hooked,
        nn.Conv2d(2, 2, 3, stride=2),
        nn.Conv2d(2, 2, 3, padding="same"),
        nn.Conv2d(2, 2, 3, padding=(0, 1)),
        nn.Conv2d(2, 2, 3, groups=2),
        nn.Conv2d(2, 2, 3, padding_mode="reflect"),
        nn.BatchNorm2d(2, affine=False),
        nn.BatchNorm2d(2, momentum=None),
        nn.BatchNorm2d(2, track_running_stats=False),
        nn.MaxPool2d(2, stride=1),
        nn.MaxPool2d((2, 3)),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Flatten(0),
        nn.Dropout(1.0),
    ):
        reason = why_not_stacked(nn.Sequential(images, child))
        assert reason == f"layer 1 ({type(child).__name__}) has no stacked form with these arguments"


def test_a_sequential_of_stacked_layers_is_stacked_with_or_without_biases() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d((2, 2)),
        nn.Dropout(0.25),
        nn.Flatten(),
        nn.Linear(4 * 4 * 5, 6),
        nn.BatchNorm1d(6),
    ).double()
    assert why_not_stacked(network) is None
    images = torch.randn(7, 3, 8, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(7) % 6
    plain = deepcopy(network)
    stack = Stack([network], device=CPU)
    # A bias that is not zero takes part, though batch norm cancels it: the kept statistics include it.
    training = TrainingPass(SeededStreams([3], 2), torch.arange(7), 7)
    losses, _ = stack.forward_backward(images[None], labels[None], training)
    plain[4] = MaskedDropout(3, "4", 0.25, step=2)
    expected = functional.cross_entropy(plain(images), labels)
    expected.backward()
    torch.testing.assert_close(losses[0], expected.detach(), rtol=0, atol=1e-12)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(stack._parameters[name].gradient[0], parameter.grad, rtol=0, atol=1e-12)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(stack.state_dict(0)[name], buffer, rtol=0, atol=1e-12)
