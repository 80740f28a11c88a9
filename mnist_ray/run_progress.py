"""How far runs are, as the storage tells; no torch here, so that listing runs is quick."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mnist_ray import tables
from mnist_ray.errors import CheckpointError
from mnist_ray.history import EpochResult, best_epoch
from mnist_ray.storage import MissingError, Storage


@dataclass(frozen=True)
class RunStatus:
    """How far a run is.

    Attributes:
      status: finished, stopped (before its end, with a best checkpoint), diverged (without one) or unfinished.
      reason: why it was stopped or diverged.
    """

    status: str
    reason: str | None = None

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to train."""
        return self.status != "unfinished"


@dataclass(frozen=True)
class RunProgress:
    """How far one run of a grid is.

    Attributes:
      run: name of the run.
      status: unfinished, finished, stopped or diverged.
      reason: why it was stopped or diverged.
      epochs_done: epochs trained.
      best_epoch, best_val_loss, best_val_accuracy: of the epoch with the lowest validation loss; None before the
        first epoch's end.
      seconds: training time; in a stack a run's share of it.
    """

    run: str
    status: str
    reason: str | None
    epochs_done: int
    best_epoch: int | None
    best_val_loss: float | None
    best_val_accuracy: float | None
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields by name."""
        return asdict(self)


def progress_of(run: str, status: RunStatus, history: Sequence[EpochResult]) -> RunProgress:
    """Sums up a run's history."""
    best = history[best_epoch(history) - 1] if history else None
    return RunProgress(
        run=run,
        status=status.status,
        reason=status.reason,
        epochs_done=len(history),
        best_epoch=best.epoch if best else None,
        best_val_loss=best.val_loss if best else None,
        best_val_accuracy=best.val_accuracy if best else None,
        seconds=sum(row.epoch_seconds for row in history),
    )


def read_note(storage: Storage, run: str) -> RunStatus | None:
    """Returns what status.json says, None if there is none.

    Raises:
      CheckpointError: it is damaged.
    """
    try:
        document = json.loads(storage.read_bytes(f"runs/{run}/status.json"))
        return RunStatus(document["status"], document["reason"])
    except MissingError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"run {run!r}: status.json is damaged ({error})") from None


def read_status(storage: Storage, run: str) -> RunStatus:
    """Returns how far a run is; one that isn't there is unfinished.

    Raises:
      CheckpointError: status.json is damaged.
    """
    is_finished = storage.exists(f"runs/{run}/best/checkpoint.json")
    noted = read_note(storage, run)
    if noted is None:
        return RunStatus("finished" if is_finished else "unfinished")
    if noted.status == "stopped" and not is_finished:
        return RunStatus("unfinished")
    return noted


def read_history(storage: Storage, run: str) -> tuple[EpochResult, ...]:
    """Returns the epochs of a run, none before the first is done."""
    path = f"runs/{run}/history.parquet"
    try:
        table = tables.read_parquet(storage.read_bytes(path), source=path)
    except MissingError:
        return ()
    return tuple(EpochResult(**row) for row in table.drop_columns(["run"]).to_pylist())


def read_progress(storage: Storage, run: str) -> RunProgress:
    """Returns how far a run is."""
    return progress_of(run, read_status(storage, run), read_history(storage, run))
