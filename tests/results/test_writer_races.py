"""Two writers of the same run, in any order: the longer history and the best checkpoint stay."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mnist_ray.cli.main import run_command
from mnist_ray.config.variants import variant_config
from mnist_ray.errors import StorageError
from mnist_ray.grids.grid import GridRun
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.results.run_progress import read_history, read_history_table, read_status
from mnist_ray.results.train_state import TrainState
from mnist_ray.storage.storage import Storage, open_storage
from mnist_ray.training.data import prepare_data
from mnist_ray.training.loop import fit
from mnist_ray.training.train_stack import train_stack
from tests.support.doing_lines import without_doing
from tests.support.tiny_digits import tiny_digits

CPU = torch.device("cpu")
EPOCHS = 4
RUN = GridRun("a", variant_config("baseline", {"dataset": "digits", "hidden_sizes": (8,), "epochs": EPOCHS}))
DATA = prepare_data(RUN.config, tiny_digits(200), device=CPU)


def train(storage: Storage) -> None:
    folder = RunFolder(storage, RUN.run)
    folder.claim(RUN.config, DATA)
    for state in fit(RUN.config, DATA, device=CPU, state=folder.latest_state()):
        folder.save(RUN.config, DATA, state)
    folder.finish(RUN.config)


def tune(storage: Storage) -> None:
    list(train_stack([RUN], DATA, storage=storage, device=CPU))


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "results") if request.param == "local" else request.getfixturevalue("s3_uri")


def assert_whole(uri: str) -> None:
    storage = open_storage(uri)
    folder = RunFolder(storage, "a")
    assert [row.epoch for row in read_history(storage, "a")] == [1, 2, 3, 4]
    assert read_history_table(storage, "a") == read_history(storage, "a")
    assert read_status(storage, "a").status == "finished"
    best = folder.best()
    assert best.document["epoch"] == min(best.history, key=lambda row: row.val_loss).epoch


@pytest.mark.parametrize("work", [train, tune])
@pytest.mark.parametrize("name", ["history.parquet", "epoch-0002/checkpoint.json", "epoch-0002/model.safetensors"])
def test_a_write_that_is_held_until_another_writer_has_finished_shortens_nothing(
    uri: str, name: str, work: Callable[[Storage], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, held, go, errors = open_storage(uri), threading.Event(), threading.Event(), []
    write = slow._backend.write

    def hold(path: str, data: bytes) -> None:
        if path.endswith(name) and not held.is_set():
            held.set()
            assert go.wait(60)
        write(path, data)

    def run() -> None:
        try:
            work(slow)
        except Exception as error:
            errors.append(error)

    monkeypatch.setattr(slow._backend, "write", hold)
    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert held.wait(60)
        work(open_storage(uri))
        assert_whole(uri)
    finally:
        go.set()
        thread.join()
    assert errors == []
    assert_whole(uri)


def test_a_write_that_arrives_after_all_is_done_is_seen_by_no_reader_and_mended(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    folder = RunFolder(storage, "a")
    folder.claim(RUN.config, DATA)
    late: list[tuple[str, bytes]] = []
    for state in fit(RUN.config, DATA, device=CPU):
        folder.save(RUN.config, DATA, state)
        if state.history[-1].epoch == 2:
            late = [(path, storage.read_bytes(path)) for path in [folder.path("history.parquet")]]
    folder.finish(RUN.config)
    late.append((folder.path("status.json"), b'{"status": "stopped", "reason": "asha"}'))
    for path, content in late:
        storage.write_bytes(path, content)
    assert len(read_history_table(storage, "a")) == 2
    assert (len(read_history(storage, "a")), read_status(storage, "a").status) == (4, "finished")
    assert len(folder.best().history) == 4
    said: list[str] = []
    folder.mend(said.append)
    assert said == ["run 'a': history.parquet had 2 of 4 epochs; written again from the newest checkpoint"]
    assert_whole(str(tmp_path))


@pytest.mark.slow
@pytest.mark.fault
@pytest.mark.parametrize("races", [2, pytest.param(50, marks=[pytest.mark.series, pytest.mark.timeout(900)])])
def test_of_two_writers_at_once_no_history_is_shorter_than_the_newest_checkpoint(uri: str, races: int) -> None:
    for number in range(races):
        place, errors = f"{uri}/{number}", []

        def run(work: Callable[[Storage], None], place: str = place, errors: list[Exception] = errors) -> None:
            try:
                work(open_storage(place))
            except Exception as error:
                errors.append(error)

        writers = [threading.Thread(target=run, args=(work,)) for work in (train, tune)]
        for writer in writers:
            writer.start()
        reader = open_storage(place)
        while any(writer.is_alive() for writer in writers):
            newest = max((int(name[-4:]) for name in whole_checkpoints(reader)), default=0)
            assert len(read_history(reader, "a")) >= newest
        for writer in writers:
            writer.join()
        assert errors == [], number
        assert_whole(place)


def whole_checkpoints(storage: Storage) -> list[str]:
    folder = "runs/a/checkpoints"
    return [name for name in storage.list_folders(folder) if storage.exists(f"{folder}/{name}/checkpoint.json")]


@pytest.mark.parametrize("work", [train, tune])
@pytest.mark.parametrize("gone", [".", "runs"])
def test_a_storage_that_vanishes_ends_the_run_after_that_epoch(
    tmp_path: Path, gone: str, work: Callable[[Storage], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, saved = tmp_path / "results", vanishing(tmp_path / "results" / gone, monkeypatch)
    with pytest.raises(StorageError, match=r"(the folder|runs/a/config\.json) is gone: deleted, or no longer mounted"):
        work(open_storage(str(root)))
    assert saved == [1, 2, 3]
    assert not (root / "runs").exists()


def test_train_ends_with_4_when_its_storage_vanishes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = vanishing(tmp_path / "results", monkeypatch)
    command = ["train", "--dataset", "digits", "--hidden-sizes", "8", "--epochs", "9", "--name", "a"]
    assert run_command([*command, "--storage", str(tmp_path / "results")]) == 4
    assert (
        "is gone: deleted, or no longer mounted; bring it back"
        in without_doing(capsys.readouterr().err).splitlines()[-1]
    )
    assert saved == [1, 2, 3]
    assert not (tmp_path / "results").exists()


def vanishing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Has a folder vanish after the second epoch; returns the epochs that are to be saved, as they come."""
    save, epochs = RunFolder.save, []

    def note(self: RunFolder, config: object, data: object, state: TrainState, **options: object) -> None:
        epochs.append(state.history[-1].epoch)
        save(self, config, data, state, **options)
        if epochs[-1] == 2:
            shutil.rmtree(folder)

    monkeypatch.setattr(RunFolder, "save", note)
    return epochs
