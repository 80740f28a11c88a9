"""mnist-ray prune: what a storage can do without goes, and the results stay what they are; killed anywhere."""

import os
import shutil
from pathlib import Path

import boto3
import pytest

from mnist_ray.cli.main import run_command
from mnist_ray.results.inventory import grids_table
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.storage.storage import Storage, open_storage
from tests.care.conftest import Results
from tests.support.commits import DAY_S
from tests.support.doing_lines import without_doing
from tests.support.stored_results import killed_everywhere, listed_runs, put, train_run

NOTHING = [
    "checkpoints of finished runs, but the best: 0, 0 B",
    "files of killed writers (older than 24 h): 0, 0 B",
    "unfinished uploads (older than 24 h): 0, 0 B",
    "results half deleted, half copied or never committed (older than 24 h): 0, 0 B",
    "files in evaluations and predictions that no manifest names (older than 24 h): 0, 0 B",
]


def prune(storage: Storage, *arguments: str) -> int:
    return run_command(["prune", *arguments, "--storage", storage.uri])


def everything(storage: Storage) -> dict[str, int]:
    return {entry.path: entry.size for entry in [*storage.list_files(), *storage.list_files(".staging")]}


def test_the_checkpoints_of_finished_runs_go_but_the_best(
    storage: Storage, results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(storage)
    doomed = {path: size for path, size in before.items() if "/checkpoints/" in path}
    size = f"{sum(doomed.values()) / 1000:.0f} kB"
    assert prune(storage, "--dry-run") == 0
    said = [f"checkpoints of finished runs, but the best: 4, {size}", *NOTHING[1:], f"would free {size}"]
    assert capsys.readouterr().out.splitlines() == said
    assert everything(storage) == before
    assert prune(storage) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"freed {size}"
    assert everything(storage).keys() == before.keys() - doomed.keys()
    assert prune(storage) == 0
    assert capsys.readouterr().out.splitlines() == [*NOTHING, "freed 0 B"]


def test_a_pruned_storage_answers_as_before(
    folder: Storage, results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train_run(folder.uri, "alone")
    lists = listed_runs(folder), grids_table(folder)
    assert prune(folder) == 0
    assert folder.list_folders("runs/alone/checkpoints") == []
    assert (listed_runs(folder), grids_table(folder)) == lists
    settings = ["--dataset", "digits", "--hidden-sizes", "8", "--epochs", "2", "--no-batch-norm"]
    storage = ["--storage", folder.uri]
    capsys.readouterr()
    assert run_command(["train", "--name", "alone", *settings, *storage, "--json"]) == 0
    assert '"already_done": true' in capsys.readouterr().out
    assert run_command(["reproduce", "alone", *storage]) == 0
    assert "alone: equal, bit for bit" in capsys.readouterr().out
    assert run_command(["evaluate", "--run", "alone", "--dataset", "digits", "--no-report", *storage]) == 0
    output = str(tmp_path / "alone.safetensors")
    assert run_command(["export", "alone", "--to", "safetensors", "--output", output, *storage]) == 0
    assert run_command(["compare", results.evaluation, *storage]) == 0
    grid = ["--dropout", "0", "--no-batch-norm", "--hidden-sizes", "8", "--set", "optimizer=[sgd,adamw]"]
    assert run_command(["tune", "--grid", "smoke", "--seeds", "1", "--name", "g", *grid, *storage]) == 0
    assert folder.list_folders("runs") == ["alone", *results.runs]
    assert prune(folder) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "freed 0 B"


def test_a_run_keeps_the_checkpoints_that_it_may_need(
    folder: Storage, results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    unfinished, damaged = results.runs
    Path(folder.uri, f"runs/{unfinished}/best/checkpoint.json").unlink()
    Path(folder.uri, f"runs/{damaged}/best/model.safetensors").unlink()
    before = everything(folder)
    assert prune(folder) == 0
    captured = capsys.readouterr()
    assert everything(folder) == before
    assert captured.out.splitlines() == [*NOTHING, "freed 0 B"]
    assert f"{damaged}/best/model.safetensors: no such object; the run's checkpoints stay\n" in captured.err
    RunFolder(folder, damaged).mend()
    Path(folder.uri, f"runs/{damaged}/best/model.safetensors").write_bytes(b"other")
    assert prune(folder) == 0
    assert "SHA-256 differs from checkpoint.json; the run's checkpoints stay\n" in capsys.readouterr().err


def test_a_network_without_its_config_and_a_persons_folders_stay(
    folder: Storage, results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = results.runs
    assert prune(folder) == 0
    folder.delete(f"runs/{run}/config.json")
    for kind, name in (("runs", other), ("evaluations", results.evaluation), ("grids", "g")):
        shutil.move(Path(folder.uri, kind, name), Path(folder.uri, kind, "archive", name))
    before = everything(folder)
    capsys.readouterr()
    assert prune(folder, "--older-than", "0") == 0
    captured = capsys.readouterr()
    assert captured.out.endswith("freed 0 B\n")
    stays = "; it stays, until you remove it with `mnist-ray rm"
    assert sorted(without_doing(captured.err).splitlines()) == [
        f"evaluation 'archive': has no _manifest.json, but {results.evaluation}/_SUCCESS{stays} evaluation archive`",
        f"grid 'archive': has no grid.json, but g/grid.json{stays} grid archive`",
        f"run 'archive': has no config.json, but {other}/best/checkpoint.json{stays} run archive`",
        f"run {run!r}: has no config.json, but best/checkpoint.json{stays} run {run}`",
    ]
    assert everything(folder) == before


def leave_behind(storage: Storage, results: Results) -> set[str]:
    """Leaves what a killed writer of each kind does; returns the paths."""
    before = set(everything(storage))
    storage.pending_folder("predictions/q").write("image_errors/part-0.parquet", b"12345")
    storage.write_bytes("evaluations/never/metrics/part-0-0123456789ab.parquet", b"1234567")
    storage.write_bytes("runs/half/best/model.safetensors", b"12345678")
    storage.write_bytes(f"evaluations/{results.evaluation}/metrics/part-0-0123456789ab.parquet", b"123456789")
    storage.write_bytes("predictions/p/part-0123456789ab", b"1")
    left = set(everything(storage)) - before
    # Nobody's work.
    storage.write_bytes(f"evaluations/{results.evaluation}/notes.txt", b"mine")
    storage.write_bytes("tensorboard/a/events", b"1")
    return left


def test_what_killed_writers_left_goes_when_it_is_old(
    storage: Storage, results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prune(storage) == 0
    left = leave_behind(storage, results)
    before = everything(storage)
    capsys.readouterr()
    assert prune(storage) == 0
    assert capsys.readouterr().out.splitlines() == [*NOTHING, "freed 0 B"]
    assert everything(storage) == before
    age = ["--older-than", "0"]
    if storage.is_local:
        age, old = [], storage.now() - DAY_S - 60
        for path in (*left, *{str(Path(path).parent) for path in left if path.startswith(".staging")}):
            os.utime(Path(storage.uri, path), (old, old))
        for staged in Path(storage.uri, ".staging").iterdir():
            os.utime(staged, (old, old))
    hours = "0" if age else "24"
    said = [
        NOTHING[0],
        f"files of killed writers (older than {hours} h): 1, 5 B",
        f"unfinished uploads (older than {hours} h): 0, 0 B",
        f"results half deleted, half copied or never committed (older than {hours} h): 2, 15 B",
        f"files in evaluations and predictions that no manifest names (older than {hours} h): 2, 10 B",
    ]
    assert prune(storage, "--dry-run", *age) == 0
    assert capsys.readouterr().out.splitlines() == [*said, "would free 30 B"]
    assert everything(storage) == before
    assert prune(storage, *age) == 0
    assert capsys.readouterr().out.splitlines() == [*said, "freed 30 B"]
    assert everything(storage).keys() == before.keys() - left


@pytest.mark.s3
def test_unfinished_uploads_go(s3_uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    bucket, _, prefix = s3_uri.removeprefix("s3://").partition("/")
    client = boto3.Session().client("s3")
    place = {"Bucket": bucket, "Key": f"{prefix}/predictions/p/part"}
    upload = client.create_multipart_upload(**place)["UploadId"]
    client.upload_part(**place, UploadId=upload, PartNumber=1, Body=bytes(1500))
    assert prune(open_storage(s3_uri)) == 0
    assert capsys.readouterr().out.splitlines()[2] == "unfinished uploads (older than 24 h): 1, 1.5 kB"
    assert "Uploads" not in client.list_multipart_uploads(Bucket=bucket)


def test_a_mistyped_storage_is_not_made(tmp_path: Path) -> None:
    assert prune(open_storage(str(tmp_path / "rseults"))) == 0
    assert not (tmp_path / "rseults").exists()


@pytest.mark.fault
@pytest.mark.parametrize(
    "uri", ["local", pytest.param("s3", marks=[pytest.mark.s3, pytest.mark.series])], indirect=True
)
def test_killed_anywhere_no_run_is_damaged_and_the_same_command_finishes(uri: str, results: Results) -> None:
    step, least_changes = (3, 12) if uri.startswith("s3://") else (1, 20)
    storages = [put(results.folder, f"{uri}/{n}") for n in range((least_changes + 20) // step)]
    rows = listed_runs(storages[0])
    killed, code = killed_everywhere([storage.uri for storage in storages], ["prune", "--storage", "URI"], step=step)
    assert code == 0
    assert killed * step >= least_changes
    done = everything(storages[killed])
    num_left = set()
    for storage in storages[:killed]:
        assert listed_runs(storage) == rows
        assert all(RunFolder(storage, run).best().history for run in results.runs)
        left = everything(storage)
        for path in left:
            if "/checkpoints/" in path and path.endswith("/checkpoint.json"):
                folder = path.removesuffix("checkpoint.json")
                assert {f"{folder}model.safetensors", f"{folder}optimizer.safetensors"} <= left.keys()
        num_left.add(len(left))
        assert prune(storage) == 0
        # A question for the storage's time, killed, may leave an empty object for a day.
        assert {path: size for path, size in everything(storage).items() if size or path in done} == done
    assert any(len(done) < num < max(num_left) for num in num_left)
