"""A run keeps which validation examples its best epoch predicts correctly, whatever trained it and however often."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from mnist_ray.config.settings import TrainConfig
from mnist_ray.config.variants import variant_config
from mnist_ray.data.training_data import TrainingData
from mnist_ray.errors import CheckpointError
from mnist_ray.evaluation.inference import load_network, log_probabilities
from mnist_ray.grids.grid import GridRun
from mnist_ray.models.engine import engine_of
from mnist_ray.models.modules import Modules
from mnist_ray.models.ranks import Ranks
from mnist_ray.models.stack import Stack
from mnist_ray.results.run_documents import with_checksum
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.results.validation import Validation, packed, unpacked
from mnist_ray.storage.storage import Storage, open_storage
from mnist_ray.training.data import prepare_data
from mnist_ray.training.loop import fit
from mnist_ray.training.train_stack import train_stack
from tests.support.tiny_digits import tiny_digits

CPU = torch.device("cpu")
# Steps so large that the last epoch is worse than an earlier one.
LARGE_STEPS = {"dataset": "digits", "global_batch_size": 16, "learning_rate": 0.01, "schedule": "constant"}
BASELINE = variant_config("baseline", {**LARGE_STEPS, "hidden_sizes": (64, 32), "epochs": 6, "precision": "float64"})
RESNET = variant_config("resnet", {**LARGE_STEPS, "hidden_sizes": (4, 8), "epochs": 3, "precision": "float64"})


def data_of(config: TrainConfig) -> TrainingData:
    return prepare_data(config, tiny_digits(300), device=CPU)


def train(storage: Storage, configs: Mapping[str, TrainConfig], data: TrainingData | None = None) -> list[RunFolder]:
    runs = [GridRun(name, config) for name, config in configs.items()]
    list(train_stack(runs, data or data_of(runs[0].config), storage=storage, device=CPU))
    return [RunFolder(storage, name) for name in configs]


def validation_of(folder: RunFolder) -> Validation:
    validation = folder.best_validation()
    assert validation is not None
    return validation


@pytest.mark.parametrize(("config", "engine"), [(BASELINE, Stack), (RESNET, Modules)], ids=["stack", "modules"])
@pytest.mark.parametrize("num_runs", [1, 3])
def test_the_kept_bits_are_the_correct_predictions_of_the_kept_weights(
    tmp_path: Path, config: TrainConfig, engine: type, num_runs: int
) -> None:
    configs = {f"r{seed}": config.model_copy(update={"seed": seed}) for seed in range(num_runs)}
    data = data_of(config)
    for folder in train(open_storage(str(tmp_path)), configs):
        best = folder.best()
        network = load_network(best)
        assert engine_of(network, Ranks()) is engine
        images, normalization = data.validation_images, [best.normalization]
        (logits,) = log_probabilities([network], images, normalizations=normalization, batch_size=7, device=CPU)
        correct = validation_of(folder).correct
        assert correct.tolist() == (logits.argmax(1) == data.validation_labels).tolist()
        assert correct.mean() == best.document["metrics"]["val_accuracy"]
        assert best.document["epoch"] < len(best.history)


def test_the_bits_are_read_without_weights(tmp_path: Path) -> None:
    (folder,) = train(open_storage(str(tmp_path)), {"a": BASELINE})
    expected = validation_of(folder)
    for path in tmp_path.rglob("*.safetensors"):
        path.unlink()
    assert validation_of(folder).correct.tolist() == expected.correct.tolist()


def test_a_state_that_is_read_has_the_bits_of_its_own_epoch(tmp_path: Path) -> None:
    folder, data = RunFolder(open_storage(str(tmp_path)), "a"), data_of(BASELINE)
    folder.claim(BASELINE, data)
    for state in fit(BASELINE, data, device=CPU):
        folder.save(BASELINE, data, state)
        read = folder.latest_state()
        assert state.correct is not None
        assert read is not None
        assert read.correct is not None
        assert read.correct.tolist() == state.correct.tolist()


def test_an_unfinished_or_missing_run_has_no_bits_to_read(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    (folder,) = train(storage, {"a": BASELINE})
    shutil.rmtree(tmp_path / "runs/a/best")
    with pytest.raises(
        CheckpointError, match="run 'a': not finished, so it has no best checkpoint; the command that trains it goes"
    ):
        folder.best_validation()
    with pytest.raises(CheckpointError, match="run 'b': not in "):
        RunFolder(storage, "b").best_validation()


@pytest.mark.parametrize("num_examples", [1, 7, 8, 9, 100])
def test_packed_bits_are_unpacked_in_their_order(num_examples: int) -> None:
    correct = np.random.default_rng(num_examples).random(num_examples) < 0.7
    document = json.loads(json.dumps({"validation": packed(correct)}))
    unpacked_again = unpacked(document)
    assert unpacked_again is not None
    assert unpacked_again.dtype == np.bool_
    assert unpacked_again.tolist() == correct.tolist()


def test_the_field_has_the_first_example_in_the_highest_bit() -> None:
    correct = np.array([True, False, False, False, False, False, False, True, True])
    assert packed(correct) == {"num_examples": 9, "correct": "gYA="}


def test_runs_have_the_same_validation_examples_only_with_the_same_data_and_split(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    small = {"dataset": "digits", "epochs": 1, "hidden_sizes": (8,)}
    settings: dict[str, dict[str, object]] = {
        "a": {},
        "same": {"seed": 1, "dropout": 0.2, "learning_rate": 3e-3},
        "other split": {"validation_seed": 1},
        "other share": {"validation_fraction": 0.2},
    }
    folders = {}
    for number, (name, own) in enumerate(settings.items()):
        (folders[name],) = train(storage, {f"r{number}": variant_config("baseline", {**small, **own})})
    examples = {name: validation_of(folder).examples for name, folder in folders.items()}
    assert examples["same"] == examples["a"]
    assert len(set(examples.values())) == 3
    config = variant_config("baseline", small)
    (folder,) = train(storage, {"r4": config}, replace(data_of(config), fingerprint="other digits"))
    assert validation_of(folder).examples not in examples.values()


def forget_validation(folder: RunFolder, place: str) -> None:
    """Rewrites a checkpoint.json as versions did that didn't keep the bits."""
    path = folder.path(*place.split("/"), "checkpoint.json")
    document = json.loads(folder.storage.read_bytes(path))
    del document["document_sha256"], document["validation"]
    folder.storage.write_bytes(path, with_checksum(document))


@pytest.mark.parametrize("epochs_after_the_best", [-1, 0])
def test_a_run_of_a_version_that_kept_no_bits_goes_on_and_has_them_if_a_later_epoch_is_best(
    tmp_path: Path, epochs_after_the_best: int
) -> None:
    (whole,) = train(open_storage(str(tmp_path / "whole")), {"a": BASELINE})
    folder, data = RunFolder(open_storage(str(tmp_path / "old")), "a"), data_of(BASELINE)
    kept = whole.best().document["epoch"]
    assert 1 < kept < BASELINE.epochs
    folder.claim(BASELINE, data)
    for state in islice(fit(BASELINE, data, device=CPU), kept + epochs_after_the_best):
        folder.save(BASELINE, data, state)
    for name in folder.storage.list_folders(folder.path("checkpoints")):
        forget_validation(folder, f"checkpoints/{name}")
    train(folder.storage, {"a": BASELINE})
    assert folder.best().sha256 == whole.best().sha256
    if epochs_after_the_best < 0:
        assert validation_of(folder).correct.tolist() == validation_of(whole).correct.tolist()
    else:
        assert folder.best_validation() is None
