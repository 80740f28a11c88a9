"""Dropout whose noise comes from the streams of a run's step."""

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mnist_ray.models.ranks import Ranks
from mnist_ray.models.training_pass import TrainingPass

DRAW_RANGE = 1 << 16
# SELU's limit for large negative inputs, -scale * alpha (Klambauer et al. 2017).
_SELU_LIMIT = -1.0507009873554805 * 1.6732632423543772


def dropped_draws(rate: float) -> int:
    """Returns how many of the 65536 values of a 16-bit draw zero a unit: the rate is exact to 8e-6."""
    return min(round(rate * DRAW_RANGE), DRAW_RANGE - 1)


class StepNoise:
    """The noise of the step that a network computes, shared by its dropouts.

    A dropout that a network calls several times in a step draws other noise in each call.
    """

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._training: TrainingPass | None = None
        self._calls: Counter[str] = Counter()
        self._is_backward = False

    @contextmanager
    def step(self, training: TrainingPass) -> Iterator[None]:
        """Draws for a step of one run inside the block, which ends before the backward pass."""
        self._training, self._is_backward = training, False
        self._calls.clear()
        yield
        self._is_backward = True

    def kept(self, name: str, values: Tensor, *, num_units: int, rate: float) -> Tensor:
        """Returns which units a dropout keeps, bool [len(values), num_units].

        Args:
          name: the dropout's name in its network.
          values: the dropout's input; its first dimension is the batch, or the batch times another one.
          num_units: units of each of them.
          rate: share of the units to drop.

        Raises:
          RuntimeError: the network is recomputed in the backward pass and calls the dropout several times in a step.
        """
        assert self._training is not None
        rows, streams = self._training.rows, self._training.streams
        call = self._calls[name]
        if self._is_backward:
            # Activation checkpointing computes a part of the network again, with the same noise.
            if call > 1:
                raise RuntimeError(
                    f"{name} is called {call} times in a step and recomputed in the backward pass, where the calls "
                    "can't be told apart; give each call its own nn.Dropout"
                )
            call = 0
        else:
            self._calls[name] += 1
        purpose = f"{name}#{call}" if call else name
        if len(rows) and len(values) % len(rows):
            # The first dimension is not the batch, so the noise can't be that of the rows.
            rows = torch.arange(len(values), device=values.device)
            purpose = f"{purpose} of rank {self._ranks.rank}"
        columns = num_units * len(values) // max(len(rows), 1)
        draws = streams.draws16(purpose, rows, columns)[0]
        return (draws >= dropped_draws(rate) - DRAW_RANGE // 2).view(len(values), num_units)


class StreamDropout(nn.Module):
    """One of torch's dropouts with noise from the streams of a run; p is the probability of dropping a unit.

    Reference: Srivastava et al. 2014; Klambauer et al. 2017 for alpha dropout.
    """

    p: float
    name: str
    noise: StepNoise
    is_channelwise: bool
    is_alpha: bool

    def forward(self, values: Tensor) -> Tensor:
        """Drops units, or whole channels, of [batch, ...] in training."""
        if not self.training or not self.p or not values.numel():
            return values
        if self.p == 1:
            return values * 0
        units = values.shape[1:2] if self.is_channelwise else values.shape[1:]
        kept = self.noise.kept(self.name, values, num_units=math.prod(units), rate=self.p)
        kept = kept.view(values.shape[0], *units, *(1,) * (values.dim() - 1 - len(units)))
        keep_share = 1 - dropped_draws(self.p) / DRAW_RANGE
        if not self.is_alpha:
            return values * kept.to(values.dtype).mul_(1 / keep_share)
        scale = (keep_share * (1 + (1 - keep_share) * _SELU_LIMIT**2)) ** -0.5
        shift = (1 - keep_share) * _SELU_LIMIT
        return torch.where(kept, values, _SELU_LIMIT).sub(shift).mul(scale)


def _streamed(kind: type[nn.Module], *, is_channelwise: bool, is_alpha: bool) -> type[StreamDropout]:
    facts = {"is_channelwise": is_channelwise, "is_alpha": is_alpha}
    return type(kind.__name__, (StreamDropout, kind), facts)


# torch's dropouts -> the same with noise from streams.
DROPOUTS: dict[type[nn.Module], type[StreamDropout]] = {
    nn.Dropout: _streamed(nn.Dropout, is_channelwise=False, is_alpha=False),
    nn.Dropout1d: _streamed(nn.Dropout1d, is_channelwise=True, is_alpha=False),
    nn.Dropout2d: _streamed(nn.Dropout2d, is_channelwise=True, is_alpha=False),
    nn.Dropout3d: _streamed(nn.Dropout3d, is_channelwise=True, is_alpha=False),
    nn.AlphaDropout: _streamed(nn.AlphaDropout, is_channelwise=False, is_alpha=True),
    nn.FeatureAlphaDropout: _streamed(nn.FeatureAlphaDropout, is_channelwise=True, is_alpha=True),
}


def draw_from(network: nn.Module, noise: StepNoise) -> None:
    """Makes the dropouts of a network draw from a run's streams; they stay the same objects of the same kinds."""
    for name, module in network.named_modules():
        if type(module) in DROPOUTS:
            module.__class__ = DROPOUTS[type(module)]
            module.name, module.noise = name, noise
