"""One checkpoint of a run: its files, and checkpoint.json with their SHA-256, which are checked on load."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from mnist_ray.config.settings import TrainConfig
from mnist_ray.data.image_shape import MNIST_SHAPE, ImageForm, ImageShape
from mnist_ray.data.training_data import PerChannel, TrainingData
from mnist_ray.errors import CheckpointError
from mnist_ray.results.code_version import code_version
from mnist_ray.results.history import EpochResult
from mnist_ray.results.paths import run_path
from mnist_ray.results.run_documents import (
    DamagedCheckpoint,
    config_in,
    read_checkpoint_document,
    with_checksum,
)
from mnist_ray.results.train_state import TrainState
from mnist_ray.results.validation import Validation, packed, unpacked, validation_in
from mnist_ray.storage.storage import MissingError, Storage


@dataclass(frozen=True)
class Checkpoint:
    """A trained network and its origin.

    Attributes:
      run: name of the run.
      config: its config.
      model: the plain network's state_dict.
      document: checkpoint.json: epoch, metrics, validation, data, files with their SHA-256, lineage.
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
    def image_shape(self) -> ImageShape:
        """Shape of the images that the network takes."""
        return ImageShape(*self.document.get("image_shape", MNIST_SHAPE))

    @property
    def image_form(self) -> ImageForm:
        """What images become before the network sees them; runs that didn't note their shape stretched them."""
        return ImageForm(self.image_shape, self.config.fit if "image_shape" in self.document else "stretch")

    @property
    def data_config(self) -> TrainConfig:
        """The config, with the settings of the user's own images that bring them to the run's form."""
        return self.config.in_form(self.image_form)

    @property
    def normalization(self) -> tuple[PerChannel, PerChannel]:
        """Mean and standard deviation of the training pixels, as fractions of 255."""
        mean, std = (self.document["normalization"][name] for name in ("mean", "std"))
        return (tuple(mean), tuple(std)) if isinstance(mean, list) else (mean, std)

    @property
    def wide_bits(self) -> int | None:
        """Bit depth that training images of more than 8 bits were scaled from; None if none had, or if unrecorded."""
        return cast(int | None, self.document.get("wide_bits"))


@dataclass(frozen=True)
class CheckpointFolder:
    """The folder of one checkpoint; reading a missing or changed file raises DamagedCheckpoint.

    Attributes:
      storage: the storage of the run.
      run: name of the run.
      name: best, or the epoch's, see epoch_name.
    """

    storage: Storage
    run: str
    name: str

    @property
    def _folder(self) -> str:
        return self.name if self.name == "best" else f"checkpoints/{self.name}"

    def _source(self, file: str) -> str:
        return f"run {self.run!r}: {self._folder}/{file}"

    def write(self, files: Mapping[str, bytes], document: Mapping[str, Any]) -> None:
        """Writes the files and then checkpoint.json, without which there is no checkpoint."""
        for name, content in {**files, "checkpoint.json": with_checksum(document)}.items():
            self.storage.write_bytes(run_path(self.run, self._folder, name), content)

    def write_state(
        self, config: TrainConfig, data: TrainingData, state: TrainState, *, lineage: Mapping[str, Any], stack_size: int
    ) -> None:
        """Writes the state after an epoch; see RunFolder.save."""
        files = {
            "model.safetensors": safetensors.torch.save(state.model),
            "optimizer.safetensors": safetensors.torch.save(state.optimizer),
        }
        document = {
            "run": self.run,
            "epoch": state.history[-1].epoch,
            "metrics": asdict(state.history[-1]),
            "history": [asdict(row) for row in state.history],
            "validation": packed(state.correct),
            "config": config.model_dump(mode="json"),
            "config_hash": config.config_hash(),
            "data_sha256": data.fingerprint,
            "class_names": list(data.class_names),
            "image_shape": list(data.image_shape),
            "normalization": {"mean": data.mean, "std": data.std},
            "bright_ground_share": data.bright_ground_share,
            "wide_bits": data.wide_bits,
            "is_validation_given": data.is_validation_given,
            "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
            "code_version": code_version(),
            "lineage": lineage,
            "stack_size": stack_size,
        }
        self.write(files, document)

    def document(self) -> dict[str, Any]:
        """Returns checkpoint.json; see read_checkpoint_document."""
        return read_checkpoint_document(self.storage, self.run, self._folder)

    def config(self, document: Mapping[str, Any]) -> TrainConfig:
        """Returns the config in checkpoint.json; see config_in."""
        return config_in(document, self._source("checkpoint.json"))

    def read(self, name: str, document: Mapping[str, Any]) -> bytes:
        """Returns the content of a file that checkpoint.json names."""
        try:
            content = self.storage.read_bytes(run_path(self.run, self._folder, name))
        except MissingError as error:
            raise DamagedCheckpoint(f"{self._source(name)}: {error}") from None
        if hashlib.sha256(content).hexdigest() != document["files"].get(name):
            raise DamagedCheckpoint(
                f"{self._source(name)}: SHA-256 differs from checkpoint.json: the file was changed or damaged"
            )
        return content

    def read_state(self) -> TrainState:
        """Returns the state after the checkpoint's epoch."""
        document = self.document()
        model, optimizer = (self.read(f"{part}.safetensors", document) for part in ("model", "optimizer"))
        history = tuple(EpochResult(**row) for row in document["history"])
        return TrainState(history, self.tensors(model), self.tensors(optimizer), unpacked(document))

    def validation(self) -> Validation | None:
        """Returns the predictions on the validation examples; None if an older version kept none."""
        document = self.document()
        return validation_in(document, self.config(document))

    def tensors(self, content: bytes) -> dict[str, Tensor]:
        """Returns the tensors in the content of a file."""
        try:
            tensors: dict[str, Tensor] = safetensors.torch.load(content)
        except SafetensorError as error:
            raise DamagedCheckpoint(f"run {self.run!r}: {self.name}: no safetensors ({error})") from None
        return tensors


def epoch_name(epoch: int) -> str:
    """Returns the name of an epoch's checkpoint; names sort as epochs do."""
    return f"epoch-{epoch:04d}"


def latest_state(storage: Storage, run: str, say: Callable[[str], None] = lambda _: None) -> TrainState | None:
    """Returns the state after the last epoch whose checkpoint is intact; None before the first.

    Args:
      say: called if a damaged checkpoint is skipped: its epochs are trained again, to the same bits.

    Raises:
      CheckpointError: there are checkpoints but none is intact, or one belongs to another run.
    """
    names = checkpoint_names(storage, run)
    damaged: DamagedCheckpoint | None = None
    for name in names:
        if not storage.exists(run_path(run, "checkpoints", name, "checkpoint.json")):
            continue
        try:
            state = CheckpointFolder(storage, run, name).read_state()
        except DamagedCheckpoint as error:
            damaged = damaged or error
            continue
        if damaged:
            say(f"{damaged}; going on from epoch {state.history[-1].epoch}")
        return state
    if names != checkpoint_names(storage, run):
        # Meanwhile another writer continued and deleted old checkpoints.
        return latest_state(storage, run, say)
    if damaged:
        raise CheckpointError(f"{damaged}; no older one is whole: delete {run_path(run)} to train it anew")
    return None


def checkpoint_names(storage: Storage, run: str) -> list[str]:
    """Returns the names of a run's checkpoints but the best, the newest first."""
    names = storage.list_folders(run_path(run, "checkpoints"))
    return sorted((name for name in names if name.startswith("epoch-")), reverse=True)
