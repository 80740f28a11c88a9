"""Stacks leave each run in the storage as if it had been trained alone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mnist_ray.config.settings import TrainConfig
from mnist_ray.config.variants import variant_config
from mnist_ray.data.training_data import TrainingData
from mnist_ray.errors import ConflictError
from mnist_ray.grids.grid import GridRun
from mnist_ray.results.history import EpochResult
from mnist_ray.results.run_documents import read_run_document
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.results.run_progress import RunProgress, read_history_table, read_progress
from mnist_ray.results.train_state import TrainState
from mnist_ray.results.validation import Validation
from mnist_ray.storage.storage import Storage, open_storage
from mnist_ray.training.data import prepare_data
from mnist_ray.training.loop import fit
from mnist_ray.training.train_stack import train_stack
from tests.support.tiny_digits import tiny_digits

CPU = torch.device("cpu")


def run_of(seed: int, **settings: object) -> GridRun:
    small = {"dataset": "digits", "hidden_sizes": (16, 12), "epochs": 3, "seed": seed}
    return GridRun(f"r{seed}", variant_config("dropout_batchnorm", {**small, **settings}))


def data_of(config: TrainConfig) -> TrainingData:
    return prepare_data(config, tiny_digits(300), device=CPU)


def train(
    runs: list[GridRun],
    storage: Storage,
    *,
    goes_on: Callable[[RunProgress], bool] = lambda _: True,
    stop_after: int | None = None,
) -> list[list[RunProgress]]:
    reported = []
    for progress in train_stack(runs, data_of(runs[0].config), storage=storage, device=CPU, goes_on=goes_on):
        reported.append(progress)
        if len(reported) == stop_after:
            break
    return reported


def alone(run: GridRun, storage: Storage) -> None:
    folder, data = RunFolder(storage, run.run), data_of(run.config)
    folder.claim(run.config, data)
    for state in fit(run.config, data, device=CPU):
        folder.save(run.config, data, state)
    folder.finish(run.config)


def timeless(history: tuple[EpochResult, ...]) -> list[EpochResult]:
    return [replace(row, epoch_seconds=0) for row in history]


def files_of(root: Path, run: str) -> list[str]:
    return sorted(str(path.relative_to(root / "runs" / run)) for path in (root / "runs" / run).rglob("*"))


def assert_same_validation(actual: Validation | None, expected: Validation | None) -> None:
    assert actual is not None
    assert expected is not None
    assert actual.examples == expected.examples
    assert np.array_equal(actual.correct, expected.correct)


def assert_same_folders(root: Path, expected_root: Path, runs: list[GridRun]) -> None:
    for run in runs:
        assert files_of(root, run.run) == files_of(expected_root, run.run)
        folder, expected = (RunFolder(open_storage(str(place)), run.run) for place in (root, expected_root))
        assert timeless(folder.history()) == timeless(expected.history())
        assert folder.best().sha256 == expected.best().sha256
        assert folder.best().document["epoch"] == expected.best().document["epoch"]
        assert_same_validation(folder.best_validation(), expected.best_validation())
        document, of_single = (read_run_document(each.storage, run.run) for each in (folder, expected))
        assert {**document, "begun_at": None} == {**of_single, "begun_at": None}


def test_a_stack_leaves_the_folders_that_single_runs_leave(tmp_path: Path) -> None:
    runs = [run_of(seed, dropout=0.1 * seed) for seed in range(4)]
    reported = train(runs, open_storage(str(tmp_path / "stack")))
    assert [[row.epochs_done for row in rows] for rows in reported] == [[1] * 4, [2] * 4, [3] * 4]
    assert {row.status for row in reported[-1]} == {"finished"}
    for run in runs:
        alone(run, open_storage(str(tmp_path / "alone")))
    assert_same_folders(tmp_path / "stack", tmp_path / "alone", runs)


def test_a_stack_that_was_interrupted_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    runs = [run_of(seed) for seed in range(4)]
    storage = open_storage(str(tmp_path / "stack"))
    # The first two are an epoch further than the others, and the first is done.
    train([runs[0]], storage)
    train([runs[1]], storage, stop_after=2)
    train(runs[2:], storage, stop_after=1)
    before = (tmp_path / "stack/runs/r0/best/checkpoint.json").stat().st_mtime_ns
    reported = train(runs, storage)
    assert [[(row.run, row.epochs_done) for row in rows] for rows in reported] == [
        [("r2", 2), ("r3", 2)],
        [("r2", 3), ("r3", 3)],
        [("r1", 3)],
    ]
    assert (tmp_path / "stack/runs/r0/best/checkpoint.json").stat().st_mtime_ns == before
    for run in runs:
        alone(run, open_storage(str(tmp_path / "alone")))
    assert_same_folders(tmp_path / "stack", tmp_path / "alone", runs)
    assert train(runs, storage) == []


def test_a_run_killed_between_its_last_epoch_and_its_best_checkpoint_is_finished_without_training(
    tmp_path: Path,
) -> None:
    run, storage = run_of(0), open_storage(str(tmp_path))
    folder, data = RunFolder(storage, run.run), data_of(run.config)
    folder.claim(run.config, data)
    for state in fit(run.config, data, device=CPU):
        folder.save(run.config, data, state)
    assert [[(row.status, row.epochs_done) for row in rows] for rows in train([run], storage)] == [[("finished", 3)]]
    assert folder.best().document["epoch"] in (1, 2, 3)


def test_a_diverged_run_is_marked_and_its_neighbours_are_as_without_it(tmp_path: Path) -> None:
    runs = [run_of(0), run_of(1, learning_rate=1e38), run_of(2)]
    storage = open_storage(str(tmp_path / "with"))
    reported = train(runs, storage)
    assert [(row.run, row.status) for row in reported[0]][1] == ("r1", "diverged")
    progress = read_progress(storage, "r1")
    assert progress.reason is not None
    assert "try a learning_rate below 1e+38" in progress.reason
    assert (progress.epochs_done, progress.best_epoch) == (0, None)
    assert not (tmp_path / "with/runs/r1/best").exists()
    others = [runs[0], runs[2]]
    train(others, open_storage(str(tmp_path / "without")))
    assert_same_folders(tmp_path / "with", tmp_path / "without", others)
    # Nothing is tried again.
    assert train(runs, storage) == []


def test_a_stopped_run_keeps_its_best_checkpoint_and_is_not_trained_again(tmp_path: Path) -> None:
    runs, storage = [run_of(seed) for seed in range(3)], open_storage(str(tmp_path / "asha"))
    reported = train(runs, storage, goes_on=lambda row: not (row.run == "r1" and row.epochs_done == 2))
    assert [[row.run for row in rows] for rows in reported] == [["r0", "r1", "r2"], ["r0", "r1", "r2"], ["r0", "r2"]]
    stopped = read_progress(storage, "r1")
    assert (stopped.status, stopped.epochs_done) == ("stopped", 2)
    assert stopped.reason == "asha: not among the best after epoch 2"
    weights = load_file(tmp_path / f"asha/runs/r1/checkpoints/epoch-{stopped.best_epoch:04d}/model.safetensors")
    for name, value in RunFolder(storage, "r1").best().model.items():
        assert torch.equal(value, weights[name])
    assert train(runs, storage) == []
    others = [runs[0], runs[2]]
    train(others, open_storage(str(tmp_path / "without")))
    assert_same_folders(tmp_path / "asha", tmp_path / "without", others)


def test_a_name_that_belongs_to_another_config_is_refused(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    train([run_of(0)], storage)
    with pytest.raises(ConflictError, match=r"run 'r0': exists with another config \(dropout=0.3 there, 0.4 here\)"):
        train([run_of(0, dropout=0.4)], storage)


def saved_states(run: GridRun, storage: Storage) -> tuple[RunFolder, TrainingData, list[TrainState]]:
    folder, data = RunFolder(storage, run.run), data_of(run.config)
    folder.claim(run.config, data)
    return folder, data, list(fit(run.config, data, device=CPU))


def test_two_processes_that_train_the_same_run_leave_it_as_one_does(tmp_path: Path) -> None:
    run, storage = run_of(0, epochs=5), open_storage(str(tmp_path / "both"))
    folder, data, states = saved_states(run, storage)
    for state in states:
        folder.save(run.config, data, state)
    # The other one is three epochs behind: before the best checkpoint is written, and after.
    folder.save(run.config, data, states[1])
    folder.finish(run.config)
    folder.save(run.config, data, states[2])
    folder.finish(run.config)
    assert [row.epoch for row in folder.history()] == [1, 2, 3, 4, 5]
    alone(run, open_storage(str(tmp_path / "alone")))
    expected = RunFolder(open_storage(str(tmp_path / "alone")), run.run)
    assert folder.best().sha256 == expected.best().sha256
    assert folder.best().document["epoch"] == expected.best().document["epoch"]
    assert timeless(folder.history()) == timeless(expected.history())


def test_a_run_killed_before_its_last_history_has_it_when_it_is_finished(tmp_path: Path) -> None:
    run, storage = run_of(0), open_storage(str(tmp_path))
    folder, data, states = saved_states(run, storage)
    for state in states:
        before = storage.read_bytes(folder.path("history.parquet")) if folder.history() else None
        folder.save(run.config, data, state)
    assert before is not None
    storage.write_bytes(folder.path("history.parquet"), before)
    assert len(read_history_table(storage, "r0")) == 2
    train([run], storage)
    assert [row.epoch for row in read_history_table(storage, "r0")] == [1, 2, 3]


def test_a_run_killed_between_its_stop_and_its_best_checkpoint_stays_stopped(tmp_path: Path) -> None:
    run, storage = run_of(0), open_storage(str(tmp_path))
    folder, data, states = saved_states(run, storage)
    folder.save(run.config, data, states[0])
    folder.mark("stopped", "asha: not among the best after epoch 1")
    assert [[(row.status, row.epochs_done) for row in rows] for rows in train([run], storage)] == [[("stopped", 1)]]
    assert folder.best().document["epoch"] == 1


def test_runs_that_end_on_a_rung_have_arrived_there(tmp_path: Path) -> None:
    arrived = []

    def goes_on(progress: RunProgress) -> bool:
        arrived.append((progress.run, progress.epochs_done))
        return True

    train([run_of(0), run_of(1)], open_storage(str(tmp_path)), goes_on=goes_on)
    assert sorted(arrived) == [(run, epoch) for run in ("r0", "r1") for epoch in (1, 2, 3)]
