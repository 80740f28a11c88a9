"""A run's folder: what was changed in it is found before it is used."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_digits import tiny_digits

from mnist_ray.checkpoints import RunFolder
from mnist_ray.cli import run_command
from mnist_ray.errors import CheckpointError
from mnist_ray.storage import open_storage
from mnist_ray.training import fit
from mnist_ray.training_data import prepare_data
from mnist_ray.variants import variant_config

CPU = torch.device("cpu")


def trained(root: Path, name: str, *, epochs: int, finished: bool, hidden_sizes: tuple[int, ...] = (8,)) -> RunFolder:
    config = variant_config("baseline", {"dataset": "digits", "epochs": epochs, "hidden_sizes": hidden_sizes})
    data = prepare_data(config, tiny_digits(200), device=CPU)
    folder = RunFolder(open_storage(str(root)), name)
    folder.claim(config, data, resume=False)
    for state in fit(config, data, device=CPU):
        folder.save(config, data, state)
    if finished:
        folder.finish()
    return folder


@pytest.mark.parametrize("document", ["config.json", "best/checkpoint.json"])
def test_no_change_of_a_document_goes_unnoticed(tmp_path: Path, document: str) -> None:
    folder = trained(tmp_path, "a", epochs=1, finished=True)
    folder.best()
    path = tmp_path / "runs/a" / document
    content = path.read_bytes()
    assert b"document_sha256" in content
    changed = [b"", b"[]", b"{}", b"5", b"[" * 200_000, content[:50]]
    # Each letter or digit in turn becomes another, numbers and names included.
    for position in range(0, len(content), 7):
        if chr(content[position]).isalnum():
            other = b"1" if content[position : position + 1] != b"1" else b"2"
            changed.append(content[:position] + other + content[position + 1 :])
    for damaged in changed:
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"run 'a': .*damaged"):
            folder.best()
    path.write_bytes(content)
    folder.best()


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_checkpoint_of_another_run_is_not_resumed_from(
    tmp_path: Path, epoch: int, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["train", "--dataset", "digits", "--epochs", "2", "--storage", str(tmp_path)]
    assert run_command([*train, "--name", "a", "--hidden-sizes", "8"]) == 0
    assert run_command([*train, "--name", "b", "--hidden-sizes", "9"]) == 0
    shutil.rmtree(tmp_path / "runs/a/best")
    for later in range(epoch, 3):
        shutil.rmtree(tmp_path / f"runs/a/checkpoints/epoch-{later:04d}")
    name = f"checkpoints/epoch-{epoch:04d}"
    shutil.copytree(tmp_path / "runs/b" / name, tmp_path / "runs/a" / name)
    capsys.readouterr()
    assert run_command([*train, "--name", "a", "--hidden-sizes", "8", "--resume"]) == 3
    assert f"{name}/checkpoint.json belongs to another run" in capsys.readouterr().err
    assert not (tmp_path / "runs/a/best").exists()


def test_weights_that_are_none_are_refused_though_their_checksum_fits(tmp_path: Path) -> None:
    folder = trained(tmp_path, "a", epochs=1, finished=True)
    folder._write("best", {"model.safetensors": b"garbage"}, _document_of(tmp_path, b"garbage"))
    with pytest.raises(CheckpointError, match="run 'a': best: no safetensors"):
        folder.best()


def _document_of(root: Path, content: bytes) -> dict[str, object]:
    document = json.loads((root / "runs/a/best/checkpoint.json").read_text())
    del document["document_sha256"]
    return {**document, "files": {"model.safetensors": hashlib.sha256(content).hexdigest()}}


def test_a_finished_run_without_its_history_ends_with_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", "--dataset", "digits", "--epochs", "1", "--storage", str(tmp_path), "--name", "a"]
    assert run_command(train) == 0
    (tmp_path / "runs/a/history.parquet").unlink()
    capsys.readouterr()
    assert run_command(train) == 3
    assert "history.parquet is missing" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config.json", "best/checkpoint.json", "best/model.safetensors"])
def test_a_folder_in_the_place_of_a_file_is_a_damaged_run(tmp_path: Path, name: str) -> None:
    folder = trained(tmp_path, "a", epochs=1, finished=True)
    (tmp_path / "runs/a" / name).unlink()
    (tmp_path / "runs/a" / name).mkdir()
    with pytest.raises(CheckpointError, match="run 'a'"):
        folder.best()
