"""The training steps of runs through an epoch."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mnist_ray.config.batches import batch_sizes
from mnist_ray.config.settings import TrainConfig
from mnist_ray.data.augmentation import augment, crop_and_flip
from mnist_ray.data.training_data import TrainingData
from mnist_ray.models.engine import Engine
from mnist_ray.models.ranks import Ranks
from mnist_ray.models.stack import Stack
from mnist_ray.models.training_pass import TrainingPass
from mnist_ray.noise.random_streams import permutation, stream_key
from mnist_ray.noise.step_streams import SeededStreams, StepStreams, StreamTables, TabledStreams
from mnist_ray.optimizers.optimizers import learning_rate, set_learning_rates
from mnist_ray.training.cuda_graph import RecordedStep
from mnist_ray.training.data import normalize
from mnist_ray.training.watching import Watch

# Optimizers whose step accepts a learning rate on the device.
_RECORDED_OPTIMIZERS = ("adam", "adamw")


@dataclass(frozen=True, eq=False)
class Steps:
    """The steps of an engine's runs, each determined by its number and the runs' seeds.

    Attributes:
      optimizer: over engine.parameters, made by make_optimizer.
      data: the runs' examples, on the device.
    """

    engine: Engine
    optimizer: torch.optim.Optimizer
    configs: tuple[TrainConfig, ...]
    data: TrainingData
    device: torch.device
    ranks: Ranks

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """The seed of each run."""
        return tuple(config.seed for config in self.configs)

    @cached_property
    def batch_sizes(self) -> tuple[int, ...]:
        """The number of rows in each global batch of an epoch."""
        return batch_sizes(len(self.data.labels), self.configs[0].global_batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """The number of steps in an epoch."""
        return len(self.batch_sizes)

    @cached_property
    def _smoothing(self) -> Tensor | float:
        smoothing = [config.label_smoothing for config in self.configs]
        return torch.tensor(smoothing, dtype=self._dtype, device=self.device)[:, None] if any(smoothing) else 0.0

    @cached_property
    def _dtype(self) -> torch.dtype:
        return self.engine.parameters[0].dtype

    def orders(self, epoch: int) -> Tensor:
        """Returns the order of the examples in an epoch (from 1) for each distinct seed, int64 [seeds, examples]."""
        keys = [stream_key(seed, "shuffle", epoch) for seed in dict.fromkeys(self.seeds)]
        return torch.stack([permutation(key, len(self.data.labels)) for key in keys])

    def train_epoch(self, epoch: int, watch: Watch | None = None) -> tuple[Tensor, Tensor]:
        """Trains for an epoch, numbered from 1.

        Args:
          watch: called after each step.

        Returns:
          Each step's loss, float64 [runs, steps], and the correct predictions, int64 [runs], over all ranks.
        """
        losses, correct = self.sums()
        first_step = (epoch - 1) * self.steps_per_epoch
        for index, batch in enumerate(self.orders(epoch).to(self.device).split(list(self.batch_sizes), dim=1)):
            set_learning_rates(self.optimizer, first_step + index, self.steps_per_epoch)
            losses[:, index], right = self.step(SeededStreams(self.seeds, first_step + index), batch)
            correct += right
            if watch:
                watch(epoch, index + 1, losses)
        return self.ranks.sum_(losses), self.ranks.sum_(correct)

    def sums(self) -> tuple[Tensor, Tensor]:
        """Returns zeros in the shapes that train_epoch returns."""
        count = len(self.configs)
        losses = torch.zeros(count, self.steps_per_epoch, dtype=torch.float64, device=self.device)
        return losses, torch.zeros(count, dtype=torch.int64, device=self.device)

    def step(self, streams: StepStreams, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Takes one step, with the optimizer's current learning rates.

        Args:
          streams: the step's streams of each run.
          batch: the examples of the global batch, int64 [distinct seeds, global_batch].

        Returns:
          See Engine.forward_backward.
        """
        num_rows = batch.shape[1]
        mine = self.ranks.rows(num_rows)
        rows = torch.arange(num_rows, device=self.device)[mine]
        chosen = batch[:, mine]
        # index_select is torch's fastest way to choose rows.
        images, labels = (
            values.index_select(0, chosen.flatten()).unflatten(0, chosen.shape)
            for values in (self.data.images, self.data.labels)
        )
        # Runs with the same seed share batches and noise, so each seed's images are distorted once.
        name, distinct = self.configs[0].augmentation, streams.distinct()
        images = crop_and_flip(name, images, streams=distinct, rows=rows)
        images = normalize(images, mean=self.data.mean, std=self.data.std, dtype=self._dtype)
        images = augment(name, images, streams=distinct, rows=rows)
        images, labels = (streams.for_each_run(values) for values in (images, labels))
        computed = self.engine.forward_backward(
            images, labels, TrainingPass(streams, rows, num_rows, smoothing=self._smoothing)
        )
        for gradient, config in zip(self.engine.gradients, self.configs, strict=True):
            _clip(gradient, config.gradient_clip_norm)
        self.optimizer.step()
        return computed


def _clip(gradient: Tensor, limit: float | None) -> None:
    """Scales a run's gradient down to its largest norm (Pascanu et al. 2013)."""
    if limit is not None:
        gradient.mul_((limit / (gradient.norm() + 1e-6)).clamp_(max=1.0))


def can_be_recorded(config: TrainConfig, engine: Engine) -> bool:
    """Tells whether the steps of runs like this one can be recorded as a CUDA graph.

    Steps in float64 can't: CUDA's Adam takes a learning rate from the device in float32 only. Modules can't: their
    code may depend on the data.
    """
    is_on_gpu = engine.parameters[0].device.type == "cuda"
    is_fitting = config.optimizer in _RECORDED_OPTIMIZERS and config.precision != "float64"
    return isinstance(engine, Stack) and is_on_gpu and is_fitting


class TabledSteps:
    """The same steps, reading everything that changes between steps from tables on the device, filled once per epoch.

    Each step is then the same program, and on a GPU a CUDA graph recorded once replaces hundreds of calls. A last batch
    of another size is a different program and is never recorded.
    """

    def __init__(self, steps: Steps) -> None:
        """Takes the steps of a stack with Adam or AdamW."""
        assert isinstance(steps.engine, Stack)
        assert steps.configs[0].optimizer in _RECORDED_OPTIMIZERS
        self._steps = steps
        count, device = steps.steps_per_epoch, steps.device
        self._tables = StreamTables(steps.seeds, count, device=device)
        self._streams = TabledStreams(self._tables, steps.seeds)
        self._orders = steps.orders(1).to(device)
        # CUDA's kernel reads the rate in float32.
        rate_type = torch.float32 if device.type == "cuda" else torch.float64
        self._rates = torch.zeros(count, len(steps.optimizer.param_groups), dtype=rate_type, device=device)
        self._losses, self._correct = steps.sums()
        self._whole = RecordedStep(device=device)

    def train_epoch(self, epoch: int, watch: Watch | None = None) -> tuple[Tensor, Tensor]:
        """See Steps.train_epoch."""
        steps = self._steps
        first_step = (epoch - 1) * steps.steps_per_epoch
        self._tables.begin_epoch(first_step)
        self._orders.copy_(steps.orders(epoch))
        self._rates.copy_(self._rates_of_epoch(first_step))
        self._losses.zero_()
        self._correct.zero_()
        first = steps.batch_sizes[0]
        for index, size in enumerate(steps.batch_sizes):
            if size == first:
                self._whole.run(lambda: self._step(first))
            else:
                self._step(size)
            if watch:
                watch(epoch, index + 1, self._losses)
        return self._losses.clone(), self._correct.clone()

    def _step(self, num_rows: int) -> None:
        """Takes the step that the tables point to: the next rows of the epoch's order."""
        steps, place = self._steps, self._tables.step
        columns = place * steps.batch_sizes[0] + torch.arange(num_rows, device=steps.device)
        rates = self._rates.index_select(0, place)[0]
        for group, rate in zip(steps.optimizer.param_groups, rates.unbind(), strict=True):
            group["lr"] = rate
        losses, right = steps.step(self._streams, self._orders.index_select(1, columns))
        self._losses.index_copy_(1, place, losses.to(self._losses.dtype)[:, None])
        self._correct += right
        place += 1

    def _rates_of_epoch(self, first_step: int) -> Tensor:
        count = self._steps.steps_per_epoch
        groups = self._steps.optimizer.param_groups
        rates = [
            [learning_rate(first_step + index, count, group["config"]) for group in groups] for index in range(count)
        ]
        return torch.tensor(rates, dtype=self._rates.dtype)
