"""The training loop: no saving, no logging, no Ray."""

import math
import time
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from mnist_ray.config.batches import batch_sizes, images_at_once
from mnist_ray.config.settings import TrainConfig
from mnist_ray.data.training_data import TrainingData
from mnist_ray.errors import CheckpointError, DataError, NetworkFailedError, RunFailedError
from mnist_ray.models.engine import Engine, make_engine
from mnist_ray.models.networks import make_network, network_of
from mnist_ray.models.own_network import errors_of_code
from mnist_ray.models.ranks import Ranks
from mnist_ray.optimizers.optimizers import learning_rate, make_optimizer
from mnist_ray.results.history import EpochResult, is_finished
from mnist_ray.results.train_state import TrainState
from mnist_ray.training.data import normalize
from mnist_ray.training.steps import Steps, TabledSteps, can_be_recorded
from mnist_ray.training.watching import Watch

# A multiple of 16 rows: see Stack._parts.
VALIDATION_BATCH = 1024


class Divergence(str):
    """Where and how a run's loss stopped being finite, in words for the user."""


def fit(
    config: TrainConfig,
    data: TrainingData,
    *,
    device: torch.device,
    ranks: Ranks = Ranks(),  # noqa: B008 - frozen
    state: TrainState | None = None,
    watch: Watch | None = None,
) -> Iterator[TrainState]:
    """Trains one run, from the start or from a state, and yields the state after each epoch.

    Args:
      data: the run's examples, the same on every rank.
      ranks: the processes that share every batch.
      state: the state to resume from; the result is bit for bit the same as without the interruption.
      watch: called after each step.

    Raises:
      RunFailedError: a loss is not finite; the message names the epoch and the step.
      DataError: fewer examples than ranks.
    """
    training = Training([config], data, device=device, ranks=ranks, states=[state])
    while training.active:
        reached = training.train_epoch(watch)[0]
        if isinstance(reached, Divergence):
            raise RunFailedError(str(reached))
        yield training.state(0)


class Training:
    """Trains runs with the same shapes together, epoch by epoch; a run that ends leaves the engine.

    On a CPU each run gets the same bits as when trained alone.

    Attributes:
      active: the runs still training, as indices into the configs.
    """

    def __init__(
        self,
        configs: Sequence[TrainConfig],
        data: TrainingData,
        *,
        device: torch.device,
        ranks: Ranks = Ranks(),  # noqa: B008 - frozen
        states: Sequence[TrainState | None] | None = None,
        tabled: bool | None = None,
    ) -> None:
        """Starts or resumes the runs.

        Args:
          configs: one per run; they agree in all settings of settings.STACK_SETTINGS.
          data: the examples, the same for all runs and ranks.
          ranks: the processes that share every batch; more than one only for a single run.
          states: the states to resume from, all after the same epoch; None for a run that starts.
          tabled: whether steps read their changing inputs from tables on the device (see TabledSteps); None to do so
            where a CUDA graph can be recorded.

        Raises:
          DataError: fewer examples than ranks, or a single example for batch norm.
        """
        if len(data.labels) < ranks.world_size:
            raise DataError(f"num_workers={ranks.world_size}: more than the {len(data.labels)} training examples")
        assert ranks.world_size == 1 or len(configs) == 1
        self._configs, self._data, self._device, self._ranks = list(configs), data, device, ranks
        self._dtype = torch.float64 if configs[0].precision == "float64" else torch.float32
        self._batch_sizes = batch_sizes(len(data.labels), configs[0].global_batch_size)
        self._steps_per_epoch = len(self._batch_sizes)
        if self._batch_sizes == (1,) and configs[0].batch_norm and configs[0].model == "mlp":
            raise DataError("batch_norm=True: a single training example has no variance; use more examples")
        self._tabled = tabled
        # Some of cuDNN's convolutions sum in an arbitrary order.
        torch.backends.cudnn.deterministic = True
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = configs[0].precision == "tf32"
        given = dict(enumerate(states or [None] * len(configs)))
        self._histories = {run: state.history if state else () for run, state in given.items()}
        (self._epoch,) = {len(history) for history in self._histories.values()}
        self._members = self.active = tuple(run for run in given if not self._is_finished(run))
        if self.active:
            self._assemble([given[run] for run in self.active])

    def stop(self, runs: Collection[int]) -> None:
        """Takes runs out of the stack; their states stay available until the next epoch begins."""
        self.active = tuple(run for run in self.active if run not in runs)

    @torch.no_grad()
    def train_epoch(self, watch: Watch | None = None) -> dict[int, EpochResult | Divergence]:
        """Trains the active runs for an epoch; runs that finish or diverge leave the stack.

        Args:
          watch: called after each step.

        Returns:
          The outcome of each run that was active.
        """
        started = time.perf_counter()
        if self.active != self._members:
            self._compact()
        self._epoch += 1
        with errors_of_code(self._configs[0], NetworkFailedError):
            losses, correct = self._program.train_epoch(self._epoch, watch)
            validation, hits = self._validate()
        # Copying to the CPU waits for the GPU, so the epoch has ended afterwards.
        losses, correct, validation, self._hits = (each.cpu() for each in (losses, correct, validation, hits))
        seconds = (time.perf_counter() - started) / len(self._members)
        reached: dict[int, EpochResult | Divergence] = {}
        for place, run in enumerate(self._members):
            val_loss, val_accuracy = validation[place].tolist()
            divergence = self._divergence(run, losses[place], val_loss)
            if divergence:
                reached[run] = divergence
                continue
            reached[run] = result = EpochResult(
                epoch=self._epoch,
                train_loss=float((losses[place] * torch.tensor(self._batch_sizes)).sum()) / len(self._data.labels),
                train_accuracy=int(correct[place]) / len(self._data.labels),
                val_loss=val_loss,
                val_accuracy=val_accuracy,
                learning_rate=self._last_learning_rate(run),
                examples=len(self._data.labels),
                epoch_seconds=seconds,
            )
            self._histories[run] = (*self._histories[run], result)
        self.stop([run for run in self.active if isinstance(reached[run], Divergence) or self._is_finished(run)])
        return reached

    def state(self, run: int) -> TrainState:
        """Copies to the CPU the state of a run that took part in the last epoch and didn't diverge."""
        place = self._members.index(run)
        engine = self._steps.engine
        optimizer = self._steps.optimizer.state[engine.parameters[place]]
        return TrainState(
            history=self._histories[run],
            model=engine.state_dict(place),
            optimizer={
                name: value.detach().to("cpu", copy=True) for name, value in optimizer.items() if value is not None
            },
            correct=self._hits[place].numpy(),
        )

    def _assemble(self, states: Sequence[TrainState | None]) -> None:
        """Makes the stack of the active runs, from scratch or from their states."""
        configs = [self._configs[run] for run in self._members]
        networks = [_network(config, self._data, state) for config, state in zip(configs, states, strict=True)]
        bf16 = configs[0].precision == "bf16"
        engine = make_engine(networks, device=self._device, bf16=bf16, ranks=self._ranks)
        optimizer = make_optimizer(configs[0].optimizer, engine.parameters, configs)
        for parameter, state in zip(engine.parameters, states, strict=True):
            if state is not None:
                optimizer.state[parameter] = {
                    name: value.to(self._device, copy=True) for name, value in state.optimizer.items()
                }
        self._prepare_steps(engine, optimizer)

    def _compact(self) -> None:
        """Reduces the stack to the active runs."""
        before, places = self._steps, [self._members.index(run) for run in self.active]
        engine = before.engine.take(places)
        configs = [self._configs[run] for run in self.active]
        optimizer = make_optimizer(configs[0].optimizer, engine.parameters, configs)
        for parameter, place in zip(engine.parameters, places, strict=True):
            optimizer.state[parameter] = before.optimizer.state[before.engine.parameters[place]]
        self._members = self.active
        self._prepare_steps(engine, optimizer)

    def _prepare_steps(self, engine: Engine, optimizer: torch.optim.Optimizer) -> None:
        configs = tuple(self._configs[run] for run in self._members)
        self._steps = Steps(engine, optimizer, configs, self._data, self._device, self._ranks)
        tabled = can_be_recorded(configs[0], engine) if self._tabled is None else self._tabled
        self._program = TabledSteps(self._steps) if tabled else self._steps

    def _validate(self) -> tuple[Tensor, Tensor]:
        """Evaluates the runs on the validation examples.

        Returns:
          Mean loss and accuracy, float64 [runs, 2], and which predictions are correct, bool [runs, examples], over all
          ranks.
        """
        num_runs, num_examples = len(self._members), len(self._data.validation_labels)
        losses = torch.zeros(num_runs, dtype=torch.float64, device=self._device)
        # Each rank fills in its own examples, so that the sum has those of all.
        hits = torch.zeros(num_runs, num_examples, dtype=torch.bool, device=self._device)
        size = images_at_once(VALIDATION_BATCH, math.prod(self._data.image_shape))
        batches = zip(
            torch.split(self._data.validation_images, size),
            torch.split(self._data.validation_labels, size),
            torch.split(hits, size, dim=1),
            strict=True,
        )
        for images, labels, of_batch in batches:
            mine = self._ranks.rows(len(labels))
            inputs = normalize(images[mine], mean=self._data.mean, std=self._data.std, dtype=self._dtype)
            batch_losses, of_batch[:, mine] = self._steps.engine.evaluate(inputs, labels[mine])
            losses += batch_losses
        sums = torch.stack([losses, hits.sum(1, dtype=torch.float64)], dim=1)
        return self._ranks.sum_(sums) / num_examples, self._ranks.sum_(hits)

    def _divergence(self, run: int, losses: Tensor, val_loss: float) -> Divergence | None:
        bad = torch.nonzero(~losses.isfinite()).flatten().tolist()
        if not bad and math.isfinite(val_loss):
            return None
        step = bad[0] + 1 if bad else self._steps_per_epoch
        what = f"training loss is {float(losses[bad[0]])}" if bad else f"validation loss is {val_loss}"
        return Divergence(
            f"epoch {self._epoch}, step {step} of {self._steps_per_epoch}: the {what}; "
            f"try a learning_rate below {self._configs[run].learning_rate:g} or a gradient_clip_norm"
        )

    def _last_learning_rate(self, run: int) -> float:
        return learning_rate(self._epoch * self._steps_per_epoch - 1, self._steps_per_epoch, self._configs[run])

    def _is_finished(self, run: int) -> bool:
        return is_finished(self._configs[run], self._histories[run])


def _network(config: TrainConfig, data: TrainingData, state: TrainState | None) -> torch.nn.Module:
    num_classes = len(data.class_names)
    if state is None:
        return make_network(config, data.image_shape, num_classes)
    try:
        return network_of(config, data.image_shape, num_classes, state.model)
    except ValueError as error:
        raise CheckpointError(f"the checkpoint has weights of another architecture than its config: {error}") from None
