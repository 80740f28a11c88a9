import dataclasses
import math
import random

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from mnist_ray.config.settings import TrainConfig
from mnist_ray.config.variants import variant_config
from mnist_ray.data.image_shape import MNIST_SHAPE
from mnist_ray.data.training_data import TrainingData
from mnist_ray.errors import DataError, RunFailedError
from mnist_ray.models.loss import cross_entropy
from mnist_ray.models.networks import make_network
from mnist_ray.models.ranks import Ranks
from mnist_ray.noise.random_streams import draws16, permutation, stream_key
from mnist_ray.optimizers.optimizers import OPTIMIZERS
from mnist_ray.results.history import EpochResult, best_epoch, is_finished
from mnist_ray.results.train_state import TrainState
from mnist_ray.training.data import normalize, prepare_data, split_validation
from mnist_ray.training.loop import fit
from tests.support.tiny_digits import tiny_digits

CPU = torch.device("cpu")
PLAIN_OPTIMIZERS = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
}


def small_config(**settings: object) -> TrainConfig:
    small = {"dataset": "digits", "hidden_sizes": (16, 12), "epochs": 3}
    return variant_config("dropout_batchnorm", {**small, **settings})


def digits_for(config: TrainConfig, count: int = 400) -> TrainingData:
    return prepare_data(config, tiny_digits(count), device=CPU)


def train(config: TrainConfig, data: TrainingData, state: TrainState | None = None) -> TrainState:
    *_, last = fit(config, data, device=CPU, state=state)
    return last


def timeless(history: tuple[EpochResult, ...]) -> list[EpochResult]:
    return [dataclasses.replace(row, epoch_seconds=0.0) for row in history]


def assert_same_bits(state: TrainState, expected: TrainState) -> None:
    assert timeless(state.history) == timeless(expected.history)
    assert expected.correct is not None
    assert np.array_equal(state.correct, expected.correct)
    for tensors, wanted in ((state.model, expected.model), (state.optimizer, expected.optimizer)):
        assert tensors.keys() == wanted.keys()
        assert [name for name in wanted if not torch.equal(tensors[name], wanted[name])] == []


class StreamDropout(nn.Module):
    """Dropout as it is defined, its mask drawn from a stream that only seed, layer and step choose."""

    def __init__(self, seed: int, name: str, rate: float) -> None:
        super().__init__()
        self.seed, self.name, self.rate, self.step = seed, name, rate, 0

    def forward(self, values: Tensor) -> Tensor:
        if not self.training:
            return values
        key = stream_key(self.seed, self.name, self.step)
        draws = draws16([key], torch.arange(len(values)), values[0].numel())[0].long() + 32768
        return values * (draws >= self.rate * 65536).view(values.shape) / (1 - self.rate)


def plain_network(config: TrainConfig) -> nn.Sequential:
    """The untrained network, ready for a plain loop; a bias before batch norm has no gradient but noise."""
    network = make_network(config, MNIST_SHAPE, 10)
    names = [name for name, _ in network.named_children()]
    for name, child in list(network.named_children()):
        if isinstance(child, nn.Dropout):
            network.set_submodule(name, StreamDropout(config.seed, name, child.p))
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            network.get_submodule(names[names.index(name) - 1]).get_parameter("bias").requires_grad_(False)
    return network


def plain_learning_rate(config: TrainConfig, step: int, num_steps: int) -> float:
    warmup = config.warmup_epochs * num_steps
    if step < warmup - 0.5:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "constant":
        return config.learning_rate
    share = max(step - warmup, 0) / (config.epochs * num_steps - warmup)
    return config.learning_rate * (1 + math.cos(math.pi * share)) / 2


def plain_training(config: TrainConfig, data: TrainingData) -> tuple[dict[str, Tensor], list[EpochResult]]:
    """What a person would write: modules, autograd, a loop over batches, torch's own loss, clipping and optimizer."""
    network = plain_network(config)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    extra = {"momentum": config.momentum} if config.optimizer == "sgd" else {}
    optimizer = PLAIN_OPTIMIZERS[config.optimizer](
        parameters, lr=config.learning_rate, weight_decay=config.weight_decay, foreach=False, **extra
    )
    pixels = (data.images.double() / 255 - data.mean) / data.std
    validation = (data.validation_images.double() / 255 - data.mean) / data.std
    num_examples, history, step = len(data.labels), [], 0
    num_steps = -(-num_examples // config.global_batch_size)
    for epoch in range(1, config.epochs + 1):
        total_loss, correct = 0.0, 0
        network.train()
        order = permutation(stream_key(config.seed, "shuffle", epoch), num_examples)
        for start in range(0, num_examples, config.global_batch_size):
            rows = order[start : start + config.global_batch_size]
            for child in network.children():
                if isinstance(child, StreamDropout):
                    child.step = step
            rate = plain_learning_rate(config, step, num_steps)
            optimizer.param_groups[0]["lr"] = rate
            logits = network(pixels[rows])
            loss = functional.cross_entropy(logits, data.labels[rows], label_smoothing=config.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            if config.gradient_clip_norm is not None:
                nn.utils.clip_grad_norm_(parameters, config.gradient_clip_norm)
            optimizer.step()
            total_loss += loss.item() * len(rows)
            correct += int((logits.argmax(1) == data.labels[rows]).sum())
            step += 1
        network.eval()
        with torch.no_grad():
            logits = network(validation)
        val_loss = functional.cross_entropy(logits, data.validation_labels).item()
        val_accuracy = (logits.argmax(1) == data.validation_labels).double().mean().item()
        row = (total_loss / num_examples, correct / num_examples, val_loss, val_accuracy, rate, num_examples, 0.0)
        history.append(EpochResult(epoch, *row))
    return network.state_dict(), history


RECIPES: dict[str, dict[str, object]] = {
    "the whole recipe": {
        "weight_decay": 1e-3,
        "gradient_clip_norm": 0.7,
        "label_smoothing": 0.1,
        "schedule": "cosine",
        "warmup_epochs": 1.5,
        "dropout": 0.0,
    },
    "nothing but the optimizer": {"dropout": 0.0, "batch_norm": False, "weight_decay": 0.0},
}


def assert_equals_plain_training(config: TrainConfig, data: TrainingData) -> None:
    expected_weights, expected_history = plain_training(config, data)
    state = train(config, data)
    for name, value in expected_weights.items():
        torch.testing.assert_close(state.model[name], value, rtol=0, atol=1e-9)
    for row, expected in zip(timeless(state.history), expected_history, strict=True):
        assert dataclasses.astuple(row) == pytest.approx(dataclasses.astuple(expected), rel=0, abs=1e-9)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_training_equals_a_plain_pytorch_loop_with_a_partial_last_batch(optimizer: str, recipe: str) -> None:
    rate = 0.05 if optimizer == "sgd" else 1e-3
    config = small_config(precision="float64", optimizer=optimizer, learning_rate=rate, **RECIPES[recipe])
    data = digits_for(config)
    assert len(data.labels) % config.global_batch_size not in (0, 1)
    assert_equals_plain_training(config, data)


def test_a_training_of_a_cnn_equals_a_plain_pytorch_loop() -> None:
    config = small_config(
        model="cnn", hidden_sizes=(3, 4), precision="float64", epochs=2, **RECIPES["the whole recipe"]
    )
    assert_equals_plain_training(config, digits_for(config, 200))


def test_validation_in_several_batches_equals_validation_in_one() -> None:
    config = small_config(precision="float64", epochs=1, dropout=0.0, validation_fraction=0.8)
    data = digits_for(config, 1797)
    assert len(data.validation_labels) > 1000
    assert_equals_plain_training(config, data)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_variants_of_one_seed_see_the_same_batches_and_the_same_dropout_noise(batch_norm: bool) -> None:
    # The plain loop takes both from streams that know the seed but not the variant.
    config = small_config(precision="float64", batch_norm=batch_norm, dropout=0.25, seed=11)
    assert_equals_plain_training(config, digits_for(config, 200))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_run_stopped_after_each_epoch_goes_on_to_the_same_bits(optimizer: str) -> None:
    config = small_config(
        optimizer=optimizer, learning_rate=3e-3, augmentation="affine_elastic", schedule="cosine", warmup_epochs=0.5
    )
    data = digits_for(config, 300)
    expected = list(fit(config, data, device=CPU))
    state = None
    for uninterrupted in expected:
        state = next(fit(config, data, device=CPU, state=state))
        assert_same_bits(state, uninterrupted)
        state = TrainState(
            history=state.history,
            model=safetensors.torch.load(safetensors.torch.save(state.model)),
            optimizer=safetensors.torch.load(safetensors.torch.save(state.optimizer)),
        )
    assert list(fit(config, data, device=CPU, state=state)) == []


def test_sgd_without_momentum_resumes_though_it_has_no_state() -> None:
    config = small_config(optimizer="sgd", momentum=0.0, learning_rate=0.05, epochs=2)
    data = digits_for(config, 200)
    first, expected = fit(config, data, device=CPU)
    assert_same_bits(train(config, data, first), expected)


def test_a_state_does_not_change_when_training_goes_on() -> None:
    config = small_config(epochs=2)
    data = digits_for(config, 200)
    states = fit(config, data, device=CPU)
    first = next(states)
    before = {name: value.clone() for name, value in first.model.items()}
    next(states)
    assert all(torch.equal(first.model[name], before[name]) for name in before)


def test_a_rerun_gives_the_same_bits_whatever_the_global_generators_do() -> None:
    config = small_config(augmentation="affine_elastic")
    data = digits_for(config, 200)
    torch.manual_seed(0)
    expected = train(config, data)
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    states = fit(config, digits_for(config, 200), device=CPU)
    for reached in states:
        state = reached
        torch.rand(3)
        np.random.rand(3)
        random.random()
    assert_same_bits(state, expected)


def test_another_seed_gives_another_run() -> None:
    data = digits_for(small_config(), 200)
    first, second = (train(small_config(seed=seed, epochs=1), data) for seed in (0, 1))
    assert first.history[0].train_loss != second.history[0].train_loss


def test_autograd_stays_on_for_whoever_reads_the_states() -> None:
    config = small_config(epochs=2)
    for _ in fit(config, digits_for(config, 200), device=CPU):
        assert torch.is_grad_enabled()


@pytest.mark.parametrize("variant", ["baseline", "dropout", "dropout_batchnorm", "cnn"])
def test_every_variant_learns_the_digits(variant: str) -> None:
    sizes = (8, 16) if variant == "cnn" else (64, 32)
    config = variant_config(variant, {"dataset": "digits", "epochs": 3, "hidden_sizes": sizes, "global_batch_size": 32})
    history = train(config, digits_for(config, 800)).history
    assert history[-1].train_loss < history[0].train_loss
    assert history[-1].val_accuracy > 0.8


def test_bf16_learns_with_weights_kept_in_float32() -> None:
    state = train(small_config(precision="bf16", dropout=0.0, epochs=6), digits_for(small_config(), 800))
    assert {value.dtype for value in state.model.values()} == {torch.float32, torch.int64}
    assert state.history[-1].val_accuracy > 0.5


def test_a_loss_that_is_not_a_number_ends_the_run_and_names_epoch_and_step() -> None:
    config = small_config(learning_rate=1e30, batch_norm=False)
    with pytest.raises(RunFailedError) as caught:
        train(config, digits_for(config))
    assert str(caught.value) == (
        "epoch 1, step 2 of 6: the training loss is nan; try a learning_rate below 1e+30 or a gradient_clip_norm"
    )
    assert caught.value.exit_code == 7


def test_weights_that_break_in_an_epochs_last_step_end_the_run_too() -> None:
    config = small_config(learning_rate=1e30, batch_norm=False, global_batch_size=1000)
    with pytest.raises(RunFailedError) as caught:
        train(config, digits_for(config))
    assert str(caught.value) == (
        "epoch 1, step 1 of 1: the validation loss is nan; try a learning_rate below 1e+30 or a gradient_clip_norm"
    )


def row(epoch: int, val_loss: float) -> EpochResult:
    return EpochResult(epoch, 0.0, 0.0, val_loss, 0.0, 0.0, 0, 0.0)


def history_of(*val_losses: float) -> list[EpochResult]:
    return [row(epoch, val_loss) for epoch, val_loss in enumerate(val_losses, start=1)]


def test_the_best_epoch_is_the_first_with_the_lowest_validation_loss() -> None:
    assert best_epoch(history_of(0.5, 0.3, 0.4, 0.3)) == 2
    assert best_epoch(history_of(0.5)) == 1


@pytest.mark.parametrize(
    ("val_losses", "finished"),
    [
        ([], False),
        ([0.5], False),
        ([0.5, 0.4, 0.45], False),
        ([0.5, 0.4, 0.45, 0.41], True),
        ([0.5, 0.4, 0.4, 0.4], True),
        ([0.5, 0.4, 0.45, 0.39], False),
        ([0.5, 0.4, 0.3, 0.2, 0.1], True),
    ],
)
def test_a_run_ends_after_its_epochs_or_its_patience(val_losses: list[float], finished: bool) -> None:
    config = small_config(epochs=5, early_stopping_patience=2)
    assert is_finished(config, history_of(*val_losses)) is finished


def test_a_run_without_patience_has_all_its_epochs() -> None:
    config = small_config(epochs=4)
    assert not is_finished(config, history_of(0.1, 0.2, 0.3))
    assert is_finished(config, history_of(0.1, 0.2, 0.3, 0.4))


def test_early_stopping_ends_a_training_that_overfits() -> None:
    config = small_config(epochs=60, early_stopping_patience=2, batch_norm=False, dropout=0.0, learning_rate=0.02)
    history = train(config, digits_for(config, 60)).history
    assert len(history) < 60
    assert len(history) == best_epoch(history) + 2


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=60),
    st.floats(0.01, 0.99),
    st.integers(0, 2**63 - 1),
)
def test_the_validation_split_is_stratified_disjoint_and_complete(
    classes: list[int], fraction: float, seed: int
) -> None:
    labels = torch.tensor(classes)
    train_rows, validation_rows = split_validation(labels, fraction=fraction, seed=seed)
    assert train_rows.tolist() == sorted(train_rows.tolist())
    assert sorted(train_rows.tolist() + validation_rows.tolist()) == list(range(len(classes)))
    for label in set(classes):
        count = classes.count(label)
        held_out = int((labels[validation_rows] == label).sum())
        assert abs(held_out - fraction * count) <= 0.5 or held_out in (1, count - 1)
        assert held_out == 0 if count == 1 else 1 <= held_out < count


def test_the_validation_split_has_a_tenth_of_each_class() -> None:
    labels = torch.tensor([0] * 30 + [1] * 50)
    _, validation_rows = split_validation(labels, fraction=0.1, seed=0)
    assert torch.bincount(labels[validation_rows]).tolist() == [3, 5]


def test_the_validation_split_depends_on_its_own_seed_and_not_on_the_runs() -> None:
    first, other_run, other_split = (
        digits_for(small_config(**seeds)) for seeds in ({"seed": 0}, {"seed": 1}, {"validation_seed": 1})
    )
    assert torch.equal(first.images, other_run.images)
    assert torch.equal(first.validation_images, other_run.validation_images)
    assert not torch.equal(first.validation_images, other_split.validation_images)


def test_pixels_are_normalized_by_the_training_examples_alone() -> None:
    data = digits_for(small_config())
    pixels = data.images.double() / 255
    assert data.mean == pytest.approx(pixels.mean().item(), rel=1e-12)
    assert data.std == pytest.approx(pixels.std(correction=0).item(), rel=1e-12)
    normalized = normalize(data.images, mean=data.mean, std=data.std, dtype=torch.float64)
    torch.testing.assert_close(normalized, (pixels - data.mean) / data.std, rtol=0, atol=1e-12)


def test_images_of_one_grey_are_normalized_without_a_division_by_zero() -> None:
    examples = dataclasses.replace(tiny_digits(20), images=torch.full((20, 1, 28, 28), 7, dtype=torch.uint8))
    data = prepare_data(small_config(), examples, device=CPU)
    assert (data.mean, data.std) == (7 / 255, 1 / 255)


def test_a_train_limit_takes_the_first_examples() -> None:
    examples = tiny_digits(400)
    data = prepare_data(small_config(train_limit=100), examples, device=CPU)
    expected = prepare_data(small_config(), tiny_digits(100), device=CPU)
    assert torch.equal(data.images, expected.images)
    assert len(data.labels) + len(data.validation_labels) == 100
    assert prepare_data(small_config(train_limit=9999), examples, device=CPU).images.shape == (360, 1, 28, 28)


def test_too_few_examples_to_split_are_refused() -> None:
    with pytest.raises(DataError) as caught:
        digits_for(small_config(), 3)
    assert str(caught.value) == (
        "dataset='digits': 3 examples give 3 for training and 0 for validation; each needs at least one"
    )


def test_more_workers_than_examples_are_refused() -> None:
    config = small_config()
    data = dataclasses.replace(digits_for(config), images=torch.zeros(3, 1, 28, 28), labels=torch.zeros(3))
    with pytest.raises(DataError) as caught:
        next(fit(config, data, device=CPU, ranks=Ranks(0, 4)))
    assert str(caught.value) == "num_workers=4: more than the 3 training examples"


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_the_loss_and_its_gradient_are_those_of_torchs_cross_entropy(smoothing: float) -> None:
    logits = torch.randn(2, 5, 7, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[0, 1, 2, 3, 6], [6, 6, 5, 0, 4]])
    expected = functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), label_smoothing=smoothing, reduction="none"
    )
    expected.sum().backward()
    for given_as in (smoothing, torch.full((2, 1), smoothing, dtype=torch.float64)):
        losses, gradient = cross_entropy(logits.detach(), labels, smoothing=given_as)
        torch.testing.assert_close(losses.flatten(), expected.detach(), rtol=0, atol=1e-12)
        torch.testing.assert_close(gradient, logits.grad, rtol=0, atol=1e-12)


def test_each_run_of_a_stack_has_its_own_label_smoothing() -> None:
    logits = torch.tensor([[[2.0, 0.0]], [[2.0, 0.0]]], dtype=torch.float64)
    losses, _ = cross_entropy(logits, torch.tensor([[0], [0]]), smoothing=torch.tensor([[0.0], [0.5]]))
    # log(1 + exp(-2)), and 0.5 more of the mean over both classes: 0.5 * 2 / 2 higher.
    assert losses.flatten().tolist() == pytest.approx([0.1269280110, 0.6269280110], abs=1e-9)
