"""The folder of a run in a storage: safetensors and JSON, their SHA-256 checked on load.

<storage>/runs/<run>/config.json              created once, when the run starts; replaced if it gets more epochs
                     history.parquet          one row per epoch, replaced as a whole after each
                     checkpoints/epoch-NNNN/  model.safetensors, optimizer.safetensors, checkpoint.json
                     best/                    checkpoint.json: created once, when the run is done, with all its epochs;
                                              model.safetensors: written after it
                     status.json              only for a run that diverged or was stopped early: which, and why

Two processes may train the same run: two commands, or a disconnected worker and its replacement. A request of either
may arrive late, even after the other has finished, so nothing relies on a check before a write:

- best/checkpoint.json is created by a conditional write, so the first version stays. It holds the final status, the
  whole history, the best epoch, which validation examples it predicts correctly and the SHA-256 of its weights.
- best/model.safetensors is written after it, with the weights that it names, which are the same for every writer.
- checkpoints/epoch-NNNN hold the same bits from every writer. A writer deletes only what is older than its last two,
  except its best: a faster writer needs only newer checkpoints or the same best.
- A slower writer may overwrite history.parquet and status.json. So readers take a finished run's history and status
  from best/checkpoint.json, and an unfinished run's history from its newest checkpoint if that has more epochs; the
  next writer repairs history.parquet (RunFolder.mend).
- A finished run that gets more epochs (run_claim) loses best/ and is unfinished until it has trained them. A writer of
  the shorter run that still creates best/ then is noticed by its config, which is another than that of config.json.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from mnist_ray.config.settings import TrainConfig
from mnist_ray.data.training_data import TrainingData
from mnist_ray.errors import CheckpointError, DataError, StorageError
from mnist_ray.results import lineage, parquet
from mnist_ray.results.checkpoint_folder import (
    Checkpoint,
    CheckpointFolder,
    checkpoint_names,
    epoch_name,
    latest_state,
)
from mnist_ray.results.history import EpochResult, best_epoch, is_finished
from mnist_ray.results.paths import run_path
from mnist_ray.results.run_claim import claim, complete_history
from mnist_ray.results.run_documents import (
    DamagedCheckpoint,
    config_in,
    json_bytes,
    read_run_document,
    with_checksum,
)
from mnist_ray.results.run_progress import (
    RunStatus,
    history_table,
    read_history,
    read_history_table,
    read_note,
    read_status,
)
from mnist_ray.results.train_state import TrainState
from mnist_ray.results.validation import Validation
from mnist_ray.storage.storage import Storage

_KEPT_CHECKPOINTS = 2


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run; owns every path in it."""

    storage: Storage
    run: str

    def path(self, *parts: str) -> str:
        """Returns a path in the run's folder, relative to the storage."""
        return run_path(self.run, *parts)

    def claim(self, config: TrainConfig, data: TrainingData, *, resume: bool = True) -> None:
        """Claims the run's name for a config and data, or goes on with the run that has it; see run_claim."""
        claim(self.storage, self.run, config, data, resume=resume)

    def config(self) -> TrainConfig:
        """Returns the config in config.json.

        Raises:
          CheckpointError: no such run, or damaged.
        """
        return config_in(read_run_document(self.storage, self.run), f"run {self.run!r}: config.json")

    def begin_from(self, shorter: "RunFolder", config: TrainConfig) -> bool:
        """Begins a run with all epochs of a shorter one, unless it has begun.

        Args:
          shorter: another run, which stays as it is; `config` continues its config.

        Returns:
          Whether the run has epochs now; False if the shorter run has no whole checkpoint with all of its epochs.

        Raises:
          CheckpointError: the shorter run's config.json or best checkpoint is damaged.
        """
        if checkpoint_names(self.storage, self.run):
            return True
        history = complete_history(self.storage, shorter.run)
        if history is None:
            return False
        mine = {"run": self.run, "config": config.model_dump(mode="json"), "config_hash": config.config_hash()}
        begun = {**read_run_document(self.storage, shorter.run), **mine, "begun_at": datetime.now(UTC).isoformat()}
        self.storage.create_bytes(self.path("config.json"), with_checksum(begun))
        for name in sorted({epoch_name(best_epoch(history)), epoch_name(len(history))}):
            checkpoint = shorter._checkpoint(name)
            document = checkpoint.document()
            files = {file: checkpoint.read(file, document) for file in document["files"]}
            self._checkpoint(name).write(files, document | mine)
        self._write_history(history)
        return True

    def history(self) -> tuple[EpochResult, ...]:
        """Returns the run's completed epochs; see read_history.

        Raises:
          CheckpointError: the run is finished and has no epochs.
          DataError: history.parquet is damaged, and no checkpoint has its epochs.
        """
        history = read_history(self.storage, self.run)
        if not history and self.is_finished():
            raise CheckpointError(f"run {self.run!r}: finished, but history.parquet is missing; copy it again")
        return history

    def mend(self, say: Callable[[str], None] = lambda _: None) -> None:
        """Repairs history.parquet and a finished run's weights after damage, or a killed or slower writer.

        Args:
          say: called with the defect of history.parquet.

        Raises:
          MnistRayError: as from history, or there is no intact checkpoint to copy the weights from.
        """
        if self.is_finished() and not self.storage.exists(self.path("best", "model.safetensors")):
            self.storage.write_bytes(self.path("best", "model.safetensors"), self._best()[1])
        history = self.history()
        try:
            table = read_history_table(self.storage, self.run)
            wrong = (
                f"had {len(table)} of {len(history)} epochs" if len(table) < len(history) else "was another writer's"
            )
        except DataError:
            table, wrong = (), "was damaged"
        if table != history:
            self._write_history(history)
            say(f"run {self.run!r}: history.parquet {wrong}; written again from the newest checkpoint")

    def is_finished(self) -> bool:
        """Tells whether the run is done and its best checkpoint written."""
        return self.storage.exists(self.path("best", "checkpoint.json"))

    def mark(self, status: str, reason: str) -> None:
        """Records why a run ends: "stopped", before its best checkpoint is written, or "diverged"."""
        if self.is_finished():
            return
        self.storage.write_bytes(self.path("status.json"), json_bytes({"status": status, "reason": reason}))

    def is_marked(self, status: str) -> bool:
        """Tells whether `mark` recorded this status, even if it no longer applies."""
        noted = read_note(self.storage, self.run)
        return noted is not None and noted.status == status

    def status(self) -> RunStatus:
        """Returns the run's status; see read_status."""
        return read_status(self.storage, self.run)

    def save(
        self,
        config: TrainConfig,
        data: TrainingData,
        state: TrainState,
        *,
        command_line: str | None = None,
        num_workers: int = 1,
        stack_size: int = 1,
    ) -> None:
        """Writes the state after an epoch atomically: checkpoint.json comes last.

        Another process may train the same run, to the same bits: its final result and its later epochs stay.

        Args:
          config: of the run.
          data: training data.
          state: after the epoch.
          command_line: command line that requested the run; this process's own by default.
          num_workers: workers that share the run's batches.
          stack_size: runs that train together.
        """
        if self.is_finished():
            return
        self._check_presence()
        made_by = lineage.lineage(
            command_line=lineage.command_line() if command_line is None else command_line,
            num_workers=num_workers,
            gpu=torch.cuda.get_device_name(data.labels.device) if data.labels.is_cuda else None,
        )
        epoch = state.history[-1].epoch
        self._checkpoint(epoch_name(epoch)).write_state(config, data, state, lineage=made_by, stack_size=stack_size)
        names = self.storage.list_folders(self.path("checkpoints"))
        # A writer that is ahead has written a longer history.
        if max(names) <= epoch_name(epoch):
            self._write_history(state.history)
        best, oldest_kept = epoch_name(best_epoch(state.history)), epoch_name(epoch - _KEPT_CHECKPOINTS + 1)
        for name in names:
            if name < oldest_kept and name != best:
                self.storage.delete_folder(self.path("checkpoints", name))
        if self.is_finished():
            self.mend()

    def finish(self, config: TrainConfig) -> None:
        """Writes best/ from the checkpoint with the lowest validation loss, unless another writer has done so.

        Args:
          config: that the writer has trained; if the run was given more epochs meanwhile, its end is not reached.

        Raises:
          CheckpointError: this or the newest checkpoint is damaged.
        """
        if not self.is_finished() and config == self.config():
            self._create_best(config)
        self.mend()

    def _create_best(self, config: TrainConfig) -> None:
        state = self.latest_state()
        num_epochs = len(self.history())
        if state is None or len(state.history) < num_epochs:
            # The best of fewer epochs may be a different one.
            raise CheckpointError(
                f"run {self.run!r}: checkpoints/{epoch_name(num_epochs)} is damaged or missing; train it again"
            )
        best = self._checkpoint(epoch_name(best_epoch(state.history)))
        document = best.document()
        weights = best.read("model.safetensors", document)
        document |= {
            "files": {"model.safetensors": document["files"]["model.safetensors"]},
            # The newest checkpoint may come from another writer, whose epochs took different times.
            "metrics": asdict(state.history[document["epoch"] - 1]),
            # Of fewer epochs, if the run was given more later.
            "config": config.model_dump(mode="json"),
            "config_hash": config.config_hash(),
            "history": [asdict(row) for row in state.history],
            "status": asdict(self._end(config, state.history)),
            "trained_at": datetime.now(UTC).isoformat(),
        }
        if self.storage.create_bytes(self.path("best", "checkpoint.json"), with_checksum(document)):
            self.storage.write_bytes(self.path("best", "model.safetensors"), weights)

    def _end(self, config: TrainConfig, history: tuple[EpochResult, ...]) -> RunStatus:
        """Returns the final status with these epochs: stopped only if so recorded and epochs are missing."""
        noted = None if is_finished(config, history) else read_note(self.storage, self.run)
        return noted if noted and noted.status == "stopped" else RunStatus("finished")

    def latest_state(self, say: Callable[[str], None] = lambda _: None) -> TrainState | None:
        """Returns the state after the last epoch whose checkpoint is intact; see checkpoint_folder.latest_state."""
        return latest_state(self.storage, self.run, say)

    def best(self) -> Checkpoint:
        """Returns the finished run's best checkpoint.

        Raises:
          CheckpointError: no such run, not finished, damaged, or tensors that don't fit its config.
        """
        self._check_finished()
        document, weights = self._best()
        best = self._checkpoint("best")
        return Checkpoint(self.run, best.config(document), best.tensors(weights), document, self.history())

    def best_validation(self) -> Validation | None:
        """Returns which validation examples the finished run's best checkpoint predicts correctly; reads no weights.

        Returns:
          None if an older version, which kept none, trained the best epoch.

        Raises:
          CheckpointError: no such run, not finished or damaged.
        """
        self._check_finished()
        return self._checkpoint("best").validation()

    def _check_finished(self) -> None:
        read_run_document(self.storage, self.run)
        if not self.is_finished():
            raise CheckpointError(
                f"run {self.run!r}: not finished, so it has no best checkpoint; "
                "the command that trains it goes on with it"
            )

    def _best(self) -> tuple[dict[str, Any], bytes]:
        """Returns best/checkpoint.json and the weights that it names."""
        best = self._checkpoint("best")
        document = best.document()
        if self.storage.exists(self.path("best", "model.safetensors")):
            return document, best.read("model.safetensors", document)
        # The writer is, or was killed, between the two writes: the weights are still in their original checkpoint.
        epoch = epoch_name(document["epoch"])
        original = self._checkpoint(epoch)
        weights = original.read("model.safetensors", original.document())
        if hashlib.sha256(weights).hexdigest() != document["files"]["model.safetensors"]:
            raise DamagedCheckpoint(f"run {self.run!r}: best/model.safetensors is missing, and {epoch} has others")
        return document, weights

    def _checkpoint(self, name: str) -> CheckpointFolder:
        return CheckpointFolder(self.storage, self.run, name)

    def _check_presence(self) -> None:
        """Checks that the run's folder is still there: an unmounted disk leaves an empty folder to write into."""
        if not self.storage.exists(self.path("config.json")):
            raise StorageError(
                f"storage={self.storage.uri!r}: {self.path('config.json')} is gone: deleted, or no longer mounted; "
                "bring it back, and go on with the same command"
            )

    def _write_history(self, history: tuple[EpochResult, ...]) -> None:
        content = parquet.to_parquet_bytes(history_table(self.run, history))
        self.storage.write_bytes(self.path("history.parquet"), content)
