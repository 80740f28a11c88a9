"""Exported networks, loaded again by the runtimes that they are for."""

import json
import re
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pyarrow.parquet as pq
import pytest
import safetensors
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from mnist_ray.cli.main import cli, run_command
from mnist_ray.config.variants import variant_config
from mnist_ray.data.datasets import load_examples
from mnist_ray.data.examples import Examples, Split, make_examples
from mnist_ray.evaluation.inference import load_network
from mnist_ray.export.formats import FORMATS, written_layers
from mnist_ray.models.networks import ResidualBlock
from mnist_ray.results.checkpoint_folder import Checkpoint
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.storage.storage import open_storage
from mnist_ray.training.data import normalize, prepare_data
from mnist_ray.training.loop import fit
from tests.support.colour_images import colour_images
from tests.support.doing_lines import without_doing

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SETTINGS = {
    "mlp": ("dropout_batchnorm", {}),
    "cnn": ("cnn", {"hidden_sizes": (8, 16), "augmentation": "none"}),
    "double": ("cnn", {"hidden_sizes": (4, 8), "augmentation": "none", "precision": "float64"}),
    "residual": ("resnet", {"hidden_sizes": (4, 8), "augmentation": "none"}),
    "colour": ("cnn", {"hidden_sizes": (4, 8), "augmentation": "none"}),
    "oblong": ("dropout_batchnorm", {"precision": "float64"}),
}
# Columns and rows of the images in colour that a run is trained on instead of the digits.
COLOUR_SIZES = {"colour": (32, 32), "oblong": (30, 20)}


def examples(run: str, split: Split) -> Examples:
    if run not in COLOUR_SIZES:
        return load_examples("digits", split, data_dir=Path("unused"))
    width, height = COLOUR_SIZES[run]
    of_classes = colour_images(50, width=width, height=height, seed=int(split == "test"))
    # Another brightness in each channel, so that the channels' statistics differ.
    pixels = (np.concatenate(list(of_classes.values())) * (1.0, 0.5, 0.3)).astype(np.uint8)
    labels = torch.arange(4).repeat_interleave(50)
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
    return make_examples(images, labels, class_names=tuple(of_classes), source="test")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("storage"))
    for run, (variant, settings) in SETTINGS.items():
        config = variant_config(variant, {"dataset": "digits", "epochs": 1, "train_limit": 300, **settings})
        data = prepare_data(config, examples(run, "train"), device=CPU)
        folder = RunFolder(open_storage(uri), run)
        folder.claim(config, data)
        for state in fit(config, data, device=CPU):
            folder.save(config, data, state)
        folder.finish(config)
    return uri


def best(storage: str, run: str) -> Checkpoint:
    return RunFolder(open_storage(storage), run).best()


def expected_logits(checkpoint: Checkpoint, images: Tensor) -> Tensor:
    network = load_network(checkpoint)
    dtype = next(network.parameters()).dtype
    with torch.inference_mode():
        mean, std = checkpoint.normalization
        return network(normalize(images, mean=mean, std=std, dtype=dtype))


def module_logits(weights: dict[str, Tensor], checkpoint: Checkpoint, images: Tensor) -> Tensor:
    network = load_network(checkpoint)
    for parameter in network.parameters():
        torch.nn.init.zeros_(parameter)
    network.load_state_dict(weights)
    mean, std = (torch.tensor(checkpoint.document["normalization"][name]).view(-1, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        return network((images.to(next(network.parameters()).dtype) / 255 - mean) / std)


def logits_of_state_dict(path: Path, checkpoint: Checkpoint, images: Tensor) -> Tensor:
    return module_logits(torch.load(path, weights_only=True), checkpoint, images)


def logits_of_safetensors(path: Path, checkpoint: Checkpoint, images: Tensor) -> Tensor:
    return module_logits(load_file(path), checkpoint, images)


def logits_of_onnx(path: Path, _: Checkpoint, images: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"images": images.numpy().astype(np.float32)})
    return torch.from_numpy(found)


def logits_of_torch_export(path: Path, _: Checkpoint, images: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.export.load(path).module()(images.float())


LOADERS: dict[str, Callable[[Path, Checkpoint, Tensor], Tensor]] = {
    "state-dict": logits_of_state_dict,
    "safetensors": logits_of_safetensors,
    "onnx": logits_of_onnx,
    "torch-export": logits_of_torch_export,
}


def export(storage: str, run: str, to: str, *more: str) -> int:
    return run_command(["export", run, "--to", to, "--storage", storage, *more])


@pytest.fixture(scope="module")
def exported(storage: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Run, format -> the exported file, each exported once into an empty working folder."""

    @cache
    def once(run: str, format_name: str) -> Path:
        folder = tmp_path_factory.mktemp(f"{run}-{format_name}")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            assert export(storage, run, format_name) == 0
        return folder / f"{run}{FORMATS[format_name].suffix}"

    return once


@pytest.mark.parametrize("format_name", LOADERS)
@pytest.mark.parametrize("run", SETTINGS)
def test_an_exported_network_gives_the_same_logits_in_its_own_runtime_and_by_the_cards_code(
    run: str, format_name: str, storage: str, exported: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, checkpoint, images = exported(run, format_name), best(storage, run), examples(run, "test").images
    # Another number of images than the network was traced with, and a single one.
    for some in (images, images[:1]):
        expected = expected_logits(checkpoint, some)
        found = LOADERS[format_name](path, checkpoint, some)
        torch.testing.assert_close(found.double(), expected.double(), atol=1e-5, rtol=1e-5)
    (code,) = re.findall(r"```python\n(.*?)```", path.with_name(f"{path.name}.md").read_text(), re.DOTALL)
    names = {"images": images}
    monkeypatch.chdir(path.parent)
    exec(code, names)
    found = torch.as_tensor(names["logits"]).detach()
    torch.testing.assert_close(found.double(), expected_logits(checkpoint, images).double(), atol=1e-5, rtol=1e-5)
    if format_name == "onnx":
        assert names["class_names"] == checkpoint.document["class_names"]
    assert sorted(path.parent.iterdir()) == [path, path.with_name(f"{path.name}.md")]


def test_a_card_writes_down_only_a_sequential_of_torchs_own_layers() -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    assert written_layers(plain) == [
        ("0", "Flatten(start_dim=1, end_dim=-1)"),
        ("1", "Linear(in_features=4, out_features=2, bias=True)"),
    ]
    # The repr of a network inside a network is no code.
    assert written_layers(nn.Sequential(plain, nn.ReLU())) is None
    assert written_layers(nn.Sequential(nn.Flatten(), ResidualBlock(1, 2, batch_norm=True))) is None
    assert written_layers(nn.Linear(4, 2)) is None


@pytest.mark.parametrize("format_name", FORMATS)
def test_no_path_of_this_machine_is_in_an_exported_file(format_name: str, exported: Any) -> None:
    content = exported("mlp", format_name).read_bytes()
    assert str(ROOT).encode() not in content
    assert b"exporting.py" not in content


def test_the_weights_are_the_checkpoints_bit_for_bit(storage: str, tmp_path: Path) -> None:
    for format_name in ("state-dict", "safetensors"):
        assert export(storage, "mlp", format_name, "--output", str(tmp_path)) == 0
    expected = best(storage, "mlp").model
    for found in (torch.load(tmp_path / "mlp.pt", weights_only=True), load_file(tmp_path / "mlp.safetensors")):
        assert sorted(found) == sorted(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    with safetensors.safe_open(tmp_path / "mlp.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["config"])["variant"] == "dropout_batchnorm"


def test_the_onnx_program_takes_any_batch_of_float32_pixels(exported: Any) -> None:
    session = onnxruntime.InferenceSession(exported("cnn", "onnx"), providers=["CPUExecutionProvider"])
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("images", "tensor(float)", ["batch", 1, 28, 28])
    assert (made.name, made.type, made.shape) == ("logits", "tensor(float)", ["batch", 10])
    in_colour = onnxruntime.InferenceSession(exported("oblong", "onnx"), providers=["CPUExecutionProvider"])
    assert in_colour.get_inputs()[0].shape == ["batch", 3, 20, 30]


@pytest.mark.parametrize("run", ["mlp", "oblong"])
def test_onnx_and_safetensors_say_the_same_facts_by_documented_keys(run: str, storage: str, exported: Any) -> None:
    path = exported(run, "onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert {entry.key: entry.value for entry in onnx.load(path).metadata_props} == metadata
    with safetensors.safe_open(exported(run, "safetensors"), framework="pt") as file:
        assert file.metadata() == metadata
    document = best(storage, run).document
    found = {key: json.loads(value) for key, value in metadata.items()}
    assert found == {key: document[key] for key in found}
    assert found["class_names"] == list(examples(run, "test").class_names)
    assert found["normalization"].keys() == {"mean", "std"}
    for text in ((ROOT / "docs/evidence.md").read_text(), Path(f"{path}.md").read_text()):
        (said,) = re.findall(r"metadata\b[^`]*\bhas (.*),? each as JSON", text)
        assert set(found) <= set(re.findall(r"`(\w+)`", said))


def test_the_card_says_what_the_network_is(
    storage: str, exported: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(storage, "mlp", "onnx", "--output", str(tmp_path / "net.onnx"), "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["card"] == str(tmp_path / "net.onnx.md")
    card, document = (tmp_path / "net.onnx.md").read_text(), best(storage, "mlp").document
    for part in (
        said["sha256"],
        "variant `dropout_batchnorm`",
        "raw pixel values from 0 to 255",
        document["data_sha256"],
        document["config_hash"],
        document["files"]["model.safetensors"],
        f"| validation | {document['metrics']['val_loss']:.4f} | {document['metrics']['val_accuracy']:.4f} |",
        f"| torch | {version('torch')} | {version('torch')} |",
        "dropout: 0.3\n",
        "## Intended use",
        "## Limits",
    ):
        assert part in card
    double = Path(f"{exported('double', 'onnx')}.md").read_text()
    assert "Trained in float64, it computes in float32 here." in double
    in_colour, document = Path(f"{exported('oblong', 'state-dict')}.md").read_text(), best(storage, "oblong").document
    assert "A classifier of 30x20 RGB images into 4 classes" in in_colour
    assert "Input: float64 [batch, 3, 20, 30], normalized" in in_colour
    mean, std = document["normalization"]["mean"], document["normalization"]["std"]
    assert len(set(mean)) == len(set(std)) == 3
    assert f"| normalization | mean {mean}, std {std}, as fractions of 255, for red, green and blue |" in in_colour


def test_the_card_says_where_the_validation_images_come_from(
    storage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A given validation set is used as such, whatever validation_fraction is."""
    for part in ("train", "validation", "test"):
        for number in range(20):
            image = tmp_path / f"own/{part}/{number % 2}/{number}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (28, 28), 10 * number + 5).save(image)
    settings = ["--dataset", f"folder:{tmp_path / 'own'}", "--hidden-sizes", "8", "--epochs", "1"]
    assert run_command(["train", *settings, "--name", "own", "--storage", storage]) == 0
    for run, said in {"own": "the data set's own validation images", "mlp": "a share of 0.1, stratified"}.items():
        assert export(storage, run, "state-dict", "--output", str(tmp_path / f"{run}.pt")) == 0
        assert f"| held out for validation | {said} |" in (tmp_path / f"{run}.pt.md").read_text()


def test_an_existing_file_is_replaced_only_with_force(
    storage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for existing in ("a.pt", "a.pt.md"):
        (tmp_path / existing).write_text("mine")
        assert export(storage, "mlp", "state-dict", "--output", str(tmp_path / "a.pt")) == 6
        assert without_doing(capsys.readouterr().err) == (
            f"mnist-ray: error: {tmp_path / existing}: exists; replace it with --force or choose another --output\n"
        )
        assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(existing, "mine")]
        (tmp_path / existing).unlink()
    (tmp_path / "a.pt").write_text("mine")
    assert export(storage, "mlp", "state-dict", "--output", str(tmp_path / "a.pt"), "--force") == 0
    assert torch.load(tmp_path / "a.pt", weights_only=True)["fc1.weight"].shape == (256, 784)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nobody", "--to", "onnx"], 3, "run 'nobody': not in"),
        (["mlp", "--to", "tflite"], 2, "'tflite' is not one of"),
        (["mlp"], 2, "Missing option '--to'. Choose from: state-dict, safetensors, onnx, torch-export"),
        (
            ["mlp", "--to", "state-dict", "--output", "s3://bucket/a.pt"],
            2,
            "output='s3://bucket/a.pt': give a local file",
        ),
        (
            ["mlp", "--to", "state-dict", "--output", "nowhere/a.pt"],
            2,
            "output='nowhere/a.pt': there is no folder 'nowhere'",
        ),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    arguments: list[str], code: int, message: str, storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run_command(["export", *arguments, "--storage", storage]) == code
    captured = capsys.readouterr()
    assert without_doing(captured.err).count("\n") == 1
    assert message in captured.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_without_onnx_the_message_says_what_to_install(
    package: str, storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert export(storage, "mlp", "onnx", "--output", str(tmp_path)) == 2
    assert without_doing(capsys.readouterr().err) == (
        "mnist-ray: error: --to onnx: needs onnx and onnxscript: pip install 'mnist-ray[onnx]'\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format_name", LOADERS)
def test_an_exported_network_predicts_what_predict_says_of_the_same_image_files(
    format_name: str, storage: str, exported: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "files").mkdir()
    images = examples("mlp", "test").images
    for number, image in enumerate(images[:40, 0].numpy()):
        Image.fromarray(image).save(tmp_path / f"files/{number:02d}.png")
    arguments = ["--run", "mlp", "--images", str(tmp_path / "files"), "--storage", storage, "--json"]
    assert run_command(["predict", *arguments]) == 0
    said = json.loads(capsys.readouterr().out)
    rows = pq.read_table(f"{said['uri']}/image_predictions/part-00000.parquet").to_pylist()

    files = [np.asarray(Image.open(tmp_path / "files" / row["path"])) for row in rows]
    found = LOADERS[format_name](
        exported("mlp", format_name), best(storage, "mlp"), torch.from_numpy(np.stack(files))[:, None]
    )
    assert found.argmax(1).tolist() == [row["predicted_label"] for row in rows]
    np.testing.assert_allclose(found.softmax(1).numpy(), [row["probabilities"] for row in rows], atol=1e-5)


def test_the_command_offers_exactly_the_formats_that_there_are() -> None:
    (option,) = [option for option in cli.commands["export"].params if option.name == "format_name"]
    assert list(option.type.choices) == list(FORMATS)
