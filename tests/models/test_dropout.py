"""Torch's dropouts with the noise of a run's streams."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mnist_ray.models.dropout import DROPOUTS, StepNoise, StreamDropout, draw_from
from mnist_ray.models.ranks import Ranks
from mnist_ray.models.stack_layers import Dropout
from mnist_ray.models.training_pass import TrainingPass
from mnist_ray.noise.step_streams import SeededStreams

CPU = torch.device("cpu")


def training_pass(rows: Tensor, *, step: int = 3) -> TrainingPass:
    return TrainingPass(SeededStreams([7], step), rows, 64)


def drawing(name: str, module: nn.Module, noise: StepNoise) -> nn.Module:
    """A dropout of this name, in a network that draws from a run's streams."""
    draw_from(nn.ModuleDict({name: module}), noise)
    return module


def dropped(
    module: nn.Module, values: Tensor, *, rows: Tensor | None = None, step: int = 3, calls: int = 1, rank: int = 0
) -> list[Tensor]:
    """What a network's dropout makes of values in some calls of a step."""
    noise = StepNoise(Ranks(rank, 2))
    dropout = drawing("dropout1", module, noise)
    with noise.step(training_pass(torch.arange(len(values)) if rows is None else rows, step=step)):
        return [dropout(values) for _ in range(calls)]


def test_the_noise_is_that_of_the_stacked_dropout() -> None:
    values = torch.rand(16, 3, 5)
    (ours,) = dropped(nn.Dropout(0.3), values)
    stacked = Dropout("dropout1", [0.3], dtype=torch.float32, device=CPU)
    expected = stacked.forward(values.clone()[None], training_pass(torch.arange(16)))[0]
    assert torch.equal(ours, expected)
    assert 0.2 < float((ours == 0).double().mean()) < 0.4


@pytest.mark.parametrize("kind", DROPOUTS)
def test_a_dropout_keeps_torchs_statistics_and_the_shape_of_its_noise(kind: type[nn.Module]) -> None:
    shape = (4000, 50, *{nn.Dropout1d: (2,), nn.Dropout3d: (2, 1, 1)}.get(kind, (2, 1)))
    values = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (ours,) = dropped(kind(0.4), values)
    torch.manual_seed(1)
    torchs = kind(0.4)(values)
    is_alpha = kind in (nn.AlphaDropout, nn.FeatureAlphaDropout)
    for outputs in (ours, torchs):
        assert float(outputs.mean()) == pytest.approx(0, abs=0.02)
        assert float(outputs.var()) == pytest.approx(1 if is_alpha else 1 / 0.6, abs=0.03)
    dropped_value = ours.flatten().mode().values
    torch.testing.assert_close(dropped_value, torchs.flatten().mode().values, rtol=1e-4, atol=1e-9)
    is_dropped = ours == dropped_value
    assert float(is_dropped.double().mean()) == pytest.approx(0.4, abs=0.01)
    whole_channels = is_dropped.flatten(2).all(2) | ~is_dropped.flatten(2).any(2)
    assert bool(whole_channels.all()) == (kind in (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.FeatureAlphaDropout))


@pytest.mark.parametrize("kind", DROPOUTS)
def test_in_evaluation_at_rate_zero_and_at_rate_one_there_is_no_noise(kind: type[nn.Module]) -> None:
    values = torch.randn(4, 6, 2)
    noise = StepNoise(Ranks())
    assert torch.equal(drawing("a", kind(0.5), noise).eval()(values), values)
    assert torch.equal(drawing("a", kind(0.0), noise)(values), values)
    assert not drawing("a", kind(1.0), noise)(values).any()


def test_each_step_call_and_name_has_other_noise_and_a_repeated_step_the_same() -> None:
    values = torch.ones(8, 64)
    first, second = dropped(nn.Dropout(0.5), values, calls=2)
    (later,) = dropped(nn.Dropout(0.5), values, step=4)
    again = dropped(nn.Dropout(0.5), values, calls=2)
    assert len({tuple(each.flatten().tolist()) for each in (first, second, later)}) == 3
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])


def test_a_rank_draws_its_rows_of_the_global_batch() -> None:
    values = torch.ones(9, 5, 7)
    (whole,) = dropped(nn.Dropout(0.5), values)
    for rank in range(2):
        rows = torch.arange(9)[rank::2]
        (part,) = dropped(nn.Dropout(0.5), values[rows], rows=rows, rank=rank)
        assert torch.equal(part, whole[rows])
        # Tokens of a sequence, flattened into the batch.
        (tokens,) = dropped(nn.Dropout(0.5), values[rows].flatten(0, 1), rows=rows, rank=rank)
        assert torch.equal(tokens, whole[rows].flatten(0, 1))
    assert dropped(nn.Dropout(0.5), values[:0], rows=torch.arange(0))[0].shape == (0, 5, 7)


def test_where_the_first_dimension_is_not_the_batch_each_rank_has_its_own_noise() -> None:
    values = torch.ones(7, 4, 9)
    parts = [dropped(nn.Dropout(0.5), values, rows=torch.arange(8)[rank::2], rank=rank)[0] for rank in range(2)]
    assert not torch.equal(parts[0], parts[1])
    assert 0.3 < float((parts[0] == 0).double().mean()) < 0.7


class Recomputed(nn.Module):
    """A network that forgets its inner values and computes them again in the backward pass."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.dropout, self.calls = nn.Dropout(0.5), calls

    def forward(self, values: Tensor) -> Tensor:
        for _ in range(self.calls):
            values = checkpoint(lambda inner: self.dropout(inner).square(), values, use_reentrant=False)
        return values


def test_a_part_that_is_recomputed_has_the_noise_that_it_had() -> None:
    network, noise = Recomputed(1), StepNoise(Ranks())
    draw_from(network, noise)
    values = torch.ones(4, 32, requires_grad=True)
    with noise.step(training_pass(torch.arange(4))):
        outputs = network(values)
    outputs.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, 2 * outputs)
    assert len(outputs.unique()) == 2


def test_recomputed_calls_that_cannot_be_told_apart_are_refused() -> None:
    network, noise = Recomputed(2), StepNoise(Ranks())
    draw_from(network, noise)
    with noise.step(training_pass(torch.arange(4))):
        outputs = network(torch.ones(4, 32, requires_grad=True))
    with pytest.raises(RuntimeError, match="dropout is called 2 times in a step and recomputed"):
        outputs.sum().backward()


def test_dropouts_stay_the_objects_that_a_network_knows() -> None:
    shared = nn.Dropout(0.5)
    network = nn.Sequential(nn.Linear(2, 2), shared, nn.Sequential(shared, nn.Dropout2d(0.1).eval()))
    draw_from(network, StepNoise(Ranks()))
    assert network[1] is shared
    assert network[2][0] is shared
    assert isinstance(shared, StreamDropout)
    assert [type(each).__name__ for each in network[2]] == ["Dropout", "Dropout2d"]
    # What a network of one's own may ask for, such as a dropout that is off.
    assert isinstance(network[2][1], nn.Dropout2d)
    assert not network[2][1].training
    assert shared.training
