"""Evaluations in TensorBoard and MLflow, read back with their own readers."""

import contextlib
import getpass
import io
import json
import shutil
import socket
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mnist_ray.cli.main import run_command
from mnist_ray.results.code_version import git_commit
from mnist_ray.results.evaluation_folder import EvaluationFolder, open_evaluation
from mnist_ray.results.lineage import command_line
from mnist_ray.storage.storage import open_storage
from mnist_ray.tracking.logged import read_records, recorded_uri
from mnist_ray.tracking.seen_run import RATES
from mnist_ray.tracking.trackers import track
from tests.support.doing_lines import without_doing
from tests.support.grid_runs import train_without_ray
from tests.support.tracked import client_of, hparams_page, runs_in

BOTH = ["--log", "tensorboard", "--log", "mlflow"]


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with run a, of eight epochs whose best is not the last, logged to both trackers."""
    root = tmp_path_factory.mktemp("trained")
    # So few steps at so small a rate that every processor rounds its way to the same epoch.
    settings = ["--dataset", "digits", "--epochs", "8", "--hidden-sizes", "64", "--train-limit", "200"]
    settings += ["--learning-rate", "0.01"]
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        assert run_command(["train", *settings, "--storage", str(root), "--name", "a", *BOTH]) == 0
    return root


@pytest.fixture
def storage(trained: Path, tmp_path: Path) -> Path:
    """The storage as it was after training, in a place of its own, with MLflow's absolute paths changed to it."""
    root = tmp_path / "s"
    shutil.copytree(trained, root)
    with contextlib.closing(sqlite3.connect(root / "mlflow/mlflow.db")) as database, database:
        for table, column in (
            ("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location"),
        ):  # fmt: skip
            database.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (str(trained), str(root)))
    # MLflow remembers the places of a process's runs.
    _artifact_repos_cache.clear()
    return root


def evaluate(root: Path, *more: str, run: str = "a") -> EvaluationFolder:
    before = set(root.glob("evaluations/*"))
    assert run_command(["evaluate", "--run", run, "--storage", str(root), *more]) == 0
    found = (set(root.glob("evaluations/*")) - before) or before
    (name,) = (path.name for path in found)
    return open_evaluation(open_storage(str(root)), name)


def lines_told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    lines = without_doing(capsys.readouterr().err).splitlines()
    return [line for line in lines if not line.startswith("dataset ")]


def run_a(root: Path) -> tuple[MlflowClient, Run]:
    client = client_of(root)
    (run,) = runs_in(client, "mnist-ray")
    return client, run


def files_in(client: MlflowClient, run: Run, folder: str) -> list[str]:
    return [file.path.rpartition("/")[2] for file in client.list_artifacts(run.info.run_id, folder)]


def test_an_evaluation_reaches_both_trackers_once(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = json.loads((storage / "runs/a/best/checkpoint.json").read_text())["metrics"]
    assert best["epoch"] < 8
    (before,) = hparams_page(storage / "tensorboard").values()
    assert before["best_val_accuracy"] == pytest.approx(best["val_accuracy"])
    assert (before["best_epoch"], before["evaluation"]) == (best["epoch"], "")
    assert "test_accuracy" not in before

    folder = evaluate(storage)
    page = str(storage / f"reports/{folder.name}/report.html")
    (row,) = folder.rows("metrics")
    for _ in range(2):
        client, run = run_a(storage)
        assert {name: run.data.metrics[f"test_{name}"] for name in RATES} == {name: row[name] for name in RATES}
        figures = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
        assert [run.data.metrics[f"best_{name}"] for name in figures] == [best[name] for name in figures]
        (point,) = client.get_metric_history(run.info.run_id, "test_accuracy")
        assert point.step == best["epoch"]
        tags = {name: run.data.tags[name] for name in ("evaluation", "report", f"evaluation.{folder.name}")}
        assert list(tags.values()) == [folder.name, page, page]
        assert files_in(client, run, f"evaluation/{folder.name}") == ["confusion.png", "report.html"]
        given = {inputs.tags[0].value: inputs.dataset for inputs in run.inputs.dataset_inputs}
        assert {context: (data.name, data.digest) for context, data in given.items()} == {
            "training": ("digits", run.data.tags["data_sha256"][:36]),
            "test": ("digits", folder.manifest["data_sha256"][:36]),
        }
        assert len(run.inputs.dataset_inputs) == 2
        (model,) = client.search_logged_models([run.info.experiment_id], "metrics.test_accuracy > 0")
        assert model.source_run_id == run.info.run_id

        (shown,) = hparams_page(storage / "tensorboard").values()
        assert {name: shown[f"test_{name}"] for name in RATES} == pytest.approx({name: row[name] for name in RATES})
        assert (shown["evaluation"], shown["report"]) == (folder.name, page)
        assert shown["best_val_loss"] == pytest.approx(best["val_loss"])
        events = EventAccumulator(str(storage / "tensorboard/a")).Reload()
        assert [(event.step, event.value) for event in events.Scalars("test_accuracy")] == [
            (best["epoch"], pytest.approx(row["accuracy"]))
        ]
        assert evaluate(storage).name == folder.name
    assert "without it" not in capsys.readouterr().err


def test_an_analyst_finds_a_run_by_what_it_is_and_where_it_comes_from(storage: Path) -> None:
    folder = evaluate(storage, "--no-report")
    client, run = run_a(storage)
    for query in (
        "metrics.test_accuracy > 0.2 AND params.variant = 'baseline'",
        f"tags.evaluation = '{folder.name}'",
        "tags.`setting.learning_rate` = '0.01'",
        "tags.mlflow.source.type = 'LOCAL'",
        "dataset.name = 'digits' AND dataset.context = 'training'",
    ):
        assert [found.info.run_id for found in runs_in(client, "mnist-ray", query)] == [run.info.run_id], query
    assert sorted(name for name in run.data.tags if name.startswith("setting.")) == [
        f"setting.{name}" for name in ("dataset", "epochs", "hidden_sizes", "learning_rate", "train_limit")
    ]
    origin = {name: run.data.tags.get(f"mlflow.{name}") for name in ("user", "source.name", "source.git.commit")}
    assert origin == {"user": getpass.getuser(), "source.name": command_line(), "source.git.commit": git_commit()}


def test_pictures_are_of_a_sensible_size_and_hold_the_counts(storage: Path) -> None:
    folder = evaluate(storage)
    events = EventAccumulator(str(storage / "tensorboard/a")).Reload()
    sizes = {}
    for name in events.Tags()["images"]:
        (picture,) = events.Images(name)
        image = Image.open(io.BytesIO(picture.encoded_image_string))
        assert image.size == (picture.width, picture.height)
        sizes[name] = image.size
    # 24 images of 28x28 in rows of 8, each with a border of one pixel, twice as large.
    assert sizes == {"samples": (480, 180), "confusion": (460, 360)}
    client, run = run_a(storage)
    copied = client.download_artifacts(run.info.run_id, f"evaluation/{folder.name}/confusion.png")
    # Without the names at the left; cells of 36 pixels.
    cells = np.asarray(Image.open(copied).convert("RGB"))[:, 100:].reshape(10, 36, 10, 36, 3)
    counts = np.zeros((10, 10), dtype=int)
    for row in folder.rows("confusion"):
        counts[row["label"], row["predicted_label"]] = row["count"]
    assert ((cells[:, 4, :, 4] != 255).any(axis=2) == (counts > 0)).all()
    # The ink of a number, even of a thin one with smoothed edges, is far darker than any cell.
    assert ((cells.max(axis=4).min(axis=(1, 3)) < 128) == (counts > 0)).all()


def test_a_page_that_is_written_later_is_added_without_doubling(storage: Path) -> None:
    folder = evaluate(storage, "--no-report")
    client, run = run_a(storage)
    assert "report" not in run.data.tags
    assert run_command(["report", folder.name, "--storage", str(storage)]) == 0
    client, run = run_a(storage)
    page = str(storage / f"reports/{folder.name}/report.html")
    assert run.data.tags["report"] == run.data.tags[f"evaluation.{folder.name}"] == page
    assert files_in(client, run, f"evaluation/{folder.name}") == ["confusion.png", "report.html"]
    assert len(client.get_metric_history(run.info.run_id, "test_accuracy")) == 1
    (shown,) = hparams_page(storage / "tensorboard").values()
    assert shown["report"] == page


def test_other_data_has_names_of_its_own_and_the_newest_evaluation_of_the_test_split_counts(storage: Path) -> None:
    first = evaluate(storage, "--no-report")
    other = evaluate(storage, "--split", "train", "--no-report")
    second = evaluate(storage, "--batch-size", "7", "--no-report")
    assert evaluate_again(storage, first) == second.name
    _, run = run_a(storage)
    (row,) = other.rows("metrics")
    assert run.data.metrics[f"{other.name}/accuracy"] == row["accuracy"]
    assert run.data.metrics["train_accuracy"] != row["accuracy"]
    assert {f"evaluation.{folder.name}" for folder in (first, other, second)} <= run.data.tags.keys()
    events = EventAccumulator(str(storage / "tensorboard/a")).Reload()
    assert events.Scalars(f"{other.name}/accuracy")[0].value == pytest.approx(row["accuracy"])
    (shown,) = hparams_page(storage / "tensorboard").values()
    assert shown["evaluation"] == second.name


def evaluate_again(root: Path, folder: EvaluationFolder) -> str:
    """Evaluates the test split again as at first; returns the evaluation that MLflow then names."""
    assert run_command(["evaluate", "--run", "a", "--storage", str(root), "--no-report"]) == 0
    assert folder.name in {path.name for path in root.glob("evaluations/*")}
    return str(run_a(root)[1].data.tags["evaluation"])


@pytest.mark.parametrize("gone", ["the store", "the server", "the password"])
def test_a_tracker_that_is_gone_costs_one_line_and_the_same_command_logs_it(
    storage: Path, gone: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    record, mlflow = storage / "runs/a/logged/mlflow.json", storage / "mlflow"
    kept = record.read_text()
    with socket.socket() as taken:
        # Bound and not listening: nobody else answers there.
        taken.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        uri = {"the store": None, "the server": f"http://{place}", "the password": f"http://***@{place}"}[gone]
        record.write_text(json.dumps({**json.loads(kept), "tracking_uri": uri}))
        if gone == "the store":
            mlflow.rename(storage / "away")
        folder = evaluate(storage)
        if gone == "the password":
            monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@{place}")
            assert evaluate(storage).name == folder.name
    told = lines_told(capsys)
    begin = (
        f"mnist-ray: mlflow: evaluation {folder.name} is committed without it, the same command logs what is missing: "
    )
    assert all(line.startswith(begin) for line in told)
    assert len(told) == (2 if gone == "the password" else 1)
    reason = {"the store": "mlflow.db is gone", "the server": "HTTP", "the password": f"to http://***@{place}, as"}[
        gone
    ]
    assert reason in told[0]
    assert not any("secret" in line for line in told)
    (shown,) = hparams_page(storage / "tensorboard").values()
    assert shown["evaluation"] == folder.name

    record.write_text(kept)
    if gone == "the store":
        assert not mlflow.exists()
        (storage / "away").rename(mlflow)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert evaluate(storage).name == folder.name
    assert run_a(storage)[1].data.tags["evaluation"] == folder.name


def test_a_damaged_record_costs_one_line(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = storage / "runs/a/logged/mlflow.json"
    record.write_text(record.read_text()[:20])
    evaluate(storage)
    (told,) = lines_told(capsys)
    assert told.startswith("mnist-ray: trackers: evaluation a-on-digits-test-")
    assert told.endswith(f"logs what is missing: {record} is damaged; delete it")


def test_what_somebody_deleted_from_a_tracker_stays_deleted(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    client, run = run_a(storage)
    client.delete_run(run.info.run_id)
    shutil.rmtree(storage / "tensorboard/a")
    evaluate(storage)
    assert runs_in(client, "mnist-ray") == []
    assert not (storage / "tensorboard/a").exists()
    assert "without it" not in capsys.readouterr().err


def test_an_evaluation_of_a_grid_is_at_each_run_and_its_page_at_the_grids(tmp_path: Path) -> None:
    uri = str(tmp_path)
    train_without_ray(uri, "smoke", seeds="1", dataset="digits", epochs=1)
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    with track(["mlflow", "tensorboard"], open_storage(uri), grid="g") as tracking:
        tracking.update(names)
    # One run is unlogged: it has no record.
    shutil.rmtree(tmp_path / f"runs/{names[0]}/logged")
    assert run_command(["evaluate", "--grid", "g", "--storage", uri]) == 0
    (folder,) = (path.name for path in (tmp_path / "evaluations").iterdir())
    rows = {row["run"]: row for row in open_evaluation(open_storage(uri), folder).rows("metrics")}
    client = client_of(tmp_path)
    (parent,) = runs_in(client, "g", "tags.`mlflow.runName` = 'g'")
    children = {
        run.info.run_name: run for run in runs_in(client, "g", f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    }
    assert sorted(children) == names
    accuracies: dict[str, Any] = {name: run.data.metrics.get("test_accuracy") for name, run in children.items()}
    assert accuracies == {name: None if name == names[0] else rows[name]["accuracy"] for name in names}
    assert files_in(client, parent, f"evaluation/{folder}") == ["report.html"]
    assert files_in(client, children[names[1]], f"evaluation/{folder}") == ["confusion.png"]
    shown = hparams_page(tmp_path / "tensorboard")
    assert {name: row.get("test_accuracy") for name, row in shown.items()} == pytest.approx(accuracies)


def test_records_have_no_secrets_and_mean_the_same_in_every_folder(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(storage)
    assert [recorded_uri(uri) for uri in ("sqlite:///a.db", "sqlite:////tmp/a.db", "mlruns", "databricks")] == [
        f"sqlite:///{storage}/a.db", "sqlite:////tmp/a.db", f"{storage}/mlruns", "databricks",
    ]  # fmt: skip
    assert recorded_uri("https://me:secret@mlflow.example/path") == "https://***@mlflow.example/path"
    assert recorded_uri("postgresql://me:secret@host/mlflow?password=secret") == "postgresql://***@host/mlflow?***"
    _, run = run_a(storage)
    assert read_records(open_storage(str(storage)), "runs/a") == [
        {"tracker": "mlflow", "tracking_uri": None, "run_id": run.info.run_id},
        {"tracker": "tensorboard", "folder": "tensorboard/a"},
    ]
