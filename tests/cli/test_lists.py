"""The lists of runs, grids and evaluations, as a person and a script read them."""

import json
import re
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.cli.lists import with_short_datasets
from mnist_ray.cli.main import run_command
from mnist_ray.results.evaluation_folder import open_evaluation
from mnist_ray.results.listing import Selection
from mnist_ray.results.run_documents import read_run_document, with_checksum
from mnist_ray.storage.storage import Storage, open_storage
from tests.support.faulty_proxy import faulty_proxy
from tests.support.grid_runs import train_without_ray
from tests.support.s3_fixtures import S3Server

OLD = Path(__file__).parents[1] / "storages/version-2.tar.xz"
LISTS = ("runs", "grids", "evaluations")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of an older version and a grid of theirs, and a grid s of 4 settings x 2 seeds by this one."""
    folder = tmp_path_factory.mktemp("storage")
    with tarfile.open(OLD) as archive:
        archive.extractall(folder, filter="data")
    (folder / "grids/g").rename(folder / "grids/old")
    for name in ("grid.json", "runs.parquet"):
        content = (folder / "grids/old" / name).read_bytes()
        (folder / "grids/old" / name).write_bytes(content.replace(b'"grid": "g"', b'"grid": "old"'))
    train_without_ray(str(folder), "smoke", seeds="2", epochs=2)
    return folder


@pytest.fixture
def storage(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    shutil.copytree(trained, tmp_path / "storage")
    return tmp_path / "storage"


def listed(storage: Path | str, *arguments: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert run_command([*arguments, "--storage", str(storage), "--json"]) == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return rows


def printed(storage: Path | str, *arguments: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    assert run_command([*arguments, "--storage", str(storage)]) == 0
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def bytes_in(*folders: Path) -> int:
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def test_json_has_everything_of_a_run(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = listed(trained, "runs", "--where", "grid=g", capsys=capsys)
    assert len(rows) == 8
    for row in rows:
        assert row["bytes"] == bytes_in(trained / "runs" / row["run"])
        assert row["uri"] == f"{trained}/runs/{row['run']}"
        assert row["begun_at"] < row["trained_at"] == row["date"]
        assert row["date"].endswith("+00:00")
        assert (row["status"], row["epochs_done"], row["epochs"]) == ("finished", 2, 2)
    assert [row["date"] for row in rows] == sorted(row["date"] for row in rows)
    assert {(row["dropout"], row["batch_norm"], row["seed"]) for row in rows} == {
        (dropout, batch_norm, seed) for dropout in (0.0, 0.3) for batch_norm in (False, True) for seed in (0, 1)
    }


def test_runs_shows_the_settings_that_vary_and_once_what_all_share(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed(trained, "runs", "--where", "grid=g", "--where", "seed=0", capsys=capsys)
    assert lines[0].startswith("all: baseline, train dataset digits")
    assert "epochs 2" in lines[0]
    names = lines[2].split()
    assert names == ["run", "status", "date", "time", "size", "setting", "val", "accuracy"]
    assert sum("dropout 0.3, no bn" in line or "no bn, dropout 0.3" in line for line in lines) == 1
    assert all("baseline" not in line and "seed" not in line for line in lines[1:])
    # Among both seeds, the seed varies too.
    assert "seed" in "".join(printed(trained, "runs", "--where", "grid=g", capsys=capsys))
    # Runs of one setting share all of it.
    alike = ["--where", "grid=g", "--where", "dropout=0.3", "--where", "batch_norm=no"]
    lines = printed(trained, "runs", *alike, capsys=capsys)
    assert "dropout 0.3" in lines[0]
    assert "setting" not in lines[2]


def test_dates_of_an_older_version_are_unknown_and_come_first(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = listed(trained, "runs", capsys=capsys)
    assert [row["date"] is None for row in rows] == [True] * 6 + [False] * 8
    assert len(listed(trained, "runs", "--since", "2026-01-01", capsys=capsys)) == 8
    assert listed(trained, "runs", "--since", "2999-01-01", capsys=capsys) == []
    (line,) = printed(trained, "runs", "--since", "2999-01-01", capsys=capsys)
    assert line == "nothing in this list matches"


def test_a_list_is_sorted_by_a_column_or_its_heading_and_cut(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = listed(trained, "runs", "--sort", "val accuracy", "--last", "1", capsys=capsys)
    every = listed(trained, "runs", capsys=capsys)
    assert best[0]["best_val_accuracy"] == max(row["best_val_accuracy"] for row in every)
    largest = listed(trained, "runs", "--sort", "size", "--reverse", capsys=capsys)[0]
    assert largest["bytes"] == max(row["bytes"] for row in every)


@pytest.mark.parametrize("command", LISTS)
@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--where", "nope=1"], "--where 'nope': not in this list"),
        (["--where", "dropout"], "--where 'dropout': write it as NAME=VALUE"),
        (["--sort", "nope"], "--sort 'nope': not in this list"),
        (["--since", "yesterday"], "'yesterday' is no date; write it as 2026-11-30 or '2026-11-30 14:05'"),
        (["--since", "2026-13-01"], "'2026-13-01' is no date"),
        (["--last", "0"], "x>=1"),
    ],
)
def test_a_wrong_selection_is_one_line_and_exit_code_2(
    trained: Path, command: str, arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command([command, *arguments, "--storage", str(trained)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert part in line


@pytest.mark.parametrize("command", LISTS)
def test_no_line_is_longer_than_100_columns_and_no_name_is_broken(
    storage: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The storage's own path is long.
    monkeypatch.chdir(storage)
    row = listed(storage, command, capsys=capsys)[-1]
    kind = command.removesuffix("s")
    # As long as a name can be.
    for length in (len(row[kind]), 40, 64):
        name = row[kind].ljust(length, "x")
        if kind == "evaluation":
            (storage / "evaluations" / row[kind]).rename(storage / "evaluations" / name)
        elif kind == "grid":
            document = json.loads((storage / "grids" / row[kind] / "grid.json").read_text())
            (storage / "grids" / row[kind]).rename(storage / "grids" / name)
            (storage / "grids" / name / "grid.json").write_text(json.dumps({**document, "grid": name}))
        else:
            (storage / "runs" / name).mkdir(exist_ok=True)
            (storage / "runs" / name / "config.json").write_bytes(b"{")
        row = {kind: name}
        lines = printed(".", command, capsys=capsys)
        assert max(map(len, lines)) <= 100
        assert sum(name in line.split() for line in lines) == 1


# The storage's own path is long; so are these names.
_LONG_RUN = "dropout_batchnorm-photos-of-my-garden-wd1e-4-smoothing0.1-lr3e-4"


def copied_run(storage: Path, run: str, name: str, **settings: Any) -> None:
    """Leaves an unfinished run with some settings of another."""
    document = read_run_document(open_storage(str(storage)), run)
    config = {**document["config"], **settings}
    content = with_checksum({**document, "run": name, "config": config})
    (storage / "runs" / name).mkdir()
    (storage / "runs" / name / "config.json").write_bytes(content)


def test_a_list_of_long_names_keeps_names_dates_and_accuracies(
    storage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(storage)
    run = listed(".", "runs", "--where", "grid=g", capsys=capsys)[0]["run"]
    copied_run(storage, run, _LONG_RUN, dropout=0.5, label_smoothing=0.1, dataset="folder:/tmp/x/photos-of-my-garden")
    lines = printed(".", "runs", capsys=capsys)
    assert max(map(len, lines)) <= 100
    assert sum(_LONG_RUN in line.split() for line in lines) == 1
    for row in listed(".", "runs", capsys=capsys):
        (line,) = (line.split() for line in lines if row["run"] in line.split())
        if row["date"]:
            assert row["date"][:10] in line
        if row["best_val_accuracy"] is not None:
            assert f"{row['best_val_accuracy']:.4f}" == line[-1]
    (said,) = (line for line in lines if line.startswith("without "))
    assert said == "without time, size, seed, setting, for which there is no room"
    # The status is more than usual, as not all runs are finished.
    assert any(line.split()[:4] == [_LONG_RUN, "0/2", "epochs", row["date"][:10]] for line in lines)


def test_a_long_setting_is_cut_before_it_gives_way(
    storage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(storage)
    rows = listed(".", "runs", "--where", "grid=g", capsys=capsys)
    settings = {"label_smoothing": 0.12345, "weight_decay": 0.00012345, "learning_rate": 0.00012345}
    copied_run(storage, rows[0]["run"], "x" * 50, **settings)
    lines = printed(".", "runs", "--where", "dataset=digits", "--where", "status=unfinished", capsys=capsys)
    (line,) = (line for line in lines if "x" * 50 in line)
    assert "setting" not in line
    lines = printed(".", "runs", capsys=capsys)
    assert max(map(len, lines)) <= 100
    (line,) = (line for line in lines if "x" * 50 in line)
    assert re.search(r" wd 0\.00012345, lr|baseline, .*…", line)


def test_the_runs_of_a_grid_show_what_varies_within_it(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = printed(trained, "runs", "--where", "grid=g", capsys=capsys)
    together = printed(trained, "runs", capsys=capsys)
    for row in listed(trained, "runs", "--where", "grid=g", capsys=capsys):
        words = [{*next(line for line in lines if row["run"] in line.split()).split()} for lines in (alone, together)]
        assert {*words[0]} <= {*words[1]}


def test_a_data_set_of_ones_own_is_called_by_its_last_part(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (name, _) = sorted(path.name for path in (storage / "evaluations").iterdir())
    path = storage / "evaluations" / name / "_manifest.json"
    manifest = json.loads(path.read_text())

    def datasets(place: str) -> set[str]:
        manifest["config"]["dataset"] = f"folder:{place}"
        path.write_text(json.dumps(manifest))
        assert manifest["config"]["dataset"] in {
            row["dataset"] for row in listed(storage, "evaluations", capsys=capsys)
        }
        lines = printed(storage, "evaluations", "--where", f"evaluation={name}", capsys=capsys)
        return {word for line in lines for word in line.split()}

    assert "photos" in datasets("/tmp/h3/photos")
    assert "/tmp/h3/photos" not in "".join(datasets("/tmp/h3/photos"))


def test_two_data_sets_of_one_name_are_told_apart() -> None:
    rows = [{"dataset": name} for name in ("mnist", "folder:/a/photos", "folder:/b/photos", "folder:/c/other")] + [{}]
    short = with_short_datasets(rows, "dataset")
    assert short == [{"dataset": name} for name in ("mnist", "folder:/a/photos", "folder:/b/photos", "other")] + [{}]


def test_a_grid_counts_what_is_there_now(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = listed(storage, "grids", "--where", "grid=g", capsys=capsys)[0]
    assert (before["status"], before["num_finished"], before["num_missing"]) == ("finished", 8, 0)
    runs = [storage / "runs" / run for run in before["runs"]]
    assert before["bytes"] == bytes_in(storage / "grids/g", *runs)
    shutil.rmtree(storage / "runs" / before["best_run"])
    kept = [run for run in before["runs"] if run != before["best_run"]]
    (storage / "runs" / kept[0] / "config.json").write_bytes(b"{")
    after = listed(storage, "grids", "--where", "grid=g", capsys=capsys)[0]
    counts = [after[f"num_{kind}"] for kind in ("runs", "finished", "missing", "damaged", "unfinished")]
    assert (after["status"], counts) == ("unfinished", [8, 6, 1, 1, 0])
    assert after["best_run"] in kept[1:]
    shown = "\n".join(printed(storage, "grids", capsys=capsys))
    # Folded between words, wherever the other columns leave room.
    assert re.search(r"6 finished, 1\b.*\bmissing, 1\b.*\bdamaged", shown, re.DOTALL)


def test_the_best_setting_of_a_grid_is_said_in_words(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grid = listed(trained, "grids", "--where", "grid=g", capsys=capsys)[0]
    runs = listed(trained, "runs", "--where", "grid=g", capsys=capsys)
    means: dict[str, list[float]] = {}
    for row in runs:
        bn = "bn" if row["batch_norm"] else "no bn"
        words = f"{bn}, dropout {row['dropout']:g}" if row["batch_norm"] else f"dropout {row['dropout']:g}, {bn}"
        means.setdefault(words, []).append(row["best_val_accuracy"])
    best = max(means, key=lambda words: sum(means[words]))
    assert (grid["best_setting"], grid["best_val_accuracy_mean"]) == (best, sum(means[best]) / 2)


def test_what_is_damaged_stays_listed(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (evaluation, _) = sorted(path.name for path in (storage / "evaluations").iterdir())
    open_evaluation(open_storage(str(storage)), evaluation)
    damaged = {"runs": "runs/dropout/config.json", "grids": "grids/old/grid.json"}
    damaged["evaluations"] = (
        next((storage / "evaluations" / evaluation).glob("metrics*")).relative_to(storage).as_posix()
    )
    for command, path in damaged.items():
        (storage / path).write_bytes(b"[")
        rows = listed(storage, command, "--where", "status=damaged", capsys=capsys)
        assert [row[command.removesuffix("s")] for row in rows] == [path.split("/")[1]]
        assert rows[0]["reason"]
        assert rows[0]["bytes"] > 0
        shown = " ".join(printed(storage, command, capsys=capsys))
        assert ("grid.json is damaged" if command == "grids" else "damaged") in shown


def test_an_evaluation_has_its_data_runs_and_range_of_accuracies(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for row in listed(trained, "evaluations", capsys=capsys):
        metrics = open_evaluation(open_storage(str(trained)), row["evaluation"]).rows("metrics")
        accuracies = [line["accuracy"] for line in metrics]
        assert (row["accuracy_min"], row["accuracy_max"]) == (min(accuracies), max(accuracies))
        assert row["runs"] == [line["run"] for line in metrics]
        assert (row["dataset"], row["split"], row["status"], row["date"]) == ("digits", "test", "committed", None)
        assert row["bytes"] == bytes_in(trained / "evaluations" / row["evaluation"])
        ends = f"{min(accuracies):.4f} to {max(accuracies):.4f}"
        assert any(ends in line for line in printed(trained, "evaluations", capsys=capsys))


def copied(source: Path, target: Storage) -> None:
    for path in source.rglob("*"):
        name = path.relative_to(source).as_posix()
        if path.is_file() and not name.startswith("."):
            target.write_bytes(name, path.read_bytes())


@pytest.mark.s3
def test_a_list_on_s3_asks_for_no_object_to_know_its_size(
    trained: Path, s3_server: S3Server, s3_uri: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copied(trained, open_storage(s3_uri))
    asked: list[str] = []
    with faulty_proxy(s3_server.endpoint, lambda line, _: asked.append(line)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        for command, folders, documents in (
            # A finished run has two documents, a grid one.
            ("runs", 2, 14 * 2 + 2),
            ("grids", 2, 14 * 2 + 2),
            # The manifest, and the table metrics with the manifest to check it.
            ("evaluations", 1, 2 * 3),
        ):
            asked.clear()
            there = listed(s3_uri, command, capsys=capsys)
            lists = [line for line in asked if "list-type=2" in line]
            gets = [line for line in asked if line.startswith("GET") and line not in lists]
            assert (len(lists), len(gets)) == (folders, documents)
            # The client looks the bucket up when it is made.
            assert not [line for line in asked if line.startswith("HEAD") and line.count("/") > 1]
            here = listed(trained, command, capsys=capsys)
            sizes = {row[command.removesuffix("s")]: row["bytes"] for row in here}
            assert {row[command.removesuffix("s")]: row["bytes"] for row in there} == sizes


@pytest.mark.parametrize("uri", ["folder:/data/photos", "folder:s3://bucket/data/photos/", "parquet:/data/photos"])
@pytest.mark.parametrize("column", ["train_dataset", "dataset"])
def test_a_data_set_is_found_as_the_list_shows_it_and_by_its_uri(column: str, uri: str) -> None:
    rows = [{"date": None, column: name} for name in (uri, "digits", "folder:/data/other", None)]
    for text in ("photos", uri):
        assert Selection(where=((column, text),)).of(rows, aliases={}) == rows[:1]
