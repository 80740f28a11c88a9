"""Dropout whose noise comes from the streams of a run's step."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
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
    """Takes the place of one of torch's dropouts; p is the probability of dropping a unit.

    Reference: Srivastava et al. 2014; Klambauer et al. 2017 for alpha dropout.
    """

    def __init__(self, name: str, module: nn.Module, noise: StepNoise) -> None:
        """Replaces a module that DROPOUTS lists.

        Args:
          name: its name in the network.
          module: the module.
          noise: the noise of its network.
        """
        super().__init__()
        self.p = float(module.p)  # type: ignore[arg-type]
        self._name, self._noise = name, noise
        self._is_channelwise, self._is_alpha = DROPOUTS[type(module)]

    def forward(self, values: Tensor) -> Tensor:
        """Drops units, or whole channels, of [batch, ...] in training."""
        if not self.training or not self.p or not values.numel():
            return values
        if self.p == 1:
            return values * 0
        units = values.shape[1:2] if self._is_channelwise else values.shape[1:]
        kept = self._noise.kept(self._name, values, num_units=math.prod(units), rate=self.p)
        kept = kept.view(values.shape[0], *units, *(1,) * (values.dim() - 1 - len(units)))
        keep_share = 1 - dropped_draws(self.p) / DRAW_RANGE
        if not self._is_alpha:
            return values * kept.to(values.dtype).mul_(1 / keep_share)
        scale = (keep_share * (1 + (1 - keep_share) * _SELU_LIMIT**2)) ** -0.5
        shift = (1 - keep_share) * _SELU_LIMIT
        return torch.where(kept, values, _SELU_LIMIT).sub(shift).mul(scale)


# torch's dropouts: whether they drop whole channels, and whether they keep mean and variance of SELU's outputs.
DROPOUTS: dict[type[nn.Module], tuple[bool, bool]] = {
    nn.Dropout: (False, False),
    nn.Dropout1d: (True, False),
    nn.Dropout2d: (True, False),
    nn.Dropout3d: (True, False),
    nn.AlphaDropout: (False, True),
    nn.FeatureAlphaDropout: (True, True),
}


def replace_modules(network: nn.Module, make: Callable[[str, nn.Module], nn.Module | None]) -> None:
    """Replaces modules inside a network; one that several places share stays shared.

    Args:
      make: called with each module's name and the module; returns the replacement, or None to keep the module.
    """
    made: dict[int, nn.Module | None] = {}
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if id(module) not in made:
            made[id(module)] = make(name, module)
        new = made[id(module)]
        if new is not None:
            network.set_submodule(name, new)
