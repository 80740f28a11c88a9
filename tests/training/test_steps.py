"""Runs in a stack have the bits that they have alone: whole trainings, whatever the neighbours do."""

import gc
import weakref
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mnist_ray.config.settings import TrainConfig
from mnist_ray.config.variants import variant_config
from mnist_ray.data.training_data import TrainingData
from mnist_ray.models.ranks import Ranks
from mnist_ray.results.train_state import TrainState
from mnist_ray.training.data import prepare_data
from mnist_ray.training.loop import Divergence, Training, fit
from tests.support.tiny_digits import tiny_digits
from tests.support.warm_processes import call, peak_memory

CPU = torch.device("cpu")

# 450 training examples: the last of 8 batches has 2 rows.
BASE = {"dataset": "digits", "train_limit": 500, "epochs": 3, "hidden_sizes": (24, 10), "batch_norm": True}
# Each run differs from its neighbours in all that a stack lets differ.
OWN: list[dict[str, object]] = [
    {"seed": 0, "dropout": 0.0},
    {"seed": 0, "dropout": 0.3, "weight_decay": 1e-4},
    {"seed": 1, "dropout": 0.5, "learning_rate": 3e-3, "label_smoothing": 0.1},
    {"seed": 2, "dropout": 0.2, "schedule": "cosine", "warmup_epochs": 1.0, "gradient_clip_norm": 0.5},
    {"seed": 0, "dropout": 0.1, "schedule": "step", "step_epochs": 1},
]
NETWORKS = {
    "mlp": BASE,
    "mlp without batch norm": {**BASE, "batch_norm": False},
    "full size": {**BASE, "hidden_sizes": (256, 128, 64), "epochs": 2},
    "odd sizes": {**BASE, "hidden_sizes": (13, 7), "global_batch_size": 37},
    "a single unit": {**BASE, "hidden_sizes": (40, 1, 12)},
    "cnn": {**BASE, "model": "cnn", "hidden_sizes": (3, 4), "train_limit": 200, "epochs": 2},
    "augmented": {**BASE, "augmentation": "affine_elastic", "train_limit": 200, "epochs": 2},
    "rmsprop": {**BASE, "optimizer": "rmsprop"},
    "sgd": {**BASE, "optimizer": "sgd", "learning_rate": 0.05},
    "bf16": {**BASE, "precision": "bf16"},
    "float64": {**BASE, "precision": "float64"},
}


def configs_of(network: str) -> list[TrainConfig]:
    return [variant_config("dropout", {**NETWORKS[network], **own}) for own in OWN]


def data_of(config: TrainConfig) -> TrainingData:
    return prepare_data(config, tiny_digits(500), device=CPU)


def trained_alone(config: TrainConfig) -> list[TrainState]:
    return list(fit(config, data_of(config), device=CPU))


def trained_together(
    configs: Sequence[TrainConfig],
    *,
    states: Sequence[TrainState | None] | None = None,
    tabled: bool | None = None,
) -> list[list[TrainState | Divergence]]:
    training = Training(configs, data_of(configs[0]), device=CPU, states=states, tabled=tabled)
    reached: list[list[TrainState | Divergence]] = [[] for _ in configs]
    while training.active:
        for run, result in training.train_epoch().items():
            reached[run].append(result if isinstance(result, Divergence) else training.state(run))
    return reached


def assert_same(actual: object, expected: TrainState) -> None:
    """Bit for bit, apart from the time taken."""
    assert isinstance(actual, TrainState)
    assert [replace(row, epoch_seconds=0) for row in actual.history] == [
        replace(row, epoch_seconds=0) for row in expected.history
    ]
    assert np.array_equal(actual.correct, expected.correct)
    for mine, other in ((actual.model, expected.model), (actual.optimizer, expected.optimizer)):
        assert mine.keys() == other.keys()
        for name, value in mine.items():
            assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("network", NETWORKS)
def test_a_run_has_the_same_bits_after_every_epoch_alone_and_in_a_stack(network: str) -> None:
    configs = configs_of(network)
    for config, together in zip(configs, trained_together(configs), strict=True):
        alone = trained_alone(config)
        assert len(together) == len(alone) == config.epochs
        for actual, expected in zip(together, alone, strict=True):
            assert_same(actual, expected)


@given(order=st.permutations(range(len(OWN))), size=st.integers(1, len(OWN)))
@settings(max_examples=15)
def test_size_and_order_of_a_stack_change_no_run(order: list[int], size: int) -> None:
    configs = [config.model_copy(update={"epochs": 1}) for config in configs_of("mlp")]
    chosen = [configs[index] for index in order[:size]]
    for config, (actual,) in zip(chosen, trained_together(chosen), strict=True):
        assert_same(actual, trained_alone(config)[-1])


def test_a_run_that_diverges_leaves_its_neighbours_bits_alone() -> None:
    configs = configs_of("mlp")
    broken = configs[1].model_copy(update={"optimizer": "adam", "learning_rate": 1e38})
    reached = trained_together([configs[0], broken, configs[2]])
    divergence = reached[1][-1]
    assert isinstance(divergence, Divergence)
    with pytest.raises(Exception, match="try a learning_rate below 1e\\+38") as raised:
        trained_alone(broken)
    assert str(raised.value) == str(divergence)
    for run, config in ((0, configs[0]), (2, configs[2])):
        assert len(reached[run]) == 3
        assert_same(reached[run][-1], trained_alone(config)[-1])


def test_a_run_that_runs_out_of_patience_ends_as_alone_and_the_others_go_on() -> None:
    configs = [
        config.model_copy(update={"epochs": 12, "early_stopping_patience": patience})
        for config, patience in zip(configs_of("mlp")[:3], (None, None, 1), strict=True)
    ]
    configs[2] = configs[2].model_copy(update={"learning_rate": 0.5})
    reached = trained_together(configs)
    assert [len(states) for states in reached[:2]] == [12, 12]
    assert 1 < len(reached[2]) < 12
    for config, states in zip(configs, reached, strict=True):
        assert_same(states[-1], trained_alone(config)[-1])


@pytest.mark.parametrize("stopped", [{0}, {1, 2}, {0, 1, 2}])
def test_runs_taken_out_after_an_epoch_leave_the_others_as_they_were(stopped: Collection[int]) -> None:
    configs = configs_of("mlp")[:3]
    training = Training(configs, data_of(configs[0]), device=CPU)
    training.train_epoch()
    training.stop(stopped)
    assert set(training.active) == {0, 1, 2} - set(stopped)
    for run in range(3):
        # What was stopped can still be kept.
        assert_same(training.state(run), trained_alone(configs[run])[0])
    last: dict[int, object] = {}
    while training.active:
        last |= {run: training.state(run) for run in training.train_epoch()}
    for run, state in last.items():
        assert_same(state, trained_alone(configs[run])[-1])


def test_runs_that_were_interrupted_go_on_in_another_stack_as_if_nothing_had_happened() -> None:
    configs = configs_of("mlp")
    states = [trained_alone(config)[0] for config in configs]
    reached = trained_together(configs[1:4], states=states[1:4])
    for config, run in zip(configs[1:4], reached, strict=True):
        assert len(run) == 2
        assert_same(run[-1], trained_alone(config)[-1])


def test_a_stack_of_finished_runs_has_nothing_to_do() -> None:
    configs = configs_of("mlp")[:2]
    states = [trained_alone(config)[-1] for config in configs]
    assert Training(configs, data_of(configs[0]), device=CPU, states=states).active == ()


@pytest.mark.parametrize("network", ["mlp", "odd sizes", "cnn", "augmented", "bf16"])
def test_steps_that_read_their_inputs_from_tables_have_the_same_bits(network: str) -> None:
    configs = configs_of(network)
    # Equal seeds only, distinct seeds only, and both.
    for chosen in (configs[:2], configs[1:4], configs):
        for config, together in zip(chosen, trained_together(chosen, tabled=True), strict=True):
            assert len(together) == config.epochs
            for actual, expected in zip(together, trained_alone(config), strict=True):
                assert_same(actual, expected)


def test_a_stack_with_tables_goes_on_as_before_when_it_becomes_smaller_and_after_an_interruption() -> None:
    configs = [config.model_copy(update={"optimizer": "adamw"}) for config in configs_of("mlp")]
    configs[1] = configs[1].model_copy(update={"learning_rate": 1e38})
    reached = trained_together(configs, tabled=True)
    assert isinstance(reached[1][0], Divergence)
    for run in (0, 2, 3, 4):
        assert_same(reached[run][-1], trained_alone(configs[run])[-1])
    middle = [trained_alone(config)[0] for config in configs[2:]]
    for config, states in zip(configs[2:], trained_together(configs[2:], states=middle, tabled=True), strict=True):
        assert_same(states[-1], trained_alone(config)[-1])


def test_ranks_share_single_runs_only() -> None:
    configs = configs_of("mlp")
    with pytest.raises(AssertionError):
        Training(configs, data_of(configs[0]), device=CPU, ranks=Ranks(0, 2))


@pytest.mark.parametrize("tabled", [False, True])
def test_what_a_stack_leaves_behind_is_freed_at_once(tabled: bool) -> None:
    configs = [config.model_copy(update={"epochs": 9}) for config in configs_of("mlp")]
    training = Training(configs, data_of(configs[0]), device=CPU, tabled=tabled)
    gc.collect()
    gc.disable()
    try:
        left_behind = []
        for stopped in ([0], [3], [1, 2]):
            training.train_epoch()
            steps = training._steps
            left_behind += [weakref.ref(steps), weakref.ref(steps.engine), weakref.ref(steps.engine.gradients)]
            del steps
            training.stop(stopped)
        training.train_epoch()
        assert [reference() for reference in left_behind] == [None] * 9
        last = weakref.ref(training._steps.engine)
        del training
        assert last() is None
    finally:
        gc.enable()


def peak_of_a_stack(num_runs: int) -> int:
    """Trains a stack; returns the greatest size of this process in bytes."""
    own = [{"dataset": "digits", "epochs": 2, "seed": seed} for seed in range(num_runs)]
    configs = [variant_config("dropout_batchnorm", settings) for settings in own]
    training = Training(configs, data_of(configs[0]), device=CPU)
    while training.active:
        for run in training.train_epoch():
            training.state(run)
    return peak_memory()


def test_the_memory_of_a_run_in_a_stack_is_that_of_its_weights_gradients_optimizer_and_activations() -> None:
    few, many = (call(peak_of_a_stack, num_runs) for num_runs in (8, 40))
    num_weights = 243_000
    of_values = 4 * 4 * num_weights  # weights, gradients and Adam's two moments, float32
    of_activations = 64 * (784 + 12 * (256 + 128 + 64)) * 4  # images, and at most 12 values a hidden unit
    # A third more for what the allocator leaves unused; a copy of all states would be half as much again.
    assert (many - few) / 32 < 1.33 * (of_values + of_activations), (few, many)
