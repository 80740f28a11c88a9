"""The progress of runs, read from the storage; does not import torch, so listing runs is fast."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa

from mnist_ray.errors import CheckpointError, DataError
from mnist_ray.results import parquet
from mnist_ray.results.checkpoint_document import CheckpointDocument
from mnist_ray.results.code_version import code_version
from mnist_ray.results.history import EpochResult, best_epoch
from mnist_ray.results.paths import run_path
from mnist_ray.results.run_documents import DamagedCheckpoint, checked_document
from mnist_ray.storage.storage import MissingError, Storage


@dataclass(frozen=True)
class RunStatus:
    """The status of a run.

    Attributes:
      status: finished, stopped (early, with a best checkpoint), diverged (without one) or unfinished.
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
    """The progress of one run of a grid.

    Attributes:
      run: name of the run.
      status: unfinished, finished, stopped or diverged.
      reason: why it was stopped or diverged.
      epochs_done: epochs trained.
      best_epoch, best_val_loss, best_val_accuracy: of the epoch with the lowest validation loss; None before the
        first epoch ends.
      seconds: training time; in a stack, the run's share of it.
      trained_at: when the training ended; None before, and if an older version trained the run.
    """

    run: str
    status: str
    reason: str | None
    epochs_done: int
    best_epoch: int | None
    best_val_loss: float | None
    best_val_accuracy: float | None
    seconds: float
    trained_at: datetime | None = None


def progress_of(
    run: str, status: RunStatus, history: Sequence[EpochResult], trained_at: str | None = None
) -> RunProgress:
    """Summarizes a run's history; trained_at is the time in best/checkpoint.json."""
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
        trained_at=time_of(trained_at),
    )


def time_of(text: str | None) -> datetime | None:
    """Returns the time in a document; None in one by an older version, which kept none."""
    return datetime.fromisoformat(text) if text else None


def read_note(storage: Storage, run: str) -> RunStatus | None:
    """Returns the content of status.json; None if there is no such file.

    Raises:
      CheckpointError: it is damaged.
    """
    try:
        document = json.loads(storage.read_bytes(run_path(run, "status.json")))
        return RunStatus(document["status"], document["reason"])
    except MissingError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"run {run!r}: status.json is damaged ({error})") from None


def read_status(storage: Storage, run: str) -> RunStatus:
    """Returns a run's status; a missing run is unfinished.

    Raises:
      CheckpointError: status.json is damaged.
    """
    return _status(storage, run, _final_document(storage, run))


def _status(storage: Storage, run: str, final: dict[str, Any] | None) -> RunStatus:
    if final and "status" in final:
        return RunStatus(**final["status"])
    noted = read_note(storage, run)
    if noted is None:
        return RunStatus("unfinished" if final is None else "finished")
    if noted.status == "stopped" and final is None:
        return RunStatus("unfinished")
    return noted


def read_history(storage: Storage, run: str) -> tuple[EpochResult, ...]:
    """Returns the completed epochs of a run.

    For a finished run they come from best/checkpoint.json, which is never rewritten; for others from history.parquet or
    the newest checkpoint, whichever has more: a slower writer may have replaced the table.

    Raises:
      DataError: history.parquet is damaged, and no checkpoint has the epochs.
    """
    return _history(storage, run, _final_document(storage, run))


def _history(storage: Storage, run: str, final: dict[str, Any] | None) -> tuple[EpochResult, ...]:
    ended = _rows(final) if final else ()
    if final and "status" in final:
        return ended
    damaged: DataError | None = None
    try:
        table = read_history_table(storage, run)
    except DataError as error:
        table, damaged = (), error
    # If an older version finished the run, best/checkpoint.json has only the epochs up to the best.
    longest = max(table, ended, _newest_history(storage, run, more_than=max(len(table), len(ended))), key=len)
    if damaged and not longest:
        raise damaged
    return longest


def read_history_table(storage: Storage, run: str) -> tuple[EpochResult, ...]:
    """Returns the rows of history.parquet, which may lag behind; empty if there is no such file.

    Raises:
      DataError: it is damaged.
    """
    path = run_path(run, "history.parquet")
    try:
        table = parquet.read_parquet(storage.read_bytes(path), source=path)
    except MissingError:
        return ()
    return tuple(EpochResult(**row) for row in table.drop_columns(["run"]).to_pylist())


def history_table(run: str, history: Sequence[EpochResult]) -> pa.Table:
    """Returns a run's epochs as the table history."""
    columns: dict[str, Any] = {
        name: [getattr(row, name) for row in history] for name in EpochResult.__dataclass_fields__
    }
    return parquet.make_table("history", {**columns, "run": [run] * len(history)}, code_version=code_version())


def _newest_history(storage: Storage, run: str, *, more_than: int) -> tuple[EpochResult, ...]:
    """Returns the history of the newest checkpoint after some epoch; empty if there is no newer checkpoint."""
    names = storage.list_folders(run_path(run, "checkpoints"))
    for name in sorted((name for name in names if name > f"epoch-{more_than:04d}"), reverse=True):
        document = _checkpoint_document(storage, run, f"checkpoints/{name}")
        if document:
            return _rows(document)
    return ()


def _final_document(storage: Storage, run: str) -> dict[str, Any] | None:
    """Returns best/checkpoint.json, empty if it is damaged, None if the run isn't finished."""
    return _checkpoint_document(storage, run, "best")


def _checkpoint_document(storage: Storage, run: str, folder: str) -> dict[str, Any] | None:
    source = run_path(run, folder, "checkpoint.json")
    try:
        document = checked_document(storage.read_bytes(source), source, CheckpointDocument)
    except MissingError:
        return None
    except DamagedCheckpoint:
        # Callers that need more than the history report the damage.
        return {}
    return document if document.get("run") == run else {}


def _rows(document: Mapping[str, Any]) -> tuple[EpochResult, ...]:
    return tuple(EpochResult(**row) for row in document["history"])


def read_progress(storage: Storage, run: str) -> RunProgress:
    """Returns a run's progress."""
    final = _final_document(storage, run)
    trained_at = (final or {}).get("trained_at")
    return progress_of(run, _status(storage, run, final), _history(storage, run, final), trained_at)
