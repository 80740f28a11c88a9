"""A run's folder: what was changed in it is found before it is used."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from mnist_ray.cli.main import run_command
from mnist_ray.config.variants import variant_config
from mnist_ray.errors import CheckpointError, StorageError
from mnist_ray.evaluation.inference import load_network
from mnist_ray.grids.grid import expand, grid_settings, read_grid, stacks
from mnist_ray.results.checkpoint_folder import CheckpointFolder
from mnist_ray.results.run_documents import read_run_document, with_checksum
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.results.run_progress import read_history_table
from mnist_ray.storage.storage import open_storage
from mnist_ray.training.data import load_data, prepare_data
from mnist_ray.training.loop import fit
from mnist_ray.training.train_stack import train_stack
from tests.support.doing_lines import without_doing
from tests.support.small_disk import small_disk
from tests.support.tiny_digits import tiny_digits

CPU = torch.device("cpu")


def trained(root: Path, name: str, *, epochs: int, finished: bool, hidden_sizes: tuple[int, ...] = (8,)) -> RunFolder:
    config = variant_config("baseline", {"dataset": "digits", "epochs": epochs, "hidden_sizes": hidden_sizes})
    data = prepare_data(config, tiny_digits(200), device=CPU)
    folder = RunFolder(open_storage(str(root)), name)
    folder.claim(config, data)
    for state in fit(config, data, device=CPU):
        folder.save(config, data, state)
    if finished:
        folder.finish(config)
    return folder


def has_content(text: bytes, document: object) -> bool:
    try:
        return bool(json.loads(text) == document)
    except ValueError:
        return False


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
            text = content[:position] + other + content[position + 1 :]
            # The 17th digit of a number may be another without a change of the number.
            if not has_content(text, json.loads(content)):
                changed.append(text)
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
    assert run_command([*train, "--name", "a", "--hidden-sizes", "8"]) == 3
    assert f"{name}/checkpoint.json belongs to another run" in capsys.readouterr().err
    assert not (tmp_path / "runs/a/best").exists()


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "changed":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif how == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()


@pytest.mark.fault
@pytest.mark.parametrize("how", ["changed", "cut", "missing"])
@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "checkpoint.json"])
def test_a_damaged_newest_checkpoint_costs_its_epoch_and_changes_no_bit(
    tmp_path: Path, how: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["train", "--dataset", "digits", "--epochs", "4", "--name", "a", "--hidden-sizes", "8"]
    assert run_command([*train, "--storage", str(tmp_path)]) == 0
    best = tmp_path / "runs/a/best/model.safetensors"
    expected = best.read_bytes()
    shutil.rmtree(best.parent)
    damage(tmp_path / "runs/a/checkpoints/epoch-0004" / name, how)
    capsys.readouterr()
    assert run_command([*train, "--storage", str(tmp_path)]) == 0
    said = [line for line in without_doing(capsys.readouterr().err).splitlines() if not line.startswith("dataset ")]
    # Without its document, which is written last, it is no checkpoint yet.
    if (name, how) != ("checkpoint.json", "missing"):
        damaged = said.pop(0)
        assert damaged.startswith(f"run 'a': checkpoints/epoch-0004/{name}")
        assert damaged.endswith("; going on from epoch 3")
    assert said[0] == "a: goes on after epoch 3"
    assert said[1].startswith("a: epoch 4/4")
    assert len(said) == 2
    assert best.read_bytes() == expected


def test_a_run_without_a_whole_checkpoint_ends_with_3_and_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["train", "--dataset", "digits", "--epochs", "2", "--name", "a", "--storage", str(tmp_path)]
    assert run_command(train) == 0
    shutil.rmtree(tmp_path / "runs/a/best")
    for path in tmp_path.glob("runs/a/checkpoints/*/model.safetensors"):
        damage(path, "changed")
    capsys.readouterr()
    assert run_command(train) == 3
    assert without_doing(capsys.readouterr().err) == (
        "mnist-ray: error: run 'a': checkpoints/epoch-0002/model.safetensors: SHA-256 differs from checkpoint.json: "
        "the file was changed or damaged; no older one is whole: delete runs/a to train it anew\n"
    )


def test_a_run_is_not_finished_with_the_best_of_fewer_epochs(tmp_path: Path) -> None:
    folder = trained(tmp_path, "a", epochs=3, finished=False)
    damage(tmp_path / "runs/a/checkpoints/epoch-0003/model.safetensors", "changed")
    with pytest.raises(CheckpointError, match=r"run 'a': checkpoints/epoch-0003 is damaged or missing"):
        folder.finish(folder.config())
    assert not folder.is_finished()


@pytest.mark.fault
def test_a_grid_passes_over_a_damaged_checkpoint_of_a_run_and_says_so(tmp_path: Path) -> None:
    grid = read_grid(grid_settings("smoke"), seeds="1", overrides={"epochs": 3}, source="test")
    runs = expand(grid, name="g", max_runs=10)
    said: list[str] = []

    def train() -> None:
        data = load_data(runs[0].config, tmp_path, CPU)
        for stack in stacks(runs, size=2):
            list(train_stack(stack, data, storage=storage, device=CPU, say=said.append))

    storage = open_storage(str(tmp_path))
    train()
    expected = {path: path.read_bytes() for path in tmp_path.glob("runs/*/best/model.safetensors")}
    assert len(expected) == 4
    first = runs[0].run
    shutil.rmtree(tmp_path / f"runs/{first}/best")
    damage(tmp_path / f"runs/{first}/checkpoints/epoch-0003/optimizer.safetensors", "cut")
    train()
    (line,) = said
    assert line.startswith(f"run {first!r}: checkpoints/epoch-0003/optimizer.safetensors: SHA-256 differs")
    assert line.endswith("going on from epoch 2")
    assert {path: path.read_bytes() for path in expected} == expected


@pytest.mark.fault
def test_a_disk_that_gets_full_ends_a_run_with_one_line_and_leaves_the_checkpoint_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["train", "--dataset", "digits", "--epochs", "4", "--name", "a", "--hidden-sizes", "64,32"]
    saved, whole = tmp_path / "saved", tmp_path / "whole"
    # A checkpoint has 620 kB.
    with small_disk(tmp_path, "1500k") as small:
        assert run_command([*train, "--storage", str(small)]) == 4
        shutil.copytree(small, saved)
    _, _, *epochs, error = without_doing(capsys.readouterr().err).splitlines()
    assert [line.split("  ")[0] for line in epochs] == ["a: epoch 1/4", "a: epoch 2/4"]
    assert error.startswith("mnist-ray: error: storage='")
    assert error.endswith("can't be written: the disk is full; free some space or choose another storage")
    assert run_command([*train, "--storage", str(whole)]) == 0
    capsys.readouterr()
    assert run_command([*train, "--storage", str(saved)]) == 0
    assert without_doing(capsys.readouterr().err).splitlines()[2] == "a: goes on after epoch 2"
    best = "runs/a/best/model.safetensors"
    assert (saved / best).read_bytes() == (whole / best).read_bytes()


def test_weights_that_are_none_are_refused_though_their_checksum_fits(tmp_path: Path) -> None:
    folder = trained(tmp_path, "a", epochs=1, finished=True)
    best = CheckpointFolder(folder.storage, "a", "best")
    best.write({"model.safetensors": b"garbage"}, _document_of(tmp_path, b"garbage"))
    with pytest.raises(CheckpointError, match="run 'a': best: no safetensors"):
        folder.best()


def _document_of(root: Path, content: bytes) -> dict[str, object]:
    document = json.loads((root / "runs/a/best/checkpoint.json").read_text())
    del document["document_sha256"]
    return {**document, "files": {"model.safetensors": hashlib.sha256(content).hexdigest()}}


def test_a_finished_run_without_its_history_gets_it_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", "--dataset", "digits", "--epochs", "1", "--storage", str(tmp_path), "--name", "a"]
    assert run_command(train) == 0
    table = tmp_path / "runs/a/history.parquet"
    expected = table.read_bytes()
    table.unlink()
    capsys.readouterr()
    assert run_command(train) == 0
    assert "run 'a': history.parquet had 0 of 1 epochs; written again" in capsys.readouterr().err
    assert table.read_bytes() == expected


@pytest.mark.parametrize("damaged", [b"", b"PAR1", b"garbage"])
def test_a_damaged_history_of_an_unfinished_run_is_written_again_from_its_checkpoint(
    tmp_path: Path, damaged: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = trained(tmp_path, "a", epochs=2, finished=False)
    expected = folder.history()
    (tmp_path / "runs/a/history.parquet").write_bytes(damaged)
    assert folder.history() == expected
    assert run_command(["runs", "--storage", str(tmp_path)]) == 0
    assert "damaged" not in capsys.readouterr().out
    said: list[str] = []
    folder.mend(said.append)
    assert said == ["run 'a': history.parquet was damaged; written again from the newest checkpoint"]
    assert read_history_table(folder.storage, "a") == expected


def test_weights_that_their_killed_writer_left_out_come_from_the_checkpoint(tmp_path: Path) -> None:
    folder = trained(tmp_path, "a", epochs=2, finished=True)
    weights = tmp_path / "runs/a/best/model.safetensors"
    expected = weights.read_bytes()
    weights.unlink()
    assert hashlib.sha256(expected).hexdigest() == folder.best().sha256
    assert not weights.exists()
    folder.mend()
    assert weights.read_bytes() == expected


@pytest.mark.parametrize("name", ["config.json", "best/checkpoint.json", "best/model.safetensors"])
def test_a_folder_in_the_place_of_a_file_is_a_damaged_run(tmp_path: Path, name: str) -> None:
    folder = trained(tmp_path, "a", epochs=1, finished=True)
    (tmp_path / "runs/a" / name).unlink()
    (tmp_path / "runs/a" / name).mkdir()
    shutil.rmtree(tmp_path / "runs/a/checkpoints")
    with pytest.raises(CheckpointError, match="run 'a'"):
        folder.best()


FORGED: dict[str, dict[str, object]] = {
    "normalization": {"normalization": "0.5"},
    "normalization.std: Input should be greater": {"normalization": {"mean": 0.5, "std": 0.0}},
    "normalization.mean": {"normalization": {"mean": float("nan"), "std": 0.5}},
    "normalization.std: Field required": {"normalization": {"mean": 0.5}},
    "bright_ground_share": {"bright_ground_share": 2.0},
    "wide_bits": {"wide_bits": 9},
    "class_names.0": {"class_names": [1, 2]},
    "class_names: two classes": {"class_names": ["a", "a"]},
    "history": {"history": []},
    "validation": {"validation": []},
    "validation.num_examples": {"validation": {"num_examples": 0, "correct": ""}},
    "validation.correct: Field required": {"validation": {"num_examples": 8}},
    "validation: correct: not one bit: a byte more": {"validation": {"num_examples": 8, "correct": "/v8="}},
    "validation: correct: not one bit: a byte less": {"validation": {"num_examples": 9, "correct": "/w=="}},
    "validation: correct: not one bit: more bits": {"validation": {"num_examples": 7, "correct": "/w=="}},
    "validation: Only base64": {"validation": {"num_examples": 8, "correct": "/w=!="}},
    "validation: string argument": {"validation": {"num_examples": 8, "correct": "é/w=="}},
    "history.0.train_loss": {"history": [{"epoch": 1}]},
    "lineage": {"lineage": []},
    "files": {"files": []},
    "epoch and metrics": {"epoch": 7},
    "weights of another architecture": {"class_names": ["a", "b"]},
}


def forge(folder: RunFolder, place: str, changes: Mapping[str, object]) -> None:
    path = folder.path(*place.split("/"))
    document = json.loads(folder.storage.read_bytes(path))
    del document["document_sha256"]
    folder.storage.write_bytes(path, with_checksum({**document, **changes}))


@pytest.mark.parametrize("part", FORGED)
def test_a_forged_document_with_a_right_checksum_ends_with_3_and_one_line(tmp_path: Path, part: str) -> None:
    folder = trained(tmp_path, "a", epochs=1, finished=True)
    forge(folder, "best/checkpoint.json", FORGED[part])
    with pytest.raises(CheckpointError) as raised:
        load_network(folder.best())
    assert part.partition(":")[0] in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("hidden_sizes", [[1_000_000] * 3, [2**31 - 1] * 2, [1] * 300_000])
def test_a_network_that_its_weights_do_not_fit_is_refused_before_it_takes_memory(
    tmp_path: Path, hidden_sizes: list[int]
) -> None:
    folder = trained(tmp_path, "a", epochs=1, finished=True)
    config = {**read_run_document(folder.storage, "a")["config"], "hidden_sizes": hidden_sizes}
    forge(folder, "best/checkpoint.json", {"config": config})
    with pytest.raises(CheckpointError, match=r"belongs to another run than config\.json \(config\)"):
        folder.best()
    forge(folder, "config.json", {"config": config})
    with pytest.raises(CheckpointError, match="weights of another architecture than its config") as raised:
        load_network(folder.best())
    assert len(str(raised.value)) < 500


@pytest.mark.parametrize("changes", [{"config": []}, {"data_sha256": 5}])
def test_a_forged_config_json_ends_with_one_line(tmp_path: Path, changes: dict[str, object]) -> None:
    folder = trained(tmp_path, "a", epochs=1, finished=True)
    forge(folder, "config.json", changes)
    with pytest.raises(CheckpointError, match=r"run 'a': config.json was not written by mnist-ray \("):
        folder.best()


@pytest.mark.parametrize("name", ["config.json", "best/checkpoint.json", "best/model.safetensors", "history.parquet"])
def test_a_pipe_in_the_place_of_a_file_ends_at_once(tmp_path: Path, name: str) -> None:
    folder = trained(tmp_path, "a", epochs=1, finished=True)
    (tmp_path / "runs/a" / name).unlink()
    os.mkfifo(tmp_path / "runs/a" / name)
    with pytest.raises(StorageError, match="a pipe, socket or device, not an object"):
        folder.storage.read_bytes(folder.path(name))
    if name in ("config.json", "best/checkpoint.json"):
        with pytest.raises(CheckpointError, match="run 'a'"):
            folder.best()
    else:
        # The newest checkpoint has the same weights, and best/checkpoint.json the epochs.
        assert len(folder.best().history) == 1


@pytest.mark.parametrize("content", ["[]", "{}", '"text"'])
def test_a_status_that_is_no_status_is_a_damaged_run(tmp_path: Path, content: str) -> None:
    folder = trained(tmp_path, "a", epochs=1, finished=True)
    (tmp_path / "runs/a/status.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"run 'a': status.json is damaged"):
        folder.is_marked("diverged")


def test_a_run_of_a_version_with_fewer_settings_and_another_hash_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["train", "--dataset", "digits", "--epochs", "2", "--hidden-sizes", "8", "--storage", str(tmp_path)]
    for name in ("a", "b"):
        assert run_command([*train, "--name", name]) == 0
    shutil.rmtree(tmp_path / "runs/a/best")
    shutil.rmtree(tmp_path / "runs/a/checkpoints/epoch-0002")
    folder = RunFolder(open_storage(str(tmp_path)), "a")
    older = read_run_document(folder.storage, "a")["config"]
    del older["precision"], older["label_smoothing"]
    for place in ("config.json", "checkpoints/epoch-0001/checkpoint.json"):
        forge(folder, place, {"config": older, "config_hash": "of an older rule"})
    assert run_command([*train, "--name", "a", "--precision", "bf16"]) == 6
    assert "exists with another config (precision='float32' there, 'bf16' here)" in capsys.readouterr().err
    assert run_command([*train, "--name", "a"]) == 0
    weights = [(tmp_path / "runs" / name / "best/model.safetensors").read_bytes() for name in ("a", "b")]
    assert weights[0] == weights[1]
    assert folder.best().config == RunFolder(folder.storage, "b").best().config
