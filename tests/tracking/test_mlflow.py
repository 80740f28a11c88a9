"""What MLflow gets besides metrics: a grid's run, models that it loads, and data."""

import contextlib
import json
import multiprocessing
import sqlite3
import sys
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from mnist_ray.cli.main import run_command
from mnist_ray.config.variants import variant_config
from mnist_ray.data.datasets import load_examples
from mnist_ray.export.formats import _serialized
from mnist_ray.results.checkpoint_folder import Checkpoint
from mnist_ray.results.evaluation_folder import open_evaluation
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.storage.storage import open_storage
from mnist_ray.tracking.mlflow_facts import dataset_input, setting_tags
from mnist_ray.tracking.trackers import track
from tests.support.grid_runs import train_without_ray
from tests.support.own_networks import write_nets
from tests.support.tracked import client_of, runs_in

DIGITS = ["--dataset", "digits", "--epochs", "1", "--name", "a", "--log", "mlflow"]


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def train(root: Path, *more: str) -> None:
    assert run_command(["train", *DIGITS, "--storage", str(root), *more]) == 0


def log_grid(root: str, names: list[str]) -> None:
    """Writes a grid's runs to MLflow, as a command does, in a process of its own or not."""
    said: list[str] = []
    with track(["mlflow"], open_storage(root), grid="g", say=said.append) as tracking:
        tracking.update(names)
    assert said == []


def test_a_model_loaded_by_mlflow_gives_the_probabilities_of_the_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path, "--variant", "cnn", "--set", "hidden_sizes=4,8")
    assert run_command(["evaluate", "--run", "a", "--storage", str(tmp_path), "--no-report"]) == 0
    client = client_of(tmp_path)
    (run,) = runs_in(client, "mnist-ray")
    uri = f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    mlflow.set_tracking_uri(uri)
    try:
        version = mlflow.register_model(f"runs:/{run.info.run_id}/model", "digits")
        model = mlflow.pyfunc.load_model(f"models:/digits/{version.version}")
        assert mlflow.onnx.load_model(f"runs:/{run.info.run_id}/model").graph.input[0].name == "images"
    finally:
        mlflow.set_tracking_uri(None)
    assert str(model.metadata.signature.inputs) == "[Tensor('float32', (-1, 1, 28, 28))]"
    assert str(model.metadata.signature.outputs) == "['probabilities': Tensor('float32', (-1, 10))]"
    assert model.metadata.metadata == {"run": "a", "class_names": list("0123456789")}
    images = load_examples("digits", "test", data_dir=Path("unused")).images.numpy()
    predicted = model.predict(images.astype(np.float32))["probabilities"]
    (evaluation,) = (path.name for path in (tmp_path / "evaluations").iterdir())
    rows = open_evaluation(open_storage(str(tmp_path)), evaluation).rows("predictions")
    rows.sort(key=lambda row: row["example_index"])
    np.testing.assert_allclose(predicted, [row["probabilities"] for row in rows], atol=2e-6)

    train(tmp_path, "--variant", "cnn", "--set", "hidden_sizes=4,8")
    assert len(client.search_logged_models([run.info.experiment_id])) == 1


def test_an_incomplete_model_of_a_killed_writer_is_replaced(tmp_path: Path) -> None:
    train(tmp_path, "--hidden-sizes", "8")
    client = client_of(tmp_path)
    (run,) = runs_in(client, "mnist-ray")
    (model,) = client.search_logged_models([run.info.experiment_id])
    client.delete_logged_model(model.model_id)
    left = client.create_logged_model(run.info.experiment_id, name="model", source_run_id=run.info.run_id)
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow/mlflow.db")) as database, database:
        two_hours_ago = left.creation_timestamp - 7_200_000
        database.execute(
            "UPDATE logged_models SET creation_timestamp_ms = ? WHERE model_id = ?", (two_hours_ago, left.model_id)
        )
    train(tmp_path, "--hidden-sizes", "8")
    (again,) = client.search_logged_models([run.info.experiment_id])
    assert str(again.status) == "READY"
    assert again.model_id not in (model.model_id, left.model_id)


def test_without_onnx_a_line_says_so_and_the_rest_is_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    train_without_ray(str(tmp_path), "smoke", seeds="1", dataset="digits", epochs=1)
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    said: list[str] = []
    with track(["mlflow"], open_storage(str(tmp_path)), grid="g", say=said.append) as tracking:
        tracking.update(names)
    assert said == ["--log mlflow: models need onnx and onnxscript: pip install 'mnist-ray[onnx]'"]
    assert {run.info.status for run in runs_in(client_of(tmp_path), "g")} == {"FINISHED"}


def test_an_own_network_is_a_model_and_one_that_cant_be_exported_costs_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    branching = (
        "class Branching(Net):\n"
        "    def forward(self, images):\n"
        "        return super().forward(images if self.fc.bias.sum().item() > 0 else 2 * images)\n"
    )
    nets = write_nets(tmp_path, branching)
    train(tmp_path / "s", "--model", f"{nets}:Branching")
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mnist-ray: ")]
    assert len(told) == 1, told
    assert told[0].startswith("mnist-ray: --log mlflow: run 'a': its network my_nets.py:Branching can't be exported: ")
    train(tmp_path / "s", "--model", f"{nets}:mlp", "--name", "b")
    client = client_of(tmp_path / "s")
    runs = {run.info.run_name: run.info for run in runs_in(client, "mnist-ray")}
    assert [runs[name].status for name in ("a", "b")] == ["FINISHED", "FINISHED"]
    (model,) = client.search_logged_models([runs["b"].experiment_id])
    assert model.source_run_id == runs["b"].run_id


@pytest.mark.slow
@pytest.mark.series
def test_of_two_processes_that_find_nothing_only_one_makes_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, storage = str(tmp_path), open_storage(str(tmp_path))
    train_without_ray(root, "smoke", seeds="1", dataset="digits", epochs=1)
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    create_run, asked = MlflowClient.create_run, []

    def create_after_another(client: MlflowClient, *arguments: Any, **more: Any) -> Run:
        if not asked:
            asked.append(more["run_name"])
            another = multiprocessing.get_context("spawn").Process(target=log_grid, args=(root, names))
            another.start()
            another.join()
            assert another.exitcode == 0
        return create_run(client, *arguments, **more)

    monkeypatch.setattr(MlflowClient, "create_run", create_after_another)
    with track(["mlflow"], storage, grid="g") as tracking:
        tracking.update(names)
    assert asked == ["g"]
    client = client_of(tmp_path)
    check_grid(client, root, names)
    log_grid(root, names)
    check_grid(client, root, names)


def check_grid(client: MlflowClient, root: str, names: list[str]) -> None:
    runs = {run.info.run_name: run for run in runs_in(client, "g")}
    assert len(runs_in(client, "g")) == len(runs) == len(names) + 1
    parent = runs.pop("g")
    assert sorted(runs) == names
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    assert {run.info.status for run in (parent, *runs.values())} == {"FINISHED"}
    models = client.search_logged_models([parent.info.experiment_id])
    assert sorted(model.source_run_id for model in models) == sorted(run.info.run_id for run in runs.values())
    (record,) = Path(root, "grids/g/logged").iterdir()
    assert json.loads(record.read_text())["run_id"] == parent.info.run_id


def test_a_grid_that_is_interrupted_is_killed_and_finishes_later(tmp_path: Path) -> None:
    root = str(tmp_path)
    train_without_ray(root, "smoke", seeds="1", dataset="digits", epochs=1)
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    # The first run as it is before its end.
    best = tmp_path / "runs" / names[0] / "best"
    best.rename(tmp_path / "away")
    log_grid(root, names)
    client = client_of(tmp_path)
    statuses = {run.info.run_name: run.info.status for run in runs_in(client, "g")}
    assert statuses == {"g": "KILLED", names[0]: "KILLED", **dict.fromkeys(names[1:], "FINISHED")}
    (tmp_path / "away").rename(best)
    log_grid(root, names)
    check_grid(client, root, names)


def test_a_deleted_run_is_logged_anew_by_the_next_training_command(tmp_path: Path) -> None:
    train(tmp_path, "--hidden-sizes", "8")
    client = client_of(tmp_path)
    (run,) = runs_in(client, "mnist-ray")
    client.delete_run(run.info.run_id)
    train(tmp_path, "--hidden-sizes", "8")
    (again,) = runs_in(client, "mnist-ray")
    assert again.info.run_id != run.info.run_id
    assert json.loads((tmp_path / "runs/a/logged/mlflow.json").read_text())["run_id"] == again.info.run_id


@pytest.mark.parametrize(
    ("dataset", "source"),
    [
        ("folder:/data/mine", {"type": "local", "uri": "/data/mine"}),
        ("parquet:s3://bucket/mine.parquet", {"type": "s3", "uri": "s3://bucket/mine.parquet"}),
    ],
)
def test_mlflow_resolves_the_source_of_a_data_set(dataset: str, source: dict[str, str]) -> None:
    made = dataset_input(dataset, 64 * "a", context="training").dataset
    resolved = mlflow.data.get_source(made)
    assert {"type": resolved._get_source_type(), "uri": resolved.to_dict()["uri"]} == source
    assert (made.name, made.digest, json.loads(made.profile)) == ("mine", 36 * "a", {"sha256": 64 * "a"})


def test_setting_tags_are_what_differs_from_the_variant() -> None:
    config = variant_config("dropout", {"dropout": 0.5, "hidden_sizes": (9, 8, 7), "model": "mlp"})
    assert setting_tags(config) == {
        "setting": "dropout, hidden sizes 9,8,7, dropout 0.5",
        "setting.dropout": "0.5", "setting.hidden_sizes": "[9, 8, 7]",
    }  # fmt: skip
    assert setting_tags(variant_config("cnn")) == {"setting": "cnn"}


def test_a_network_is_exported_with_the_streams_as_they_are(tmp_path: Path) -> None:
    train_without_ray(str(tmp_path), "smoke", seeds="1", dataset="digits", epochs=1)
    name = min(path.name for path in (tmp_path / "runs").iterdir())
    checkpoint = RunFolder(open_storage(str(tmp_path)), name).best()
    during: list[object] = []

    def serialize(_: Checkpoint) -> bytes:
        during.extend([sys.stdout, sys.stderr])
        return b""

    # Swapping them in a tracker's thread loses what other threads print, or all that is printed later.
    _serialized(checkpoint, serialize, "--log mlflow")
    assert during == [sys.stdout, sys.stderr]


def test_a_run_that_gets_more_epochs_is_a_new_one_that_ends_with_them(tmp_path: Path) -> None:
    train(tmp_path)
    train(tmp_path, "--epochs", "2")
    shorter, longer = sorted(runs_in(client_of(tmp_path), "mnist-ray"), key=lambda run: run.info.start_time)
    assert [run.info.status for run in (shorter, longer)] == ["FINISHED", "FINISHED"]
    assert [run.data.params["epochs"] for run in (shorter, longer)] == ["1", "2"]
    history = client_of(tmp_path).get_metric_history(longer.info.run_id, "val_loss")
    assert [metric.step for metric in history] == [1, 2]
