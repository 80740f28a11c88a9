"""Runs in TensorBoard and MLflow, read back with their own readers."""

import json
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mnist_ray.cli.main import run_command
from mnist_ray.config.variants import variant_config
from mnist_ray.results.history import EpochResult
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.storage.storage import open_storage
from mnist_ray.tracking.logged import TRACKERS
from mnist_ray.tracking.mlflow import make_store
from mnist_ray.tracking.seen_run import METRICS, SUMMARY
from mnist_ray.tracking.trackers import SeenRun, Tracking, check_trackers, mlflow_store, track
from mnist_ray.training.data import prepare_data
from mnist_ray.training.loop import fit
from tests.support.doing_lines import without_doing
from tests.support.tiny_digits import tiny_digits

CPU = torch.device("cpu")
BOTH = ["--log", "tensorboard", "--log", "mlflow"]


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's store as it makes it, which takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    make_store(folder)
    return folder


@pytest.fixture
def ready(empty_store: Path, tmp_path: Path) -> Path:
    """A storage that has MLflow's store already."""
    shutil.copytree(empty_store, tmp_path / "ready/mlflow")
    return tmp_path / "ready"


def train_command(storage: Path | str, *more: str) -> list[str]:
    settings = ["--dataset", "digits", "--epochs", "3", "--hidden-sizes", "8", "--name", "a"]
    return ["train", *settings, "--storage", str(storage), *more]


def advance(root: Path, *, epochs: int, finished: bool, hidden_size: int = 8) -> RunFolder:
    """Trains run a on to an epoch of four."""
    config = variant_config("baseline", {"dataset": "digits", "epochs": 4, "hidden_sizes": (hidden_size,)})
    data = prepare_data(config, tiny_digits(200), device=CPU)
    folder = RunFolder(open_storage(str(root)), "a")
    folder.claim(config, data)
    if len(folder.history()) < epochs:
        for state in fit(config, data, device=CPU, state=folder.latest_state()):
            folder.save(config, data, state)
            if len(state.history) == epochs:
                break
    if finished:
        folder.finish(config)
    return folder


def log(root: Path, *names: str) -> list[str]:
    """Writes run a to trackers, as a command does, and returns what was said."""
    said: list[str] = []
    with track(names, open_storage(str(root)), say=said.append) as tracking:
        tracking.update(["a"])
    return said


def events(folder: Path, name: str) -> list[tuple[int, float]]:
    found = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in found.Scalars(name)]


def mlflow_of(root: Path) -> tuple[MlflowClient, Run]:
    """Returns MLflow's client and its only run."""
    client = MlflowClient(mlflow_store(open_storage(str(root))))
    experiment = client.get_experiment_by_name("mnist-ray")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run


def metrics_of(client: MlflowClient, run: Run) -> dict[str, list[tuple[int, float]]]:
    histories = {name: client.get_metric_history(run.info.run_id, name) for name in METRICS}
    return {name: sorted((row.step, row.value) for row in history) for name, history in histories.items()}


def columns(history: tuple[EpochResult, ...]) -> dict[str, list[tuple[int, float]]]:
    return {name: [(row.epoch, getattr(row, name)) for row in history] for name in METRICS}


def float32(column: list[tuple[int, float]]) -> list[tuple[int, float]]:
    return [(epoch, torch.tensor(value, dtype=torch.float32).item()) for epoch, value in column]


def test_both_trackers_have_each_epoch_once_the_settings_and_the_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(train_command(tmp_path, *BOTH)) == 0
    output = capsys.readouterr()
    assert "goes on without it" not in output.err
    assert f"look: tensorboard --logdir {tmp_path}/tensorboard\n" in output.out
    assert f"look: mlflow ui --backend-store-uri sqlite:///{tmp_path}/mlflow/mlflow.db\n" in output.out
    expected = columns(RunFolder(open_storage(str(tmp_path)), "a").history())
    document = json.loads((tmp_path / "runs/a/config.json").read_text())

    for name, column in expected.items():
        assert events(tmp_path / "tensorboard/a", name) == float32(column)
    tags = EventAccumulator(str(tmp_path / "tensorboard/a")).Reload().Tags()
    assert "config/text_summary" in tags["tensors"]
    assert set(tags["scalars"]) == {*METRICS, *SUMMARY[:5]}

    client, run = mlflow_of(tmp_path)
    assert (run.info.run_name, run.info.status) == ("a", "FINISHED")
    assert metrics_of(client, run) == expected
    assert run.data.params.keys() == document["config"].keys()
    assert (run.data.params["hidden_sizes"], run.data.params["variant"]) == ("[8]", "baseline")
    best = json.loads((tmp_path / "runs/a/best/checkpoint.json").read_text())
    for name in ("config_hash", "data_sha256", "code_version"):
        assert run.data.tags[name] == best[name]
    artifacts = Path(client.download_artifacts(run.info.run_id, ""))
    files = ["best/checkpoint.json", "best/model.safetensors", "config.json", "history.parquet"]
    assert sorted(str(path.relative_to(artifacts)) for path in artifacts.rglob("*") if path.is_file()) == files
    for name in files:
        assert (artifacts / name).read_bytes() == (tmp_path / "runs/a" / name).read_bytes()

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "tensorboard").rglob("*")}
    assert run_command(train_command(tmp_path, *BOTH)) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "tensorboard").rglob("*")} == before
    client, run = mlflow_of(tmp_path)
    assert metrics_of(client, run) == expected


def test_an_interrupted_run_goes_on_in_the_trackers_where_it_was(ready: Path) -> None:
    folder = advance(ready, epochs=2, finished=False)
    assert log(ready, *TRACKERS) == []
    client, run = mlflow_of(ready)
    assert run.info.status == "KILLED"
    assert metrics_of(client, run) == columns(folder.history())

    advance(ready, epochs=3, finished=False)
    assert log(ready, "mlflow") == []
    advance(ready, epochs=4, finished=True)
    assert log(ready, *TRACKERS) == []
    client, run = mlflow_of(ready)
    assert run.info.status == "FINISHED"
    expected = columns(folder.history())
    assert metrics_of(client, run) == expected
    assert events(ready / "tensorboard/a", "val_loss") == float32(expected["val_loss"])


def test_a_running_tensorboard_sees_new_epochs(tmp_path: Path) -> None:
    folder = advance(tmp_path, epochs=1, finished=False)
    log(tmp_path, "tensorboard")
    reader = EventAccumulator(str(tmp_path / "tensorboard/a")).Reload()
    advance(tmp_path, epochs=3, finished=False)
    log(tmp_path, "tensorboard")
    seen = [(event.step, event.value) for event in reader.Reload().Scalars("val_loss")]
    assert seen == float32(columns(folder.history())["val_loss"])


def test_a_run_that_takes_the_name_of_a_deleted_one_has_its_own_epochs_only(tmp_path: Path) -> None:
    advance(tmp_path, epochs=4, finished=True)
    log(tmp_path, "tensorboard")
    shutil.rmtree(tmp_path / "runs/a")
    folder = advance(tmp_path, epochs=2, finished=False, hidden_size=9)
    log(tmp_path, "tensorboard")
    assert events(tmp_path / "tensorboard/a", "val_loss") == float32(columns(folder.history())["val_loss"])


def test_a_diverged_run_is_failed_in_mlflow_and_tells_why(ready: Path) -> None:
    advance(ready, epochs=1, finished=False).mark("diverged", "epoch 2, step 1: the loss is nan")
    log(ready, "mlflow")
    _, run = mlflow_of(ready)
    assert (run.info.status, run.data.tags["reason"]) == ("FAILED", "epoch 2, step 1: the loss is nan")


def test_a_server_that_is_down_costs_one_line_and_the_same_command_logs_it_all(
    ready: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        # Bound and not listening: nobody else answers there.
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        assert run_command(train_command(ready, *BOTH)) == 0
    output = capsys.readouterr()
    lines = without_doing(output.err).splitlines()
    told = [line for line in lines if "epoch" not in line and not line.startswith("dataset ")]
    assert len(told) == 1, told
    assert told[0].startswith("mnist-ray: --log mlflow: training goes on without it, the same command logs what is")
    assert "secret" not in output.err + output.out
    assert run_command(train_command(ready / "untracked")) == 0
    weights, expected = (load_file(root / "runs/a/best/model.safetensors") for root in (ready, ready / "untracked"))
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    history = RunFolder(open_storage(str(ready)), "a").history()
    assert events(ready / "tensorboard/a", "val_loss") == float32(columns(history)["val_loss"])

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert run_command(train_command(ready, *BOTH)) == 0
    client, run = mlflow_of(ready)
    assert metrics_of(client, run) == columns(history)


class Recorder:
    """A tracker that keeps what it is given, and fails from some run on."""

    def __init__(self, fails_at: str | None = None) -> None:
        self.runs: list[str] = []
        self.fails_at, self.closed = fails_at, False

    def write(self, seen: SeenRun) -> None:
        if seen.folder.run == self.fails_at:
            raise OSError("no space left")
        self.runs.append(seen.folder.run)

    def close(self) -> None:
        self.closed = True


def test_a_tracker_that_fails_is_left_alone_and_the_other_gets_all_runs(tmp_path: Path) -> None:
    advance(tmp_path, epochs=1, finished=False)
    for name in ("b", "c"):
        shutil.copytree(tmp_path / "runs/a", tmp_path / "runs" / name)
    good, bad, said = Recorder(), Recorder(fails_at="b"), []
    openers: dict[str, Callable[[], Any]] = {"bad": lambda: bad, "good": lambda: good}
    with Tracking(openers, open_storage(str(tmp_path)), say=said.append) as tracking:
        tracking.update(["a", "not there", "b", "c"])
    assert (good.runs, good.closed) == (["a", "b", "c"], True)
    assert (bad.runs, bad.closed) == (["a"], False)
    assert said == [
        "--log bad: training goes on without it, the same command logs what is missing: no space left",
    ]


@pytest.mark.parametrize("name", TRACKERS)
@pytest.mark.parametrize("command", [["train"], ["tune", "--grid", "smoke"]])
def test_a_missing_extra_is_told_before_anything_starts(
    tmp_path: Path,
    name: str,
    command: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    assert run_command([*command, "--dataset", "digits", "--storage", str(tmp_path / "s"), "--log", name]) == 2
    told = without_doing(capsys.readouterr().err)
    assert told == f"mnist-ray: error: --log {name}: needs {name}: pip install 'mnist-ray[{name}]'\n"
    assert not (tmp_path / "s").exists()


def test_mlflow_needs_a_server_if_the_storage_is_on_s3(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(train_command("s3://bucket/prefix", "--log", "mlflow")) == 2
    assert "S3 can't hold; set MLFLOW_TRACKING_URI" in capsys.readouterr().err
    check_trackers(["mlflow"], open_storage("s3://bucket/prefix"), {"MLFLOW_TRACKING_URI": "https://mlflow.example"})


@pytest.mark.s3
def test_tensorboards_files_go_to_s3_too(tmp_path: Path, s3_uri: str) -> None:
    assert run_command(train_command(s3_uri, "--log", "tensorboard")) == 0
    storage = open_storage(s3_uri)
    for entry in storage.list_files("tensorboard/a"):
        (tmp_path / Path(entry.path).name).write_bytes(storage.read_bytes(entry.path))
    expected = columns(RunFolder(storage, "a").history())["val_loss"]
    assert events(tmp_path, "val_loss") == float32(expected)


def test_tensorboards_folder_keeps_what_somebody_else_put_there(tmp_path: Path) -> None:
    assert run_command(train_command(tmp_path, "--log", "tensorboard")) == 0
    folder = tmp_path / "tensorboard/a"
    written = sorted(path.name for path in folder.iterdir())
    (folder / "notes.txt").write_text("mine")
    assert run_command(train_command(tmp_path, "--log", "tensorboard")) == 0
    assert (folder / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*written, "notes.txt"])
