import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mnist_ray.config.settings import TrainConfig
from mnist_ray.config.variants import variant_config
from mnist_ray.optimizers.optimizers import OPTIMIZERS, SCHEDULES, learning_rate, make_optimizer


def schedule(name: str, **settings: object) -> TrainConfig:
    return variant_config("baseline", {"schedule": name, "learning_rate": 0.1, "epochs": 10, **settings})


def test_a_constant_schedule_stays_at_the_learning_rate() -> None:
    assert {learning_rate(step, 5, schedule("constant")) for step in range(50)} == {0.1}


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.01), (4, 0.05), (9, 0.1), (10, 0.1), (20, 0.0853553391), (30, 0.05), (40, 0.0146446609), (49, 0.0001541333)],
)
def test_cosine_warms_up_over_two_of_ten_epochs_and_falls_to_zero(step: int, expected: float) -> None:
    config = schedule("cosine", warmup_epochs=2.0)
    assert learning_rate(step, 5, config) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.1), (14, 0.1), (15, 0.05), (29, 0.05), (30, 0.025), (45, 0.0125), (49, 0.0125)]
)
def test_a_step_schedule_drops_after_every_third_epoch(step: int, expected: float) -> None:
    config = schedule("step", step_epochs=3, step_factor=0.5)
    assert learning_rate(step, 5, config) == pytest.approx(expected, abs=1e-15)


def test_a_warm_up_may_be_a_fraction_of_an_epoch() -> None:
    config = schedule("constant", warmup_epochs=0.5)
    assert [learning_rate(step, 4, config) for step in range(3)] == pytest.approx([0.05, 0.1, 0.1])


def test_a_warm_up_that_ends_within_a_step_goes_on_at_the_peak() -> None:
    # 1.5 epochs of 3 steps are 4.5 steps; the fifth step starts before their end, where the cosine has not begun.
    config = schedule("cosine", warmup_epochs=1.5, epochs=2)
    rates = [learning_rate(step, 3, config) for step in range(6)]
    assert rates == pytest.approx([0.1 / 4.5, 0.2 / 4.5, 0.3 / 4.5, 0.4 / 4.5, 0.1, 0.075])


def test_a_run_may_warm_up_to_its_very_end() -> None:
    config = schedule("cosine", warmup_epochs=1.0, epochs=1)
    assert [learning_rate(step, 2, config) for step in range(2)] == pytest.approx([0.05, 0.1])


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 20), st.integers(1, 50), st.floats(0, 1), st.floats(1e-6, 10))
def test_a_learning_rate_is_positive_and_never_above_its_peak(
    name: str, epochs: int, steps_per_epoch: int, warmup_share: float, peak: float
) -> None:
    config = schedule(name, epochs=epochs, warmup_epochs=warmup_share * epochs, learning_rate=peak)
    for step in range(epochs * steps_per_epoch):
        assert 0 < learning_rate(step, steps_per_epoch, config) <= peak * (1 + 1e-12)


def parameter_after_steps(name: str, gradients: list[float], **settings: object) -> float:
    parameter = torch.tensor([1.0], dtype=torch.float64)
    parameter.grad = torch.zeros_like(parameter)
    config = variant_config("baseline", {"optimizer": name, "learning_rate": 0.1, **settings})
    optimizer = make_optimizer(name, [parameter], [config])
    for gradient in gradients:
        parameter.grad.fill_(gradient)
        optimizer.step()
    return parameter.item()


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        # A first step of Adam has the length of the learning rate: m / sqrt(v) is the gradient's sign.
        ("adam", {}, 0.9),
        ("adamw", {}, 0.9),
        ("sgd", {}, 0.95),
        # v = 0.01 g^2 after one step, so its root is a tenth of the gradient.
        ("rmsprop", {}, 0.0),
        # lambda * w joins the gradient: 0.5 + 0.4 * 1.
        ("sgd", {"weight_decay": 0.4}, 0.91),
        # AdamW shrinks w by learning_rate * lambda * w besides.
        ("adamw", {"weight_decay": 0.4}, 0.86),
        ("adam", {"weight_decay": 0.4}, 0.9),
    ],
)
def test_a_first_step_is_what_the_optimizers_definition_says(
    name: str, settings: dict[str, object], expected: float
) -> None:
    assert parameter_after_steps(name, [0.5], **settings) == pytest.approx(expected, abs=1e-6)


def test_momentum_adds_to_the_steps_of_sgd() -> None:
    assert parameter_after_steps("sgd", [0.5, 0.5]) == pytest.approx(1 - 0.05 - 0.095)
    assert parameter_after_steps("sgd", [0.5, 0.5], momentum=0.0) == pytest.approx(0.9)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_run_of_a_stack_has_its_own_learning_rate_and_weight_decay(name: str) -> None:
    parameters = [torch.ones(16) for _ in range(2)]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    settings = [{"learning_rate": 0.1, "weight_decay": 0.01}, {"learning_rate": 0.2, "weight_decay": 0.0}]
    configs = [variant_config("baseline", {"optimizer": name, **chosen}) for chosen in settings]
    optimizer = make_optimizer(name, parameters, configs)
    optimizer.step()
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.1, 0.01), (0.2, 0.0)]
    assert parameters[0].max() < 1
    assert torch.equal(parameters[1], torch.ones(16))
