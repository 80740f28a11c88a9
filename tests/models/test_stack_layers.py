"""Every stacked layer against autograd over K plain torch.nn layers, in float64."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mnist_ray.models import stack_layers as layers
from mnist_ray.models.stack_layers import Layer, Parameter
from mnist_ray.models.training_pass import TrainingPass
from mnist_ray.noise.random_streams import draws16, stream_key
from mnist_ray.noise.step_streams import SeededStreams

TOLERANCE = {"rtol": 0, "atol": 1e-12}
CPU = torch.device("cpu")
stacks_of_one_and_three = pytest.mark.parametrize("runs", [1, 3])


def one_pass(runs: int, batch: int, *, step: int = 0) -> TrainingPass:
    return TrainingPass(SeededStreams(range(runs), step), torch.arange(batch), batch)


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def randomized(modules: Sequence[nn.Module]) -> list[nn.Module]:
    for number, module in enumerate(modules):
        for parameter in module.parameters():
            parameter.data = random_tensor(*parameter.shape, seed=100 + number)
    return list(modules)


def stacked(modules: Sequence[nn.Module], name: str) -> Parameter:
    value = torch.stack([module.get_parameter(name).detach() for module in modules])
    return Parameter(value, torch.full_like(value, torch.nan))


def check(layer: Layer, references: Sequence[nn.Module], inputs: Tensor, training: TrainingPass | None) -> None:
    """Holds outputs and gradients of a layer by its inputs to the references', run by run."""
    expected_inputs = inputs.clone().requires_grad_()
    expected = torch.stack([module(values) for module, values in zip(references, expected_inputs, strict=True)])
    outputs = layer.forward(inputs, training)
    torch.testing.assert_close(outputs, expected.detach(), **TOLERANCE)
    gradient = random_tensor(*expected.shape, seed=1)
    expected.backward(gradient)
    torch.testing.assert_close(layer.backward(gradient), expected_inputs.grad, **TOLERANCE)


def check_parameter(parameter: Parameter, references: Sequence[nn.Module], name: str) -> None:
    expected = torch.stack([module.get_parameter(name).grad for module in references])
    torch.testing.assert_close(parameter.gradient, expected, **TOLERANCE)


@stacks_of_one_and_three
@pytest.mark.parametrize("has_bias", [True, False])
def test_linear_equals_plain_torch(runs: int, has_bias: bool) -> None:
    plain = randomized([nn.Linear(12, 5, bias=has_bias, dtype=torch.float64) for _ in range(runs)])
    weight, bias = stacked(plain, "weight"), stacked(plain, "bias") if has_bias else None
    check(layers.Linear(weight, bias, torch.float64), plain, random_tensor(runs, 7, 12), one_pass(runs, 7))
    check_parameter(weight, plain, "weight")
    if bias is not None:
        check_parameter(bias, plain, "bias")


@stacks_of_one_and_three
@pytest.mark.parametrize("has_bias", [True, False])
def test_conv2d_equals_plain_torch(runs: int, has_bias: bool) -> None:
    plain = randomized([nn.Conv2d(2, 3, 5, padding=2, bias=has_bias, dtype=torch.float64) for _ in range(runs)])
    weight, bias = stacked(plain, "weight"), stacked(plain, "bias") if has_bias else None
    layer = layers.Conv2d(weight, bias, padding=2, dtype=torch.float64)
    check(layer, plain, random_tensor(runs, 4, 2, 9, 8), one_pass(runs, 4))
    check_parameter(weight, plain, "weight")
    if bias is not None:
        check_parameter(bias, plain, "bias")


@stacks_of_one_and_three
@pytest.mark.parametrize("kind", [layers.Linear, layers.Conv2d])
def test_a_first_layer_has_the_same_parameter_gradients_without_one_by_the_images(runs: int, kind: type) -> None:
    shape, outputs = ((1, 6, 6), (2, 6, 6)) if kind is layers.Conv2d else ((8,), (4,))
    size = (2, 1, 3, 3) if kind is layers.Conv2d else (4, 8)
    gradients = []
    for whole in (True, False):
        weight = Parameter(random_tensor(runs, *size), torch.full((runs, *size), torch.nan, dtype=torch.float64))
        bias = Parameter(random_tensor(runs, size[0]), torch.full((runs, size[0]), torch.nan, dtype=torch.float64))
        extra = {"padding": 1} if kind is layers.Conv2d else {}
        layer = kind(weight, bias, dtype=torch.float64, **extra)
        layer.forward(random_tensor(runs, 5, *shape), one_pass(runs, 5))
        (layer.backward if whole else layer.backward_parameters)(random_tensor(runs, 5, *outputs, seed=1))
        gradients.append((weight.gradient, bias.gradient))
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert torch.equal(gradients[0][1], gradients[1][1])


@stacks_of_one_and_three
@pytest.mark.parametrize(("kind", "shape"), [(nn.BatchNorm1d, (6,)), (nn.BatchNorm2d, (6, 3, 4))])
def test_batch_norm_equals_plain_torch_in_training_and_in_evaluation(
    runs: int, kind: type[nn.BatchNorm1d | nn.BatchNorm2d], shape: tuple[int, ...]
) -> None:
    plain = randomized([kind(6, dtype=torch.float64) for _ in range(runs)])
    weight, bias = stacked(plain, "weight"), stacked(plain, "bias")
    names = ("running_mean", "running_var", "num_batches_tracked")
    running = {name: torch.stack([module.get_buffer(name) for module in plain]) for name in names}
    layer = layers.BatchNorm(weight, bias, running, epsilon=1e-5, momentum=0.1)
    for step in range(3):
        for module in plain:
            module.zero_grad()
        check(layer, plain, 2 + 3 * random_tensor(runs, 8, *shape, seed=step), one_pass(runs, 8))
        check_parameter(weight, plain, "weight")
        check_parameter(bias, plain, "bias")
    for name in names:
        expected = torch.stack([module.get_buffer(name) for module in plain])
        torch.testing.assert_close(running[name], expected, **TOLERANCE)
    inputs = random_tensor(runs, 8, *shape, seed=9)
    expected = torch.stack([module.eval()(values) for module, values in zip(plain, inputs, strict=True)])
    torch.testing.assert_close(layer.forward(inputs, None), expected.detach(), **TOLERANCE)


def test_batch_norm_in_evaluation_leaves_its_running_statistics_alone() -> None:
    weight, bias = (Parameter(torch.ones(1, 2), torch.zeros(1, 2)) for _ in range(2))
    running = {
        "running_mean": torch.zeros(1, 2),
        "running_var": torch.ones(1, 2),
        "num_batches_tracked": torch.zeros(1, dtype=torch.int64),
    }
    layers.BatchNorm(weight, bias, running, epsilon=1e-5, momentum=0.1).forward(torch.full((1, 3, 2), 5.0), None)
    assert running["running_mean"].tolist() == [[0.0, 0.0]]
    assert running["running_var"].tolist() == [[1.0, 1.0]]
    assert running["num_batches_tracked"].tolist() == [0]


@stacks_of_one_and_three
def test_relu_equals_plain_torch_at_zero_too(runs: int) -> None:
    inputs = random_tensor(runs, 6, 10)
    inputs[:, 0] = 0.0
    check(layers.ReLU(), [nn.ReLU()] * runs, inputs, one_pass(runs, 6))


@stacks_of_one_and_three
@pytest.mark.parametrize("side", [8, 7])
def test_max_pool2d_equals_plain_torch_on_even_and_odd_sides(runs: int, side: int) -> None:
    check(layers.MaxPool2d(), [nn.MaxPool2d(2)] * runs, random_tensor(runs, 4, 3, side, side), one_pass(runs, 4))


@stacks_of_one_and_three
def test_flatten_equals_plain_torch(runs: int) -> None:
    check(layers.Flatten(), [nn.Flatten()] * runs, random_tensor(runs, 4, 2, 3, 5), one_pass(runs, 4))


class MaskedDropout(nn.Module):
    """Dropout as it is defined, with the kept units given."""

    def __init__(self, kept: Tensor, rate: float) -> None:
        super().__init__()
        self.kept, self.rate = kept, rate

    def forward(self, values: Tensor) -> Tensor:
        return values * self.kept.view(values.shape) / (1 - self.rate)


@stacks_of_one_and_three
@pytest.mark.parametrize("shape", [(10,), (3, 4, 5)])
def test_dropout_equals_its_definition_with_the_mask_that_its_stream_draws(runs: int, shape: tuple[int, ...]) -> None:
    rates = [0.25, 0.5, 0.0][:runs]
    layer = layers.Dropout("dropout1", rates, dtype=torch.float64, device=CPU)
    keys = [stream_key(seed, "dropout1", 4) for seed in range(runs)]
    draws = draws16(keys, torch.arange(32), torch.Size(shape).numel()).to(torch.int64) + 32768
    kept = [draw >= rate * 65536 for draw, rate in zip(draws, rates, strict=True)]
    references = [MaskedDropout(mask, rate) for mask, rate in zip(kept, rates, strict=True)]
    check(layer, references, random_tensor(runs, 32, *shape), one_pass(runs, 32, step=4))
    assert 0.15 < 1 - kept[0].double().mean() < 0.35


def test_dropout_keeps_the_mean_and_drops_at_its_rate() -> None:
    layer = layers.Dropout("dropout1", [0.3], dtype=torch.float64, device=CPU)
    outputs = layer.forward(torch.ones(1, 1000, 1000, dtype=torch.float64), one_pass(1, 1000))
    # A million draws: four standard deviations.
    assert abs(float((outputs == 0).double().mean()) - 0.3) < 4 * (0.3 * 0.7 / 1e6) ** 0.5
    assert abs(float(outputs.mean()) - 1) < 4 * (0.3 / 0.7 / 1e6) ** 0.5
    assert outputs.unique().tolist() == [0.0, 65536 / (65536 - 19661)]


def test_dropout_is_the_identity_in_evaluation_and_at_rate_zero() -> None:
    inputs = random_tensor(1, 4, 6)
    layer = layers.Dropout("dropout1", [0.5], dtype=torch.float64, device=CPU)
    assert torch.equal(layer.forward(inputs, None), inputs)
    off = layers.Dropout("dropout1", [0.0], dtype=torch.float64, device=CPU)
    assert torch.equal(off.forward(inputs, one_pass(1, 4)), inputs)
    assert torch.equal(off.backward(inputs), inputs)


def test_a_rate_just_below_one_still_keeps_finite_values() -> None:
    layer = layers.Dropout("dropout1", [0.9999999], dtype=torch.float64, device=CPU)
    outputs = layer.forward(torch.ones(1, 64, 4096, dtype=torch.float64), one_pass(1, 64))
    assert outputs.unique().tolist() == [0.0, 65536.0]


def test_dropout_draws_other_noise_in_each_step_run_and_layer() -> None:
    first = layers.Dropout("dropout1", [0.5, 0.5], dtype=torch.float32, device=CPU)
    second = layers.Dropout("dropout2", [0.5, 0.5], dtype=torch.float32, device=CPU)
    passes = [(first, one_pass(2, 8)), (first, one_pass(2, 8, step=1)), (second, one_pass(2, 8))]
    masks = [mask for layer, training in passes for mask in layer.forward(torch.ones(2, 8, 64), training)]
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == 6


def test_bf16_rounds_the_inputs_of_a_matrix_product_and_keeps_float32_outside() -> None:
    plain = nn.Linear(16, 4)
    weight, bias = stacked([plain], "weight"), stacked([plain], "bias")
    layer = layers.Linear(weight, bias, torch.bfloat16)
    inputs = random_tensor(1, 8, 16).float()
    outputs = layer.forward(inputs, one_pass(1, 8))
    rounded = functional.linear(inputs[0].bfloat16(), plain.weight.bfloat16(), plain.bias.bfloat16()).float()
    assert outputs.dtype == torch.float32
    torch.testing.assert_close(outputs[0], rounded.detach(), rtol=0, atol=2**-7)
    layer.backward(outputs)
    expected = outputs[0].bfloat16().T.float() @ inputs[0].bfloat16().float()
    torch.testing.assert_close(weight.gradient[0], expected.detach(), rtol=2**-7, atol=2**-6)
    assert weight.gradient.dtype == torch.float32
