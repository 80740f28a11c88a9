"""Checkpoints in a storage: safetensors and JSON, their SHA-256 checked on load.

<storage>/runs/<run>/config.json              created once, by whoever starts the run
                     history.parquet          one row an epoch, replaced whole after each
                     checkpoints/epoch-NNNN/  model.safetensors, optimizer.safetensors, checkpoint.json
                     best/                    model.safetensors, checkpoint.json: written once, when the run is done
                     status.json              only of a run that diverged or was stopped before its end: which, and why
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from mnist_ray import provenance, tables
from mnist_ray.checkpoint_document import CheckpointDocument, RunDocument, broken_rule
from mnist_ray.code_version import code_version
from mnist_ray.config import TrainConfig, make_config
from mnist_ray.errors import CheckpointError, ConfigError, ConflictError
from mnist_ray.history import EpochResult, best_epoch
from mnist_ray.run_progress import RunStatus, read_history, read_note, read_status
from mnist_ray.storage import MissingError, Storage
from mnist_ray.storage_errors import NotAnObjectError
from mnist_ray.training import TrainState
from mnist_ray.training_data import TrainingData

_KEPT_CHECKPOINTS = 2


class DamagedCheckpoint(CheckpointError):
    """A file is missing or not what was written."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained network and where it came from.

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


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run; one class owns every path in it."""

    storage: Storage
    run: str

    def path(self, *parts: str) -> str:
        """Returns a path in the run's folder, relative to the storage."""
        return "/".join(("runs", self.run, *parts))

    def claim(self, config: TrainConfig, data: TrainingData, *, resume: bool) -> None:
        """Takes the run's name for a config and data, or makes sure that it was taken for the same.

        Raises:
          ConflictError: the name belongs to another config or other data, or to an unfinished run and
            `resume` is not set.
        """
        document = {
            "run": self.run,
            "config": config.model_dump(mode="json"),
            "config_hash": config.config_hash(),
            "data_sha256": data.fingerprint,
        }
        if self.storage.create_bytes(self.path("config.json"), _with_checksum(document)):
            return
        existing = self.document()
        self.check_config(config)
        if existing["data_sha256"] != data.fingerprint:
            raise ConflictError(
                f"run {self.run!r}: exists with other data ({existing['data_sha256'][:12]}, now "
                f"{data.fingerprint[:12]}); choose another --name"
            )
        if not resume and self.is_marked("diverged"):
            raise ConflictError(
                f"run {self.run!r}: diverged ({self.status().reason}); change its settings and choose another --name"
            )
        if not resume and not self.is_finished():
            raise ConflictError(f"run {self.run!r}: exists, not finished; go on with --resume or choose another --name")

    def check_config(self, config: TrainConfig) -> None:
        """Makes sure that the run's name, which is taken, was taken for this config.

        Raises:
          ConflictError: it belongs to another config.
          CheckpointError: no such run, or damaged.
        """
        existing = self.document()
        if existing["config_hash"] != config.config_hash():
            wanted = {"config": config.model_dump(mode="json")}
            raise ConflictError(
                f"run {self.run!r}: exists with another config ({_first_difference(existing, wanted)}); "
                "choose another --name"
            )

    def document(self) -> dict[str, Any]:
        """Returns config.json.

        Raises:
          CheckpointError: no such run, or damaged.
        """
        try:
            text = self.storage.read_bytes(self.path("config.json"))
            return _checked_document(text, f"run {self.run!r}: config.json", RunDocument)
        except NotAnObjectError as error:
            raise CheckpointError(f"run {self.run!r}: {error}; remove it and copy the run again") from None
        except MissingError:
            raise CheckpointError(
                f"run {self.run!r}: not in {self.storage.uri}; `mnist-ray runs` lists what is"
            ) from None

    def history(self) -> tuple[EpochResult, ...]:
        """Returns the epochs in history.parquet, none before the first is done.

        Raises:
          CheckpointError: the run is finished and has none.
        """
        found = read_history(self.storage, self.run)
        if not found and self.is_finished():
            raise CheckpointError(f"run {self.run!r}: finished, but history.parquet is missing; copy it again")
        return found

    def is_finished(self) -> bool:
        """Tells whether the run is done and its best checkpoint written."""
        return self.storage.exists(self.path("best", "checkpoint.json"))

    def mark(self, status: str, reason: str) -> None:
        """Notes why a run ends here: "stopped", before its best checkpoint is written, or "diverged"."""
        self.storage.write_bytes(self.path("status.json"), _json_bytes({"status": status, "reason": reason}))

    def is_marked(self, status: str) -> bool:
        """Tells whether mark noted this, whatever came of it since."""
        noted = read_note(self.storage, self.run)
        return noted is not None and noted.status == status

    def status(self) -> RunStatus:
        """Returns how far the run is; see read_status."""
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
        """Writes the state after an epoch: there whole or not at all, as checkpoint.json comes last.

        Another process may train the same run, to the same bits: what it has finished, or has of later epochs, stays.

        Args:
          config: of the run.
          data: what it is trained on.
          state: after the epoch.
          command_line: the one that asked for the run, this process's own by default.
          num_workers: workers that share its batches.
          stack_size: runs that train together.
        """
        if self.is_finished():
            return
        made_by = provenance.lineage(
            command_line=provenance.command_line() if command_line is None else command_line,
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
        self._write_history(state.history)
        best, oldest_kept = _epoch_name(best_epoch(state.history)), _epoch_name(epoch - _KEPT_CHECKPOINTS + 1)
        for name in self.storage.list_folders(self.path("checkpoints")):
            if name < oldest_kept and name != best:
                self.storage.delete_folder(self.path("checkpoints", name))

    def finish(self) -> None:
        """Writes best/ from the checkpoint with the lowest validation loss.

        Raises:
          CheckpointError: that or the newest checkpoint is damaged.
        """
        if self.is_finished():
            return
        state = self.latest_state()
        num_epochs = len(self.history())
        if state is None or len(state.history) < num_epochs:
            # The best of fewer epochs may be another one.
            raise CheckpointError(
                f"run {self.run!r}: checkpoints/{_epoch_name(num_epochs)} is damaged or missing; train it again with "
                "--resume"
            )
        # Whoever was killed before, or trains the same run, may have left an older one.
        self._write_history(state.history)
        folder = f"checkpoints/{_epoch_name(best_epoch(state.history))}"
        document, weights = self._read(folder, "model.safetensors")
        document = {**document, "files": {"model.safetensors": document["files"]["model.safetensors"]}}
        self._write("best", {"model.safetensors": weights}, document)

    def latest_state(self, say: Callable[[str], None] = lambda _: None) -> TrainState | None:
        """Returns the state after the last epoch whose checkpoint is whole, or None before the first.

        Args:
          say: told of each damaged checkpoint that is passed over: its epochs are trained again, to the same bits.

        Raises:
          CheckpointError: there are checkpoints and none is whole, or one belongs to another run.
        """
        names = [name for name in self.storage.list_folders(self.path("checkpoints")) if name.startswith("epoch-")]
        damaged: DamagedCheckpoint | None = None
        for name in sorted(names, reverse=True):
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
        if damaged:
            raise CheckpointError(f"{damaged}; no older one is whole: delete {self.path()} to train it anew")
        return None

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
        document, weights = self._read("best", "model.safetensors")
        try:
            config = make_config(TrainConfig, document["config"], f"run {self.run!r}: best/checkpoint.json")
        except ConfigError as error:
            raise CheckpointError(f"{error} (in this version)") from None
        return Checkpoint(self.run, config, self._tensors(weights, "best"), document, self.history())

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
            "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
            "code_version": code_version(),
        }

    def _write(self, folder: str, files: Mapping[str, bytes], document: Mapping[str, Any]) -> None:
        for name, content in files.items():
            self.storage.write_bytes(self.path(folder, name), content)
        self.storage.write_bytes(self.path(folder, "checkpoint.json"), _with_checksum(document))

    def _read(self, folder: str, name: str) -> tuple[dict[str, Any], bytes]:
        """Returns checkpoint.json and a file of the folder, both as they were written for this run and its config."""
        where = f"run {self.run!r}: {folder}/{name}"
        of_run = self.document()
        try:
            text = self.storage.read_bytes(self.path(folder, "checkpoint.json"))
            content = self.storage.read_bytes(self.path(folder, name))
        except MissingError as error:
            raise DamagedCheckpoint(f"{where}: {error}") from None
        document = _checked_document(text, f"run {self.run!r}: {folder}/checkpoint.json", CheckpointDocument)
        for key in ("run", "config_hash", "data_sha256"):
            if document.get(key) != of_run.get(key):
                raise CheckpointError(
                    f"run {self.run!r}: {folder}/checkpoint.json belongs to another run than config.json ({key})"
                )
        if hashlib.sha256(content).hexdigest() != document["files"].get(name):
            raise DamagedCheckpoint(f"{where}: SHA-256 differs from checkpoint.json: the file was changed or damaged")
        return document, content

    def _tensors(self, content: bytes, folder: str) -> dict[str, Tensor]:
        try:
            tensors: dict[str, Tensor] = safetensors.torch.load(content)
        except SafetensorError as error:
            raise DamagedCheckpoint(f"run {self.run!r}: {folder}: no safetensors ({error})") from None
        return tensors

    def _write_history(self, history: tuple[EpochResult, ...]) -> None:
        columns = {name: [getattr(row, name) for row in history] for name in EpochResult.__dataclass_fields__}
        columns["run"] = [self.run] * len(history)
        table = tables.make_table("history", columns, code_version=code_version())
        self.storage.write_bytes(self.path("history.parquet"), tables.to_parquet_bytes(table))


def _epoch_name(epoch: int) -> str:
    return f"epoch-{epoch:04d}"


def _json_bytes(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def _with_checksum(document: Mapping[str, Any]) -> bytes:
    return _json_bytes({**document, "document_sha256": hashlib.sha256(_json_bytes(document)).hexdigest()})


def _checked_document(text: bytes, source: str, kind: type[RunDocument]) -> dict[str, Any]:
    """Returns what _with_checksum wrote.

    Raises:
      DamagedCheckpoint: not that: a document decides what a run is, so no byte of it may change unnoticed.
      CheckpointError: a value that mnist-ray never wrote.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpoint(f"{source} is damaged ({type(error).__name__})") from None
    expected = document.pop("document_sha256", None) if isinstance(document, dict) else None
    if expected is None or hashlib.sha256(_json_bytes(document)).hexdigest() != expected:
        raise DamagedCheckpoint(f"{source} is damaged: its own SHA-256 differs")
    if (rule := broken_rule(kind, document)) is not None:
        raise CheckpointError(f"{source} was not written by mnist-ray ({rule}); copy or train the run again")
    return dict(document)


def _first_difference(existing: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    for name, value in wanted["config"].items():
        if existing["config"].get(name) != value:
            return f"{name}={existing['config'].get(name)!r} there, {value!r} here"
    return "an older version of mnist-ray"
