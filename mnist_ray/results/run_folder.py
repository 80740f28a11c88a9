"""Checkpoints in a storage: safetensors and JSON, their SHA-256 checked on load.

<storage>/runs/<run>/config.json              created once, when the run starts
                     history.parquet          one row per epoch, replaced as a whole after each
                     checkpoints/epoch-NNNN/  model.safetensors, optimizer.safetensors, checkpoint.json
                     best/                    checkpoint.json: created once, when the run is done, with all its epochs;
                                              model.safetensors: written after it
                     status.json              only for a run that diverged or was stopped early: which, and why

Two processes may train the same run: two commands, or a disconnected worker and its replacement. A request of either
may arrive late, even after the other has finished, so nothing relies on a check before a write:

- best/checkpoint.json is created by a conditional write, so the first version stays. It holds the final status, the
  whole history, the best epoch and the SHA-256 of its weights.
- best/model.safetensors is written after it, with the weights that it names, which are the same for every writer.
- checkpoints/epoch-NNNN hold the same bits from every writer. A writer deletes only what is older than its last two,
  except its best: a faster writer needs only newer checkpoints or the same best.
- A slower writer may overwrite history.parquet and status.json. So readers take a finished run's history and status
  from best/checkpoint.json, and an unfinished run's history from its newest checkpoint if that has more epochs; the
  next writer repairs history.parquet (RunFolder.mend).
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from mnist_ray.config.settings import TrainConfig, make_config
from mnist_ray.data.training_data import TrainingData
from mnist_ray.errors import CheckpointError, ConfigError, ConflictError, DataError, StorageError
from mnist_ray.results import lineage, parquet
from mnist_ray.results.checkpoint_document import CheckpointDocument, RunDocument
from mnist_ray.results.code_version import code_version
from mnist_ray.results.history import EpochResult, best_epoch, is_finished
from mnist_ray.results.paths import run_path
from mnist_ray.results.run_documents import DamagedCheckpoint, checked_document, json_bytes, with_checksum
from mnist_ray.results.run_progress import RunStatus, read_history, read_history_table, read_note, read_status
from mnist_ray.results.train_state import TrainState
from mnist_ray.storage.failures import NotAnObjectError
from mnist_ray.storage.storage import MissingError, Storage

_KEPT_CHECKPOINTS = 2


@dataclass(frozen=True)
class Checkpoint:
    """A trained network and its origin.

    Attributes:
      run: name of the run.
      config: its config.
      model: the plain network's state_dict.
      document: checkpoint.json: epoch, metrics, data, files with their SHA-256, lineage.
      history: every epoch of the run.
    """

    run: str
    config: TrainConfig
    model: dict[str, Tensor]
    document: Mapping[str, Any]
    history: tuple[EpochResult, ...]

    @property
    def sha256(self) -> str:
        """SHA-256 of the weights' file, in hexadecimal."""
        return str(self.document["files"]["model.safetensors"])

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the network's outputs."""
        return tuple(self.document["class_names"])

    @property
    def normalization(self) -> tuple[float, float]:
        """Mean and standard deviation of the training pixels, as fractions of 255."""
        return self.document["normalization"]["mean"], self.document["normalization"]["std"]

    @property
    def wide_bits(self) -> int | None:
        """Bit depth that training images of more than 8 bits were scaled from; None if none had, or if unrecorded."""
        return cast(int | None, self.document.get("wide_bits"))


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run; owns every path in it."""

    storage: Storage
    run: str

    def path(self, *parts: str) -> str:
        """Returns a path in the run's folder, relative to the storage."""
        return run_path(self.run, *parts)

    def claim(self, config: TrainConfig, data: TrainingData, *, resume: bool) -> None:
        """Claims the run's name for a config and data, or checks that it was claimed for the same.

        Raises:
          ConflictError: the name belongs to another config, to other data or, without `resume`, to an unfinished run.
        """
        document = {
            "run": self.run,
            "config": config.model_dump(mode="json"),
            "config_hash": config.config_hash(),
            "data_sha256": data.fingerprint,
        }
        if self.storage.create_bytes(self.path("config.json"), with_checksum(document)):
            return
        existing = self.document()
        self.check_config(config)
        if existing["data_sha256"] != data.fingerprint:
            raise ConflictError(
                f"run {self.run!r}: exists with other data ({existing['data_sha256'][:12]}, now "
                f"{data.fingerprint[:12]}); choose another --name"
            )
        status = self.status()
        if not resume and status.status == "diverged":
            raise ConflictError(
                f"run {self.run!r}: diverged ({status.reason}); change its settings and choose another --name"
            )
        if not resume and not self.is_finished():
            raise ConflictError(f"run {self.run!r}: exists, not finished; go on with --resume or choose another --name")

    def check_config(self, config: TrainConfig) -> None:
        """Checks that the run's name, which is taken, was claimed for this config.

        Raises:
          ConflictError: the name belongs to another config.
          CheckpointError: no such run, or damaged.
        """
        # Don't compare hashes: an older version may have computed them differently.
        existing = self._config(self.document(), "config.json")
        if existing != config:
            raise ConflictError(
                f"run {self.run!r}: exists with another config ({_first_difference(existing, config)}); "
                "choose another --name"
            )

    def _config(self, document: Mapping[str, Any], file: str) -> TrainConfig:
        """Returns the config in a document, with defaults for settings that are newer than the run."""
        try:
            return make_config(TrainConfig, document["config"], f"run {self.run!r}: {file}")
        except ConfigError as error:
            raise CheckpointError(f"{error} (in this version)") from None

    def document(self) -> dict[str, Any]:
        """Returns config.json.

        Raises:
          CheckpointError: no such run, or damaged.
        """
        try:
            text = self.storage.read_bytes(self.path("config.json"))
            return checked_document(text, f"run {self.run!r}: config.json", RunDocument)
        except NotAnObjectError as error:
            raise CheckpointError(f"run {self.run!r}: {error}; remove it and copy the run again") from None
        except MissingError:
            raise CheckpointError(
                f"run {self.run!r}: not in {self.storage.uri}; `mnist-ray runs` lists what is"
            ) from None

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
            self.storage.write_bytes(self.path("best", "model.safetensors"), self._best_weights()[1])
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
        files = {
            "model.safetensors": safetensors.torch.save(state.model),
            "optimizer.safetensors": safetensors.torch.save(state.optimizer),
        }
        document = self._checkpoint_document(config, data, state.history, files)
        document |= {"lineage": made_by, "stack_size": stack_size}
        self._write(f"checkpoints/{_epoch_name(epoch)}", files, document)
        names = self.storage.list_folders(self.path("checkpoints"))
        # A writer that is ahead has written a longer history.
        if max(names) <= _epoch_name(epoch):
            self._write_history(state.history)
        best, oldest_kept = _epoch_name(best_epoch(state.history)), _epoch_name(epoch - _KEPT_CHECKPOINTS + 1)
        for name in names:
            if name < oldest_kept and name != best:
                self.storage.delete_folder(self.path("checkpoints", name))
        if self.is_finished():
            self.mend()

    def finish(self) -> None:
        """Writes best/ from the checkpoint with the lowest validation loss, unless another writer has done so.

        Raises:
          CheckpointError: this or the newest checkpoint is damaged.
        """
        if not self.is_finished():
            self._create_best()
        self.mend()

    def _create_best(self) -> None:
        state = self.latest_state()
        num_epochs = len(self.history())
        if state is None or len(state.history) < num_epochs:
            # The best of fewer epochs may be a different one.
            raise CheckpointError(
                f"run {self.run!r}: checkpoints/{_epoch_name(num_epochs)} is damaged or missing; train it again with "
                "--resume"
            )
        folder = f"checkpoints/{_epoch_name(best_epoch(state.history))}"
        document, weights = self._read(folder, "model.safetensors")
        document |= {
            "files": {"model.safetensors": document["files"]["model.safetensors"]},
            # The newest checkpoint may come from another writer, whose epochs took different times.
            "metrics": asdict(state.history[document["epoch"] - 1]),
            "history": [asdict(row) for row in state.history],
            "status": asdict(self._end(self._config(document, f"{folder}/checkpoint.json"), state.history)),
        }
        if self.storage.create_bytes(self.path("best", "checkpoint.json"), with_checksum(document)):
            self.storage.write_bytes(self.path("best", "model.safetensors"), weights)

    def _end(self, config: TrainConfig, history: tuple[EpochResult, ...]) -> RunStatus:
        """Returns the final status with these epochs: stopped only if so recorded and epochs are missing."""
        if is_finished(config, history) or not self.is_marked("stopped"):
            return RunStatus("finished")
        return RunStatus("stopped", json.loads(self.storage.read_bytes(self.path("status.json")))["reason"])

    def latest_state(self, say: Callable[[str], None] = lambda _: None) -> TrainState | None:
        """Returns the state after the last epoch whose checkpoint is intact; None before the first.

        Args:
          say: called if a damaged checkpoint is skipped: its epochs are trained again, to the same bits.

        Raises:
          CheckpointError: there are checkpoints but none is intact, or one belongs to another run.
        """
        names = self._checkpoint_names()
        damaged: DamagedCheckpoint | None = None
        for name in names:
            if not self.storage.exists(self.path("checkpoints", name, "checkpoint.json")):
                continue
            try:
                state = self._state(name)
            except DamagedCheckpoint as error:
                damaged = damaged or error
                continue
            if damaged:
                say(f"{damaged}; going on from epoch {state.history[-1].epoch}")
            return state
        if names != self._checkpoint_names():
            # Meanwhile another writer continued and deleted old checkpoints.
            return self.latest_state(say)
        if damaged:
            raise CheckpointError(f"{damaged}; no older one is whole: delete {self.path()} to train it anew")
        return None

    def _checkpoint_names(self) -> list[str]:
        names = self.storage.list_folders(self.path("checkpoints"))
        return sorted((name for name in names if name.startswith("epoch-")), reverse=True)

    def _state(self, name: str) -> TrainState:
        document, weights = self._read(f"checkpoints/{name}", "model.safetensors")
        _, optimizer = self._read(f"checkpoints/{name}", "optimizer.safetensors")
        history = tuple(EpochResult(**row) for row in document["history"])
        return TrainState(history, self._tensors(weights, name), self._tensors(optimizer, name))

    def best(self) -> Checkpoint:
        """Returns the finished run's best checkpoint.

        Raises:
          CheckpointError: no such run, not finished, damaged, or tensors that don't fit its config.
        """
        self.document()
        if not self.is_finished():
            raise CheckpointError(
                f"run {self.run!r}: not finished, so it has no best checkpoint; train it again with --resume"
            )
        document, weights = self._best_weights()
        config = self._config(document, "best/checkpoint.json")
        return Checkpoint(self.run, config, self._tensors(weights, "best"), document, self.history())

    def _best_weights(self) -> tuple[dict[str, Any], bytes]:
        """Returns best/checkpoint.json and the weights that it names."""
        if self.storage.exists(self.path("best", "model.safetensors")):
            return self._read("best", "model.safetensors")
        # The writer is, or was killed, between the two writes: the weights are still in their original checkpoint.
        document = self._document("best")
        epoch = _epoch_name(document["epoch"])
        original, weights = self._read(f"checkpoints/{epoch}", "model.safetensors")
        if original["files"]["model.safetensors"] != document["files"]["model.safetensors"]:
            raise DamagedCheckpoint(f"run {self.run!r}: best/model.safetensors is missing, and {epoch} has others")
        return document, weights

    def _check_presence(self) -> None:
        """Checks that the run's folder is still there: an unmounted disk leaves an empty folder to write into."""
        if not self.storage.exists(self.path("config.json")):
            raise StorageError(
                f"storage={self.storage.uri!r}: {self.path('config.json')} is gone: deleted, or no longer mounted; "
                "bring it back, and go on with the same command"
            )

    def _checkpoint_document(
        self, config: TrainConfig, data: TrainingData, history: tuple[EpochResult, ...], files: Mapping[str, bytes]
    ) -> dict[str, Any]:
        return {
            "run": self.run,
            "epoch": history[-1].epoch,
            "metrics": asdict(history[-1]),
            "history": [asdict(row) for row in history],
            "config": config.model_dump(mode="json"),
            "config_hash": config.config_hash(),
            "data_sha256": data.fingerprint,
            "class_names": list(data.class_names),
            "normalization": {"mean": data.mean, "std": data.std},
            "bright_ground_share": data.bright_ground_share,
            "wide_bits": data.wide_bits,
            "is_validation_given": data.is_validation_given,
            "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
            "code_version": code_version(),
        }

    def _write(self, folder: str, files: Mapping[str, bytes], document: Mapping[str, Any]) -> None:
        for name, content in files.items():
            self.storage.write_bytes(self.path(folder, name), content)
        self.storage.write_bytes(self.path(folder, "checkpoint.json"), with_checksum(document))

    def _read(self, folder: str, name: str) -> tuple[dict[str, Any], bytes]:
        """Returns a folder's checkpoint.json and a file, after checking that both are intact and belong to this run."""
        where = f"run {self.run!r}: {folder}/{name}"
        document = self._document(folder)
        try:
            content = self.storage.read_bytes(self.path(folder, name))
        except MissingError as error:
            raise DamagedCheckpoint(f"{where}: {error}") from None
        if hashlib.sha256(content).hexdigest() != document["files"].get(name):
            raise DamagedCheckpoint(f"{where}: SHA-256 differs from checkpoint.json: the file was changed or damaged")
        return document, content

    def _document(self, folder: str) -> dict[str, Any]:
        """Returns a folder's checkpoint.json, after checking that it was written for this run and its config."""
        of_run, source = self.document(), f"run {self.run!r}: {folder}/checkpoint.json"
        try:
            text = self.storage.read_bytes(self.path(folder, "checkpoint.json"))
        except MissingError as error:
            raise DamagedCheckpoint(f"{source}: {error}") from None
        document = checked_document(text, source, CheckpointDocument)
        differs = [key for key in ("run", "data_sha256") if document[key] != of_run[key]]
        if self._config(document, f"{folder}/checkpoint.json") != self._config(of_run, "config.json"):
            differs.append("config")
        if differs:
            raise CheckpointError(
                f"run {self.run!r}: {folder}/checkpoint.json belongs to another run than config.json ({differs[0]})"
            )
        return document

    def _tensors(self, content: bytes, folder: str) -> dict[str, Tensor]:
        try:
            tensors: dict[str, Tensor] = safetensors.torch.load(content)
        except SafetensorError as error:
            raise DamagedCheckpoint(f"run {self.run!r}: {folder}: no safetensors ({error})") from None
        return tensors

    def _write_history(self, history: tuple[EpochResult, ...]) -> None:
        columns = {name: [getattr(row, name) for row in history] for name in EpochResult.__dataclass_fields__}
        columns["run"] = [self.run] * len(history)
        table = parquet.make_table("history", columns, code_version=code_version())
        self.storage.write_bytes(self.path("history.parquet"), parquet.to_parquet_bytes(table))


def _epoch_name(epoch: int) -> str:
    return f"epoch-{epoch:04d}"


def _first_difference(existing: TrainConfig, wanted: TrainConfig) -> str:
    there, here = existing.model_dump(mode="json"), wanted.model_dump(mode="json")
    name = next(name for name, value in here.items() if there[name] != value)
    return f"{name}={there[name]!r} there, {here[name]!r} here"
