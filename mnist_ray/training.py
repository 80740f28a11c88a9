"""The training loop: no saving, no logging, no Ray."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mnist_ray.augmentation import augment
from mnist_ray.config import TrainConfig
from mnist_ray.data import Examples
from mnist_ray.errors import DataError, RunFailedError
from mnist_ray.models.layers import TrainingPass
from mnist_ray.models.networks import make_network
from mnist_ray.models.stacking import Stack
from mnist_ray.optimizers import learning_rate, make_optimizer
from mnist_ray.random_streams import permutation, stream_key
from mnist_ray.sharding import Ranks

_EVALUATION_BATCH = 1000


@dataclass(frozen=True)
class TrainingData:
    """The examples of a run on its device; images uint8 [n, 1, 28, 28], labels int64 [n].

    Attributes:
      mean, std: of the training pixels as fractions of 255; what the network sees is (pixel / 255 - mean) / std.
      class_names: one a class.
      fingerprint: SHA-256 of the whole training split, in hexadecimal.
    """

    images: Tensor
    labels: Tensor
    validation_images: Tensor
    validation_labels: Tensor
    mean: float
    std: float
    class_names: tuple[str, ...]
    fingerprint: str


@dataclass(frozen=True)
class EpochResult:
    """One row of a run's history; losses are mean cross-entropies in nats, accuracies fractions.

    The training loss is the minimized one (dropout, augmentation and label smoothing included), averaged over the
    epoch's steps as the weights moved.
    """

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    examples: int
    epoch_seconds: float


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


def split_validation(labels: Tensor, *, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Splits off a validation set, class by class, by a seed of its own.

    Args:
      labels: int64 [n].
      fraction: share of each class that is held out, rounded, at least one example of a class of two.
      seed: seed of the split.

    Returns:
      Rows for training and rows for validation, each int64, ascending.
    """
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in sorted(set(labels.tolist())):
        rows = torch.nonzero(labels == label).flatten()
        count = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        held_out[rows[permutation(stream_key(seed, "validation", label), len(rows))[:count]]] = True
    return torch.nonzero(~held_out).flatten(), torch.nonzero(held_out).flatten()


def prepare_data(config: TrainConfig, examples: Examples, *, device: torch.device) -> TrainingData:
    """Splits a training set into training and validation examples on a device.

    Raises:
      DataError: too few examples to split.
    """
    limit = config.train_limit or len(examples)
    images, labels = examples.images[:limit], examples.labels[:limit]
    train, validation = split_validation(labels, fraction=config.validation_fraction, seed=config.validation_seed)
    if not len(train) or not len(validation):
        raise DataError(
            f"dataset={config.dataset!r}: {len(labels)} examples give {len(train)} for training and "
            f"{len(validation)} for validation; each needs at least one"
        )
    # Sums of integers: the same on every machine.
    pixels = images[train].to(torch.int64)
    count = pixels.numel()
    mean = int(pixels.sum()) / count
    variance = max(int((pixels * pixels).sum()) / count - mean * mean, 1.0)
    return TrainingData(
        images=images[train].to(device),
        labels=labels[train].to(device),
        validation_images=images[validation].to(device),
        validation_labels=labels[validation].to(device),
        mean=mean / 255,
        std=math.sqrt(variance) / 255,
        class_names=examples.class_names,
        fingerprint=examples.fingerprint,
    )


def normalize(images: Tensor, *, mean: float, std: float, dtype: torch.dtype) -> Tensor:
    """Returns (images / 255 - mean) / std for uint8 images of any shape."""
    return images.to(dtype).sub_(mean * 255).mul_(1 / (std * 255))


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
    target = torch.zeros_like(gradient).scatter_(-1, labels[..., None], 1.0)
    if isinstance(smoothing, float) and not smoothing:
        return -hit, gradient.sub_(target)
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
    logits = stack.forward(images, training)
    smoothing = _column([config.label_smoothing for config in configs], logits)
    losses, gradient = cross_entropy(logits, labels, smoothing=smoothing)
    stack.backward(gradient.div_(training.global_batch_size))
    training.ranks.sum_(stack.gradients)
    _clip(stack.gradients, configs)
    optimizer.step()
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


def best_epoch(history: Sequence[EpochResult]) -> int:
    """Returns the epoch (from 1) with the lowest validation loss, the first of equals."""
    return min(history, key=lambda row: row.val_loss).epoch


def is_finished(config: TrainConfig, history: Sequence[EpochResult]) -> bool:
    """Tells whether a run has had all its epochs, or none better for as long as its patience."""
    if len(history) >= config.epochs:
        return True
    patience = config.early_stopping_patience
    return bool(history) and patience is not None and len(history) - best_epoch(history) >= patience


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
    if len(data.labels) < ranks.world_size:
        raise DataError(f"num_workers={ranks.world_size}: more than the {len(data.labels)} training examples")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = config.precision == "tf32"
    run = _Run(config, data, device=device, ranks=ranks, state=state)
    while not is_finished(config, run.history):
        with torch.no_grad():
            reached = run.train_epoch()
        yield reached


class _Run:
    def __init__(
        self, config: TrainConfig, data: TrainingData, *, device: torch.device, ranks: Ranks, state: TrainState | None
    ) -> None:
        self._config, self._data, self._device, self._ranks = config, data, device, ranks
        self._dtype = torch.float64 if config.precision == "float64" else torch.float32
        network = make_network(config, len(data.class_names))
        self._stack = Stack([network], device=device, bf16=config.precision == "bf16")
        self._optimizer = make_optimizer(config.optimizer, self._stack.parameters, [config])
        self._steps_per_epoch = math.ceil(len(data.labels) / config.global_batch_size)
        self.history: tuple[EpochResult, ...] = ()
        if state is not None:
            self.history = state.history
            self._stack.load_state_dicts([state.model])
            parameter = self._stack.parameters[0]
            self._optimizer.state[parameter] = {
                name: value.to(device, copy=True) for name, value in state.optimizer.items()
            }

    def train_epoch(self) -> TrainState:
        started = time.perf_counter()
        epoch = len(self.history) + 1
        losses = torch.zeros(self._steps_per_epoch, dtype=torch.float64, device=self._device)
        correct = torch.zeros(1, dtype=torch.int64, device=self._device)
        order = permutation(stream_key(self._config.seed, "shuffle", epoch), len(self._data.labels)).to(self._device)
        for index, batch in enumerate(torch.split(order, self._config.global_batch_size)):
            loss, right = self._step((epoch - 1) * self._steps_per_epoch + index, batch)
            losses[index] = loss[0]
            correct += right
        self._ranks.sum_(losses)
        self._ranks.sum_(correct)
        self._check_finite(losses, epoch)
        val_loss, val_accuracy = self._validate()
        if not math.isfinite(val_loss):
            raise self._diverged(epoch, self._steps_per_epoch, f"validation loss is {val_loss}")
        sizes = torch.tensor([len(batch) for batch in torch.split(order, self._config.global_batch_size)])
        result = EpochResult(
            epoch=epoch,
            train_loss=float((losses.cpu() * sizes).sum()) / len(order),
            train_accuracy=int(correct) / len(order),
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            learning_rate=self._optimizer.param_groups[0]["lr"],
            examples=len(order),
            epoch_seconds=time.perf_counter() - started,
        )
        self.history = (*self.history, result)
        return self._state()

    def _step(self, step: int, batch: Tensor) -> tuple[Tensor, Tensor]:
        mine = self._ranks.rows(len(batch))
        rows = torch.arange(len(batch), device=self._device)[mine]
        chosen = batch[mine]
        images = self._data.images.index_select(0, chosen)[None]
        images = normalize(images, mean=self._data.mean, std=self._data.std, dtype=self._dtype)
        seeds = [self._config.seed]
        images = augment(self._config.augmentation, images, seeds=seeds, step=step, rows=rows)
        self._optimizer.param_groups[0]["lr"] = learning_rate(step, self._steps_per_epoch, self._config)
        training = TrainingPass(seeds, step, rows, len(batch), self._ranks)
        labels = self._data.labels.index_select(0, chosen)[None]
        return train_step(self._stack, self._optimizer, images, labels, training=training, configs=[self._config])

    def _check_finite(self, losses: Tensor, epoch: int) -> None:
        bad = torch.nonzero(~losses.isfinite()).flatten()
        if len(bad):
            step = int(bad[0])
            raise self._diverged(epoch, step + 1, f"training loss is {float(losses[step])}")

    def _diverged(self, epoch: int, step: int, what: str) -> RunFailedError:
        return RunFailedError(
            f"epoch {epoch}, step {step} of {self._steps_per_epoch}: the {what}; "
            f"try a learning_rate below {self._config.learning_rate:g} or a gradient_clip_norm"
        )

    def _validate(self) -> tuple[float, float]:
        """Returns mean loss and accuracy over the validation examples, each rank taking its rows of each batch."""
        sums = torch.zeros(2, dtype=torch.float64, device=self._device)
        count = len(self._data.validation_labels)
        batches = zip(
            torch.split(self._data.validation_images, _EVALUATION_BATCH),
            torch.split(self._data.validation_labels, _EVALUATION_BATCH),
            strict=True,
        )
        for images, labels in batches:
            mine = self._ranks.rows(len(labels))
            inputs = normalize(images[mine][None], mean=self._data.mean, std=self._data.std, dtype=self._dtype)
            logits = self._stack.forward(inputs)
            losses, _ = cross_entropy(logits, labels[mine][None])
            sums[0] += losses.sum(dtype=torch.float64)
            sums[1] += (logits.argmax(-1) == labels[mine]).sum()
        loss, accuracy = (self._ranks.sum_(sums) / count).tolist()
        return loss, accuracy

    def _state(self) -> TrainState:
        optimizer = self._optimizer.state[self._stack.parameters[0]]
        return TrainState(
            history=self.history,
            model=self._stack.state_dict(0),
            optimizer={
                name: value.detach().to("cpu", copy=True) for name, value in optimizer.items() if value is not None
            },
        )
