"""Exports trained networks as files for other programs, each with a model card."""

import hashlib
import io
import json
import logging
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from mnist_ray.config.settings import TrainConfig
from mnist_ray.data.training_data import PerChannel
from mnist_ray.errors import ConfigError, ConflictError, StorageError
from mnist_ray.evaluation.inference import load_network
from mnist_ray.export.model_card import model_card
from mnist_ray.models.own_network import errors_of_code
from mnist_ray.results.checkpoint_folder import Checkpoint
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.storage.storage import open_storage


@dataclass(frozen=True)
class ExportFormat:
    """A file format.

    Attributes:
      suffix: of the file's name.
      serialize: checkpoint -> the file's content.
    """

    suffix: str
    serialize: Callable[[Checkpoint], bytes]


@dataclass(frozen=True)
class Exported:
    """An exported network and its model card."""

    path: Path
    card: Path
    sha256: str


class PixelNetwork(nn.Module):
    """A network with its normalization in front: raw pixel values in, logits or probabilities out.

    Args:
      network: takes normalized images.
      mean: of the training pixels, as a fraction of 255; one per channel for images in colour.
      std: likewise.
      output: logits or probabilities.
    """

    def __init__(self, network: nn.Module, *, mean: PerChannel, std: PerChannel, output: str = "logits") -> None:
        super().__init__()
        self.network = network
        self.has_softmax = output == "probabilities"
        self.offset: float | Tensor
        self.scale: float | Tensor
        if isinstance(mean, tuple):
            means, stds = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (mean, std))
            self.register_buffer("offset", (255 * means).float(), persistent=False)
            self.register_buffer("scale", (1 / (255 * stds)).float(), persistent=False)
        else:
            assert not isinstance(std, tuple)
            self.offset, self.scale = 255 * mean, 1 / (255 * std)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the output [batch, classes] of float32 [batch, channels, height, width] from 0 to 255."""
        logits: Tensor = self.network((images - self.offset) * self.scale)
        return logits.softmax(1) if self.has_softmax else logits


def export_run(
    storage_uri: str, run: str, *, format_name: str, output: str | None = None, force: bool = False
) -> Exported:
    """Writes a run's best network in a format of FORMATS, and its model card, FILE.md, each atomically.

    Args:
      storage_uri: where the run is.
      run: its name.
      format_name: a key of FORMATS.
      output: local file, or a folder for it; None for RUN with the format's suffix in the working folder.
      force: whether existing files may be replaced.

    Raises:
      CheckpointError: no such run, not finished, or damaged.
      ConfigError: the output is not local, its folder or a package that the format needs is missing, or the user's own
        network can't be exported.
      ConflictError: a file exists, and force is not set.
      StorageError: the run can't be read, or a file can't be written.
    """
    chosen = FORMATS[format_name]
    path = _output_path(output, f"{run}{chosen.suffix}")
    card = path.with_name(f"{path.name}.md")
    if not force:
        for file in (path, card):
            _refuse_existing(file)
    checkpoint = RunFolder(open_storage(storage_uri), run).best()
    content = _serialized(checkpoint, chosen.serialize, f"--to {format_name}")
    sha256 = hashlib.sha256(content).hexdigest()
    text = model_card(
        checkpoint.document, format_name=format_name, file_name=path.name, sha256=sha256,
        layers=written_layers(load_network(checkpoint)), metadata=list(metadata_of(checkpoint)),
    )  # fmt: skip
    _write(path, content, force=force)
    _write(card, text.encode(), force=force)
    return Exported(path, card, sha256)


def onnx_of_probabilities(checkpoint: Checkpoint, *, what: str) -> bytes:
    """Returns a network as an ONNX model whose output, named probabilities, is the softmax of its logits.

    For the user's own network, no other thread may print meanwhile.

    Args:
      what: asks for it; the error begins with it.

    Raises:
      ConfigError: the user's own network can't be exported, or a package is missing.
    """
    return _serialized(checkpoint, partial(_onnx, output="probabilities"), what)


def written_layers(network: nn.Module) -> list[tuple[str, str]] | None:
    """Returns name and constructor call of each layer of a plain Sequential of torch's layers, else None."""
    is_torchs = type(network) is nn.Sequential and not any(
        list(layer.children()) or not type(layer).__module__.startswith("torch.") for layer in network
    )
    return [(name, repr(layer)) for name, layer in network.named_children()] if is_torchs else None


def _serialized(checkpoint: Checkpoint, serialize: Callable[[Checkpoint], bytes], what: str) -> bytes:
    failed = f"{what}: run {checkpoint.run!r}: its network {checkpoint.config.model} can't be exported"
    with errors_of_code(checkpoint.config, ConfigError, failed), _quiet(checkpoint.config):
        return serialize(checkpoint)


@contextmanager
def _quiet(config: TrainConfig) -> Iterator[None]:
    """Keeps the programs that torch's exporter logs and prints before it raises an error off the terminal."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        with ExitStack() as streams:
            # Built-in networks can be exported, and other threads may print or swap the streams meanwhile.
            if config.is_own_network:
                streams.enter_context(redirect_stdout(io.StringIO()))
                streams.enter_context(redirect_stderr(io.StringIO()))
            yield
    finally:
        logging.disable(before)


def _output_path(output: str | None, default_name: str) -> Path:
    if output is None:
        return Path(default_name)
    if "://" in output:
        raise ConfigError(f"output={output!r}: give a local file; copy it to another place afterwards")
    try:
        path = Path(output).expanduser()
        path = path / default_name if path.is_dir() else path
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"output={output!r}: can't be a path here: {error}") from None
    if not path.parent.is_dir():
        raise ConfigError(f"output={output!r}: there is no folder {str(path.parent)!r}; make it or choose another")
    return path


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise ConflictError(f"{path}: exists; replace it with --force or choose another --output")


def _write(path: Path, content: bytes, *, force: bool) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if force:
            os.replace(temporary, path)
        else:
            # Unlike a rename, a link never replaces a file that was created meanwhile.
            os.link(temporary, path)
    except OSError as error:
        if not force:
            _refuse_existing(path)
        raise StorageError(f"output={str(path)!r}: can't be written: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _state_dict(checkpoint: Checkpoint) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(checkpoint.model), buffer)
    return buffer.getvalue()


def metadata_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Returns what a file says about its network, each value as JSON: safetensors' and ONNX's metadata."""
    kept = ("run", "epoch", "config", "config_hash", "data_sha256", "class_names", "normalization")
    facts = {name: checkpoint.document[name] for name in kept} | {"image_shape": checkpoint.image_shape}
    return {name: json.dumps(value, sort_keys=True) for name, value in facts.items()}


def _safetensors(checkpoint: Checkpoint) -> bytes:
    return bytes(safetensors.torch.save(checkpoint.model, metadata=metadata_of(checkpoint)))


def _onnx(checkpoint: Checkpoint, output: str = "logits") -> bytes:
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError:
        raise ConfigError("--to onnx: needs onnx and onnxscript: pip install 'mnist-ray[onnx]'") from None
    network, images, shapes = _traceable(checkpoint, output)
    program = torch.onnx.export(
        network, (images,), dynamo=True, dynamic_shapes=shapes, input_names=["images"], output_names=[output],
        external_data=False, verbose=False,
    )  # fmt: skip
    assert program is not None
    model = program.model_proto
    # The exporter stores stack traces here, with the paths of this machine.
    for node in model.graph.node:
        node.ClearField("metadata_props")
    onnx.helper.set_model_props(model, metadata_of(checkpoint))
    return bytes(model.SerializeToString())


def _torch_export(checkpoint: Checkpoint) -> bytes:
    network, images, shapes = _traceable(checkpoint)
    program = torch.export.export(network, (images,), dynamic_shapes=shapes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # as in _onnx
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _traceable(
    checkpoint: Checkpoint, output: str = "logits"
) -> tuple[PixelNetwork, Tensor, tuple[dict[int, torch.export.Dim]]]:
    """Returns the network with its normalization, an example input, and the input's dynamic axes."""
    mean, std = checkpoint.normalization
    # Exports compute in float32, even after training in float64: onnxruntime has no float64 convolution.
    network = PixelNetwork(load_network(checkpoint).float(), mean=mean, std=std, output=output)
    # Two images, because the exporter treats an axis of length one as a constant.
    return network.eval(), torch.zeros(2, *checkpoint.image_shape), ({0: torch.export.Dim("batch")},)


FORMATS: dict[str, ExportFormat] = {
    "state-dict": ExportFormat(".pt", _state_dict),
    "safetensors": ExportFormat(".safetensors", _safetensors),
    "onnx": ExportFormat(".onnx", _onnx),
    "torch-export": ExportFormat(".pt2", _torch_export),
}
