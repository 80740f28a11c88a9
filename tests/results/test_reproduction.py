"""A run is trained again and compared: equal, close with a reason, or different."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from mnist_ray.cli.main import run_command
from mnist_ray.results.checkpoint_folder import CheckpointFolder
from mnist_ray.results.reproduction import changes
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.storage.storage import open_storage
from tests.support.grid_runs import train_without_ray

TRAIN = ["train", "--dataset", "digits", "--epochs", "3", "--hidden-sizes", "8", "--learning-rate", "0.01"]


def contents(root: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def trained(root: Path, name: str = "a") -> list[str]:
    """Trains a run and returns the command line that reproduces it."""
    assert run_command([*TRAIN, "--name", name, "--storage", str(root)]) == 0
    return ["reproduce", name, "--storage", str(root)]


def rewrite(root: Path, *, shift: float = 0.0, **document: Any) -> None:
    """Gives run a's best checkpoint other weights and another document, both sealed as the real ones are."""
    folder = RunFolder(open_storage(str(root)), "a")
    best = folder.best()
    weights = safetensors.torch.save({name: value + shift for name, value in best.model.items()})
    sealed = {"model.safetensors": hashlib.sha256(weights).hexdigest()}
    best_folder = CheckpointFolder(folder.storage, "a", "best")
    best_folder.write({"model.safetensors": weights}, {**best.document, **document, "files": sealed})


def test_a_run_comes_out_equal_and_is_only_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reproduce = trained(tmp_path)
    before = contents(tmp_path)
    capsys.readouterr()
    assert run_command(reproduce) == 0
    assert capsys.readouterr().out.startswith("a: equal, bit for bit: all weights of the best checkpoint")
    assert run_command([*reproduce, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["result"], found["weight_difference"], found["changes"]) == ("equal", 0.0, [])
    assert contents(tmp_path) == before


def test_a_run_of_a_stack_and_one_that_was_stopped_come_out_equal_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_without_ray(str(tmp_path), "smoke", seeds="1", epochs=4, goes_on=lambda found: found.epochs_done < 2)
    (first, *_) = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert run_command(["reproduce", first, "--storage", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["result"], found["num_epochs"], found["num_epochs_again"]) == ("equal", 2, 2)


def test_other_weights_without_a_reason_end_with_7(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reproduce = trained(tmp_path)
    rewrite(tmp_path, shift=1e-7)
    capsys.readouterr()
    assert run_command(reproduce) == 7
    output = capsys.readouterr()
    assert "a: not equal (3 epochs, best 3; again 3 epochs, best 3)" in output.out
    assert "largest difference of an epoch's validation loss: 0\n" in output.out
    assert "error: run 'a': did not come out equal, though nothing has changed" in output.err


def test_other_weights_are_close_if_the_versions_are_others_and_the_accuracy_is_within_the_noise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reproduce = trained(tmp_path)
    lineage = RunFolder(open_storage(str(tmp_path)), "a").best().document["lineage"]
    older = {**lineage, "libraries": {**lineage["libraries"], "torch": "2.0.1"}}
    rewrite(tmp_path, shift=1e-3, lineage=older)
    capsys.readouterr()
    assert run_command(reproduce) == 0
    output = capsys.readouterr().out
    assert "a: not bit for bit, but equal within the noise" in output
    assert f"torch: 2.0.1 then, {torch.__version__.partition('+')[0]}" in output
    assert "largest difference of a weight: 0.001" in output

    document = RunFolder(open_storage(str(tmp_path)), "a").best().document
    metrics = {**document["metrics"], "val_accuracy": 0.5}
    history = [metrics if row["epoch"] == metrics["epoch"] else row for row in document["history"]]
    rewrite(tmp_path, metrics=metrics, history=history)
    assert run_command(reproduce) == 7
    assert "did not come out equal, more than the noise of the validation accuracy" in capsys.readouterr().err


def test_other_data_are_told_before_anything_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    for label in ("0", "1"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for index in range(8):
            Image.new("L", (28, 28), color=17 * index + int(label)).save(tmp_path / f"images/{label}/{index}.png")
    train = [*TRAIN, "--dataset", f"folder:{tmp_path}/images", "--name", "a", "--storage", str(tmp_path / "s")]
    assert run_command(train) == 0
    (tmp_path / "images/0/0.png").unlink()
    capsys.readouterr()
    assert run_command(["reproduce", "a", "--storage", str(tmp_path / "s")]) == 6
    output = capsys.readouterr()
    assert "run 'a': was trained on other data" in output.err
    assert "epoch 1" not in output.err


def test_a_run_that_is_not_finished_ends_with_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reproduce = trained(tmp_path)
    (tmp_path / "runs/a/best/checkpoint.json").unlink()
    capsys.readouterr()
    assert run_command(reproduce) == 3
    assert "run 'a': not finished" in capsys.readouterr().err


def test_the_size_of_a_stack_is_a_reason_on_a_gpu_alone() -> None:
    alike = {"python": "3.12", "libraries": {}, "cpu": "EPYC", "os": "Linux", "num_workers": 1}
    for gpu, expected in ((None, []), ("NVIDIA H100", [("stack_size", 8, 1)])):
        lineage = {**alike, "gpu": gpu}
        then, now = ({"code_version": "0.1.0", "lineage": lineage, "stack_size": size} for size in (8, 1))
        assert [(change.what, change.then, change.now) for change in changes(then, now)] == expected
