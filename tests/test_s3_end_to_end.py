"""Training and evaluating with all results in a real S3 server process."""

import json

import pyarrow.parquet as pq
import pytest
from grid_runs import train_without_ray

from mnist_ray.cli import run_command
from mnist_ray.storage import open_storage

pytestmark = pytest.mark.s3


def test_a_run_is_trained_resumed_evaluated_and_listed_on_s3(s3_uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    storage = ["--storage", s3_uri]
    train = ["train", "--dataset", "digits", "--epochs", "2", "--name", "a", *storage]
    assert run_command(train) == 0
    assert run_command([*train, "--seed", "1"]) == 6
    capsys.readouterr()
    evaluate = [
        "evaluate",
        "--run",
        "a",
        "--dataset",
        "digits",
        "--shard-size",
        "200",
        "--no-report",
        *storage,
        "--json",
    ]
    assert run_command(evaluate) == 0
    first = json.loads(capsys.readouterr().out)
    assert run_command(evaluate) == 0
    assert json.loads(capsys.readouterr().out) == {**first, "already_done": True}

    folder = f"evaluations/{first['evaluation']}"
    opened = open_storage(s3_uri)
    names = [uri.rsplit("/", 1)[1] for uri in opened.committed_files(folder, "predictions")]
    assert len(names) == 2
    rows = [row for name in names for row in pq.read_table(opened.open_input(f"{folder}/{name}")).to_pylist()]
    assert [row["example_index"] for row in rows] == list(range(355))
    assert sum(row["correct"] for row in rows) / 355 == first["metrics"][0]["accuracy"]

    assert run_command(["runs", *storage, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["status"] == "finished"
    assert run_command(["evaluations", *storage, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["runs"] == 1


def test_a_grid_is_trained_evaluated_and_reported_on_s3(s3_uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    train_without_ray(s3_uri, "smoke", seeds="2", epochs=1)
    storage = ["--storage", s3_uri]
    assert run_command(["tune", "--grid", "smoke", "--seeds", "2", "--epochs", "1", "--name", "g", *storage]) == 0
    assert "8 runs, all were done already" in capsys.readouterr().out
    assert run_command(["evaluate", "--grid", "g", "--dataset", "digits", *storage, "--json"]) == 0
    evaluation = json.loads(capsys.readouterr().out)["evaluation"]
    for command in ("report", "compare"):
        assert run_command([command, evaluation, *storage]) == 0
    shown = capsys.readouterr().out
    assert "dropout=0.3 x batch_norm=true" in shown
    opened = open_storage(s3_uri)
    for name in ("effects", "comparisons"):
        assert pq.read_table(opened.open_input(f"reports/{evaluation}/{name}.parquet")).num_rows > 0


def test_a_bucket_that_is_not_there_ends_with_4_and_one_line(s3_uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["train", "--dataset", "digits", "--storage", "s3://no-such-bucket-here/x"]) == 4
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "no-such-bucket-here" in captured.err
