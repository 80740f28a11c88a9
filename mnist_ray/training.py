"""The training loop: no saving, no logging, no Ray."""

import math
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mnist_ray.augmentation import augment
from mnist_ray.config import TrainConfig
from mnist_ray.errors import DataError, RunFailedError
from mnist_ray.history import EpochResult, is_finished
from mnist_ray.models.layers import TrainingPass
from mnist_ray.models.networks import make_network
from mnist_ray.models.stacking import Stack
from mnist_ray.optimizers import learning_rate, make_optimizer, set_learning_rates
from mnist_ray.random_streams import for_each_seed, permutation, stream_key
from mnist_ray.sharding import Ranks
from mnist_ray.training_data import TrainingData, normalize

# A multiple of 16 rows: see Stack.parts.
_EVALUATION_BATCH = 1024


@dataclass(frozen=True)
class TrainState:
    """All that is needed to go on after an epoch as if nothing had happened.

    Attributes:
      history: the epochs done.
      model: the plain network's state_dict.
      optimizer: the optimizer's tensors by name.
    """

    history: tuple[EpochResult, ...]
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def cross_entropy(logits: Tensor, labels: Tensor, *, smoothing: Tensor | float = 0.0) -> tuple[Tensor, Tensor]:
    """Computes each example's cross-entropy and its gradient.

    Args:
      logits: [runs, batch, classes].
      labels: int64 [runs, batch].
      smoothing: label smoothing, a number or [runs, 1] (Szegedy et al. 2016).

    Returns:
      Losses in nats, [runs, batch], and the gradient of each by its logits, [runs, batch, classes].
    """
    log_probabilities = torch.log_softmax(logits, dim=-1)
    hit = log_probabilities.gather(-1, labels[..., None])[..., 0]
    gradient = log_probabilities.exp()
    if isinstance(smoothing, float) and not smoothing:
        return hit.neg_(), gradient.scatter_add_(
            -1, labels[..., None], gradient.new_full((1,), -1.0).expand_as(hit)[..., None]
        )
    target = torch.zeros_like(gradient).scatter_(-1, labels[..., None], 1.0)
    losses = -(1 - smoothing) * hit - smoothing * log_probabilities.mean(-1)
    share = torch.as_tensor(smoothing, dtype=logits.dtype, device=logits.device)[..., None]
    return losses, gradient.sub_((1 - share) * target + share / logits.shape[-1])


def train_step(
    stack: Stack,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    *,
    training: TrainingPass,
    configs: Sequence[TrainConfig],
) -> tuple[Tensor, Tensor]:
    """Updates a stack on this rank's share of one global batch.

    Args:
      stack: the runs.
      optimizer: over stack.parameters.
      images: [runs, local_batch, 1, 28, 28], normalized.
      labels: int64 [runs, local_batch], class indices.
      training: the step's number, rows and ranks.
      configs: one config a run.

    Returns:
      This rank's share of each run's mean loss over the global batch (nats), [runs], and its number of right
      predictions, int64 [runs]; still on the device: reading them waits for a GPU, so the caller decides when.
    """
    parts = stack.parts(images.shape[1])
    computed = [
        _backpropagate(part, images[runs], labels[runs], training=training.of(runs), configs=configs[runs])
        for runs, part in parts
    ]
    training.ranks.sum_(stack.gradients)
    _clip(stack.gradients, configs)
    optimizer.step()
    losses, correct = zip(*computed, strict=True)
    return torch.cat(losses), torch.cat(correct)


def _backpropagate(
    stack: Stack, images: Tensor, labels: Tensor, *, training: TrainingPass, configs: Sequence[TrainConfig]
) -> tuple[Tensor, Tensor]:
    logits = stack.forward(images, training)
    smoothing = _column([config.label_smoothing for config in configs], logits)
    losses, gradient = cross_entropy(logits, labels, smoothing=smoothing)
    stack.backward(gradient.div_(training.global_batch_size))
    return losses.sum(1) / training.global_batch_size, (logits.argmax(-1) == labels).sum(1)


def _column(values: Sequence[float], like: Tensor) -> Tensor | float:
    if not any(values):
        return 0.0
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def _clip(gradients: Tensor, configs: Sequence[TrainConfig]) -> None:
    """Scales each run's gradient down to its largest norm (Pascanu et al. 2013)."""
    limits = [config.gradient_clip_norm for config in configs]
    for gradient, limit in zip(gradients, limits, strict=True):
        if limit is not None:
            gradient.mul_((limit / (gradient.norm() + 1e-6)).clamp_(max=1.0))


@dataclass(frozen=True)
class Divergence:
    """Where and how a run's loss stopped being a number; its text is the message for a person."""

    epoch: int
    step: int
    message: str

    def __str__(self) -> str:
        return self.message


def fit(
    config: TrainConfig,
    data: TrainingData,
    *,
    device: torch.device,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    state: TrainState | None = None,
) -> Iterator[TrainState]:
    """Trains one run, from the start or from a state, and yields the state after each epoch.

    Args:
      config: the run's config.
      data: its examples, the same on every rank.
      device: where to compute.
      ranks: the processes that share every batch.
      state: where to go on; what follows is the same, bit for bit, as without the interruption.

    Raises:
      RunFailedError: a loss is not a finite number; names the epoch and the step.
      DataError: fewer examples than ranks.
    """
    training = StackTraining([config], data, device=device, ranks=ranks, states=[state])
    while training.active:
        reached = training.train_epoch()[0]
        if isinstance(reached, Divergence):
            raise RunFailedError(str(reached))
        yield reached


class StackTraining:
    """Runs with the same shapes, trained together epoch by epoch; one that ends leaves the stack and costs no more.

    On a CPU each run gets the same bits as alone, whatever its neighbours do.

    Attributes:
      active: the runs that still train, as indices into the configs.
    """

    def __init__(
        self,
        configs: Sequence[TrainConfig],
        data: TrainingData,
        *,
        device: torch.device,
        ranks: Ranks = Ranks(),  # noqa: B008 - frozen
        states: Sequence[TrainState | None] | None = None,
    ) -> None:
        """Starts the runs, or goes on with them.

        Args:
          configs: one a run; they agree in all settings of grids.STACK_FIELDS.
          data: the examples, the same for all runs and ranks.
          device: where to compute.
          ranks: the processes that share every batch; more than one for a single run only.
          states: where each run goes on, all after the same epoch; None for a run's start.

        Raises:
          DataError: fewer examples than ranks.
        """
        if len(data.labels) < ranks.world_size:
            raise DataError(f"num_workers={ranks.world_size}: more than the {len(data.labels)} training examples")
        assert ranks.world_size == 1 or len(configs) == 1
        self._configs, self._data, self._device, self._ranks = list(configs), data, device, ranks
        self._dtype = torch.float64 if configs[0].precision == "float64" else torch.float32
        self._batch_size = configs[0].global_batch_size
        self._steps_per_epoch = math.ceil(len(data.labels) / self._batch_size)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = configs[0].precision == "tf32"
        given = dict(enumerate(states or [None] * len(configs)))
        self._histories = {run: state.history if state else () for run, state in given.items()}
        (self._epoch,) = {len(history) for history in self._histories.values()}
        self._assemble({run: state for run, state in given.items() if not self._is_finished(run)})

    def stop(self, runs: Collection[int]) -> None:
        """Takes runs out of the stack."""
        kept = [run for run in self.active if run not in runs]
        if len(kept) < len(self.active):
            self._assemble({run: self._state(run) for run in kept})

    @torch.no_grad()
    def train_epoch(self) -> dict[int, TrainState | Divergence]:
        """Trains the active runs for an epoch; those that are done, or diverged, leave the stack.

        Returns:
          What came of each run that was active.
        """
        started = time.perf_counter()
        self._epoch += 1
        losses, correct = self._train_steps()
        validation = self._validate()
        # Reading them waits for a GPU: the epoch is over then.
        losses, correct, validation = losses.cpu(), correct.cpu(), validation.cpu()
        seconds = (time.perf_counter() - started) / len(self.active)
        reached: dict[int, TrainState | Divergence] = {}
        for place, run in enumerate(self.active):
            val_loss, val_accuracy = validation[place].tolist()
            divergence = self._divergence(run, losses[place], val_loss)
            if divergence:
                reached[run] = divergence
                continue
            result = EpochResult(
                epoch=self._epoch,
                train_loss=float((losses[place] * self._batch_sizes()).sum()) / len(self._data.labels),
                train_accuracy=int(correct[place]) / len(self._data.labels),
                val_loss=val_loss,
                val_accuracy=val_accuracy,
                learning_rate=self._last_learning_rate(run),
                examples=len(self._data.labels),
                epoch_seconds=seconds,
            )
            self._histories[run] = (*self._histories[run], result)
            reached[run] = self._state(run)
        self.stop([run for run in self.active if isinstance(reached[run], Divergence) or self._is_finished(run)])
        return reached

    def _assemble(self, states: Mapping[int, TrainState | None]) -> None:
        """Makes a stack of runs, from their start or from their states."""
        self.active = tuple(states)
        if not states:
            return
        configs = [self._configs[run] for run in states]
        self._distinct_seeds = tuple(dict.fromkeys(config.seed for config in configs))
        networks = [make_network(config, len(self._data.class_names)) for config in configs]
        for network, state in zip(networks, states.values(), strict=True):
            if state is not None:
                network.load_state_dict(state.model)
        self._stack = Stack(networks, device=self._device, bf16=configs[0].precision == "bf16")
        self._optimizer = make_optimizer(configs[0].optimizer, self._stack.parameters, configs)
        for parameter, state in zip(self._stack.parameters, states.values(), strict=True):
            if state is not None:
                self._optimizer.state[parameter] = {
                    name: value.to(self._device, copy=True) for name, value in state.optimizer.items()
                }

    def _train_steps(self) -> tuple[Tensor, Tensor]:
        """Returns each step's loss, float64 [runs, steps], and right predictions, int64 [runs], over all ranks."""
        losses = torch.zeros(len(self.active), self._steps_per_epoch, dtype=torch.float64, device=self._device)
        correct = torch.zeros(len(self.active), dtype=torch.int64, device=self._device)
        keys = [stream_key(seed, "shuffle", self._epoch) for seed in self._distinct_seeds]
        orders = torch.stack([permutation(key, len(self._data.labels)) for key in keys]).to(self._device)
        for index, batch in enumerate(torch.split(orders, self._batch_size, dim=1)):
            losses[:, index], right = self._step((self._epoch - 1) * self._steps_per_epoch + index, batch)
            correct += right
        return self._ranks.sum_(losses), self._ranks.sum_(correct)

    def _step(self, step: int, batch: Tensor) -> tuple[Tensor, Tensor]:
        """One step on a global batch, given as the examples' indices, int64 [distinct seeds, global_batch]."""
        num_rows = batch.shape[1]
        mine = self._ranks.rows(num_rows)
        rows = torch.arange(num_rows, device=self._device)[mine]
        chosen = batch[:, mine]
        images = self._data.images.index_select(0, chosen.flatten()).unflatten(0, chosen.shape)
        images = normalize(images, mean=self._data.mean, std=self._data.std, dtype=self._dtype)
        configs = [self._configs[run] for run in self.active]
        images = augment(configs[0].augmentation, images, seeds=self._distinct_seeds, step=step, rows=rows)
        labels = self._data.labels[chosen]
        seeds = [config.seed for config in configs]
        images, labels = (for_each_seed(values, seeds, self._distinct_seeds) for values in (images, labels))
        set_learning_rates(self._optimizer, step, self._steps_per_epoch)
        training = TrainingPass(seeds, step, rows, num_rows, self._ranks)
        return train_step(self._stack, self._optimizer, images, labels, training=training, configs=configs)

    def _validate(self) -> Tensor:
        """Returns mean loss and accuracy over the validation examples, float64 [runs, 2], over all ranks."""
        sums = torch.zeros(len(self.active), 2, dtype=torch.float64, device=self._device)
        batches = zip(
            torch.split(self._data.validation_images, _EVALUATION_BATCH),
            torch.split(self._data.validation_labels, _EVALUATION_BATCH),
            strict=True,
        )
        for images, labels in batches:
            mine = self._ranks.rows(len(labels))
            inputs = normalize(images[mine], mean=self._data.mean, std=self._data.std, dtype=self._dtype)
            for runs, part in self._stack.parts(len(inputs)):
                logits = part.forward(inputs.expand(len(part), *inputs.shape))
                losses, _ = cross_entropy(logits, labels[mine].expand(len(part), -1))
                sums[runs, 0] += losses.sum(1, dtype=torch.float64)
                sums[runs, 1] += (logits.argmax(-1) == labels[mine]).sum(1)
        return self._ranks.sum_(sums) / len(self._data.validation_labels)

    def _divergence(self, run: int, losses: Tensor, val_loss: float) -> Divergence | None:
        bad = torch.nonzero(~losses.isfinite()).flatten().tolist()
        if not bad and math.isfinite(val_loss):
            return None
        step = bad[0] + 1 if bad else self._steps_per_epoch
        what = f"training loss is {float(losses[bad[0]])}" if bad else f"validation loss is {val_loss}"
        message = (
            f"epoch {self._epoch}, step {step} of {self._steps_per_epoch}: the {what}; "
            f"try a learning_rate below {self._configs[run].learning_rate:g} or a gradient_clip_norm"
        )
        return Divergence(self._epoch, step, message)

    def _batch_sizes(self) -> Tensor:
        last = len(self._data.labels) - (self._steps_per_epoch - 1) * self._batch_size
        return torch.tensor([self._batch_size] * (self._steps_per_epoch - 1) + [last])

    def _last_learning_rate(self, run: int) -> float:
        return learning_rate(self._epoch * self._steps_per_epoch - 1, self._steps_per_epoch, self._configs[run])

    def _is_finished(self, run: int) -> bool:
        return is_finished(self._configs[run], self._histories[run])

    def _state(self, run: int) -> TrainState:
        place = self.active.index(run)
        optimizer = self._optimizer.state[self._stack.parameters[place]]
        return TrainState(
            history=self._histories[run],
            model=self._stack.state_dict(place),
            optimizer={
                name: value.detach().to("cpu", copy=True) for name, value in optimizer.items() if value is not None
            },
        )
