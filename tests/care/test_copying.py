"""mnist-ray cp: from disk to disk and S3 and back, verified, resumed, never half there; killed anywhere."""

import json
import shutil
from pathlib import Path

import pytest

from mnist_ray.cli.main import run_command
from mnist_ray.errors import StorageError
from mnist_ray.results.evaluation_folder import open_evaluation
from mnist_ray.results.inventory import grids_table, runs_table
from mnist_ray.results.listing import evaluation_rows
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.storage.storage import PendingFolder, Storage, open_storage
from tests.care.conftest import Results
from tests.support.doing_lines import without_doing
from tests.support.stored_results import killed_everywhere, listed_runs, train_run


@pytest.fixture
def target(uri: str) -> Storage:
    return open_storage(f"{uri}/copy")


def cp(source: Storage, target: Storage, *options: str) -> int:
    return run_command(["cp", source.uri, target.uri, *options])


def contents(storage: Storage) -> dict[str, bytes]:
    return {entry.path: storage.read_bytes(entry.path) for entry in storage.list_files()}


def without_place(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{name: value for name, value in row.items() if name not in ("uri", "bytes")} for row in rows]


def test_everything_is_copied_there_and_back(
    folder: Storage, target: Storage, results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(folder)
    assert cp(folder, target) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(
        f"2 runs, 1 grid, 1 evaluation, 1 prediction, 1 report in {target.uri}: 33 files sent ("
    )
    assert captured.err.count(" sent, ") == 6
    assert contents(folder) == before
    assert listed_runs(target) == listed_runs(folder)
    assert grids_table(target) == grids_table(folder)
    assert without_place(evaluation_rows(target)) == without_place(evaluation_rows(folder))
    here, there = (open_evaluation(storage, results.evaluation) for storage in (folder, target))
    assert there.files() == here.files()
    for table in here.files():
        assert there.table(table).equals(here.table(table))
    assert there.evaluated_at == here.evaluated_at
    is_hashed = "metrics/part-0.parquet" not in there.stored_paths("metrics")[0]
    assert is_hashed is not target.is_local
    assert target.read_committed("predictions/p", "image_predictions/part-00000.parquet") == b"PAR1"
    for run in results.runs:
        assert RunFolder(target, run).best().sha256 == RunFolder(folder, run).best().sha256

    back = open_storage(str(tmp_path / "back"))
    assert cp(target, back) == 0
    volatile = ("/_manifest.json", "/_SUCCESS")
    assert {path: data for path, data in contents(back).items() if not path.endswith(volatile)} == {
        path: data for path, data in before.items() if not path.endswith(volatile)
    }
    capsys.readouterr()
    assert cp(back, target) == 0
    captured = capsys.readouterr()
    assert captured.out.endswith(": 0 files sent (0 B)\n")
    assert captured.err.count("there already") == 6


def test_a_copied_evaluation_is_the_same_for_evaluate(
    folder: Storage, target: Storage, results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ["evaluate", "--grid", "g", "--dataset", "digits", "--json", "--no-report"]
    assert run_command([*grid, "--storage", folder.uri]) == 0
    assert json.loads(capsys.readouterr().out)["already_done"] is True
    assert cp(folder, target) == 0
    capsys.readouterr()
    assert run_command([*grid, "--storage", target.uri]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["evaluation"], again["already_done"]) == (results.evaluation, True)


def test_a_dry_run_compares_and_changes_nothing(
    folder: Storage, target: Storage, results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cp(folder, target, "--dry-run") == 0
    captured = capsys.readouterr()
    total = captured.out.partition(": ")[2]
    assert total.startswith("33 files to send (")
    assert captured.err.count(" to send, ") == 6
    assert [*target.list_files(), *target.list_files(".staging")] == []
    assert not target.is_local or not Path(target.uri).exists()
    assert cp(folder, target, "--grid", "g") == 0
    target.write_bytes(f"reports/{results.evaluation}/report.html", b"another")
    before = contents(target)
    capsys.readouterr()
    assert cp(folder, target, "--dry-run") == 6
    assert capsys.readouterr().err.count("there already") == 3
    assert contents(target) == before


def test_a_grid_takes_its_runs_along_and_an_evaluation_its_report(
    folder: Storage, results: Results, tmp_path: Path
) -> None:
    train_run(folder.uri, "alone")
    one, other, third = (open_storage(str(tmp_path / name)) for name in ("one", "other", "third"))
    assert cp(folder, one, "--grid", "g") == 0
    assert (one.list_folders(), one.list_folders("runs")) == (["grids", "runs"], results.runs)
    assert cp(folder, other, "--evaluation", "g-on", "--prediction", "p") == 0
    assert other.list_folders() == ["evaluations", "predictions", "reports"]
    assert cp(folder, third, "--run", "alone", "--run", results.runs[0]) == 0
    assert third.list_folders("runs") == ["alone", results.runs[0]]


def test_what_is_half_there_is_not_copied(folder: Storage, results: Results, tmp_path: Path) -> None:
    half, whole = results.runs
    folder.delete(f"runs/{half}/config.json")
    folder.delete(f"evaluations/{results.evaluation}/_manifest.json")
    # Its checkpoint.json is still to come.
    folder.delete(f"runs/{whole}/checkpoints/epoch-0002/checkpoint.json")
    target = open_storage(str(tmp_path / "target"))
    assert cp(folder, target) == 0
    assert target.list_folders("runs") == [whole]
    assert target.list_folders(f"runs/{whole}/checkpoints") == ["epoch-0001"]
    assert target.list_folders() == ["grids", "predictions", "runs"]


def test_other_content_under_a_name_is_a_conflict_that_stays_and_the_rest_is_copied(
    folder: Storage, results: Results, target: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = results.runs
    target.write_bytes(f"runs/{run}/config.json", b"another")
    target.write_bytes(f"reports/{results.evaluation}/report.html", b"another")
    pending = target.pending_folder(f"evaluations/{results.evaluation}")
    pending.commit([pending.write("metrics.parquet", b"another")], {})
    target.write_bytes(
        "grids/g/grid.json", Path(folder.uri, "grids/g/grid.json").read_bytes().replace(b"g-s0", b"g-s1")
    )
    before = contents(target)
    assert cp(folder, target) == 6
    line = without_doing(capsys.readouterr().err).splitlines()[-1]
    assert line == (
        f"mnist-ray: error: run {run!r}: exists in {target.uri} with other content (config.json); remove one with "
        "`mnist-ray rm run`, or choose another storage; and 3 more"
    )
    after = contents(target)
    assert {path: after[path] for path in before} == before
    assert sorted({"/".join(path.split("/")[:2]) for path in after.keys() - before.keys()}) == [
        "predictions/p",
        f"runs/{other}",
    ]


def test_a_run_and_a_grid_that_went_on_are_brought_up_to_date(
    folder: Storage, results: Results, target: Storage
) -> None:
    run = results.runs[0]
    at_first = open_storage(f"{folder.uri}-first")
    shutil.copytree(folder.uri, at_first.uri)
    for path in (f"runs/{run}/best", f"runs/{run}/checkpoints/epoch-0002"):
        at_first.delete_folder(path)
    Path(at_first.uri, f"runs/{run}/history.parquet").write_bytes(b"shorter")
    grid = json.loads(Path(folder.uri, "grids/g/grid.json").read_text())
    Path(at_first.uri, "grids/g/grid.json").write_text(json.dumps({**grid, "runs": grid["runs"][:1]}))
    assert cp(at_first, target) == 0
    assert cp(folder, target) == 0
    for path in (f"runs/{run}", "grids/g"):
        wanted = {entry.path: folder.read_bytes(entry.path) for entry in folder.list_files(path)}
        assert {entry.path: target.read_bytes(entry.path) for entry in target.list_files(path)} == wanted
    # But a target that is ahead is no older copy.
    assert cp(at_first, target, "--grid", "g") == 6


@pytest.mark.parametrize("path", ["runs/RUN/best/model.safetensors", "evaluations/EVALUATION/metrics/part-0.parquet"])
def test_damage_is_found_out_before_a_reader_could_meet_it(
    path: str, folder: Storage, results: Results, target: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    path = path.replace("RUN", results.runs[1]).replace("EVALUATION", results.evaluation)
    damaged = Path(folder.uri, path)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    assert cp(folder, target) == 3
    assert str(damaged) in without_doing(capsys.readouterr().err).splitlines()[-1]
    name = path.split("/")[1]
    assert name not in [
        row.get("run", row.get("evaluation")) for row in [*listed_runs(target), *evaluation_rows(target)]
    ]
    assert runs_table(target)[1] == []


def test_damage_in_the_target_is_found_out_by_copying_again(
    folder: Storage, results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = open_storage(str(tmp_path / "target"))
    assert cp(folder, target) == 0
    run = Path(target.uri, f"runs/{results.runs[0]}/best/model.safetensors")
    run.write_bytes(run.read_bytes()[:-1] + b"!")
    assert cp(folder, target, "--run", results.runs[0]) == 6
    assert "with other content (best/model.safetensors)" in capsys.readouterr().err
    part = Path(target.uri, f"evaluations/{results.evaluation}/metrics/part-0.parquet")
    part.write_bytes(part.read_bytes()[:-1] + b"!")
    assert cp(folder, target, "--evaluation", "latest") == 3
    assert f"{part}: not the content that was committed" in capsys.readouterr().err


def test_a_storage_that_alters_content_is_found_out(
    folder: Storage,
    tmp_path: Path,
    results: Results,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = Storage.write_bytes
    monkeypatch.setattr(Storage, "write_bytes", lambda self, path, data: write(self, path, data + b"!"))
    for number, options in enumerate((["--run", results.runs[0]], ["--evaluation", "g"])):
        target = open_storage(str(tmp_path / f"target-{number}"))
        assert cp(folder, target, *options) == 4
        assert "has other content than was written; use another storage" in capsys.readouterr().err
        assert listed_runs(target) == evaluation_rows(target) == []


def test_what_a_stopped_copy_has_staged_is_not_sent_again(
    folder: Storage,
    target: Storage,
    results: Results,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> bool:
        raise StorageError("the disk is full")

    with monkeypatch.context() as full:
        full.setattr(PendingFolder, "commit", fail)
        assert cp(folder, target, "--evaluation", "g") == 4
    assert evaluation_rows(target) == []
    metrics = next(entry.path for entry in target.list_files(".staging") if "/metrics/" in entry.path)
    target.write_bytes(metrics, b"cut")
    capsys.readouterr()
    assert cp(folder, target, "--evaluation", "g") == 0
    assert "1 file sent, " in capsys.readouterr().err
    assert open_evaluation(target, results.evaluation).rows("metrics")
    assert target.list_files(".staging") == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["HERE", "HERE/"], 2, "DST='HERE/': the same storage as SRC; choose another"),
        (["HERE", "s3:/x"], 2, "DST='s3:/x': write s3:// with two slashes before the bucket"),
        (["HERE-none", "THERE"], 3, "storage='HERE-none': has no results to copy"),
        (["HERE", "THERE", "--run", "a"], 3, "run 'a': not in HERE; `mnist-ray runs` lists what is"),
        (["HERE", "THERE", "--grid", "h"], 3, "grid 'h': not in HERE; `mnist-ray grids` lists what is"),
        (["HERE", "THERE", "--prediction", "q"], 3, "prediction 'q': not in HERE"),
        (
            ["HERE", "THERE", "--evaluation", "x"],
            3,
            "evaluation 'x': not in HERE; `mnist-ray evaluations` lists what is",
        ),
    ],
)
def test_what_cant_be_copied_is_one_line_and_leaves_nothing(
    arguments: list[str], code: int, message: str, folder: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "there"

    def with_paths(text: str) -> str:
        return text.replace("THERE", str(there)).replace("HERE", folder.uri)

    assert run_command(["cp", *map(with_paths, arguments)]) == code
    assert without_doing(capsys.readouterr().err) == f"mnist-ray: error: {with_paths(message)}\n"
    assert not there.exists()


@pytest.mark.fault
@pytest.mark.parametrize(
    "uri", ["local", pytest.param("s3", marks=[pytest.mark.s3, pytest.mark.series])], indirect=True
)
def test_killed_anywhere_no_reader_meets_a_half_copy_and_the_same_command_finishes(
    uri: str, folder: Storage, results: Results
) -> None:
    step, least_changes = (12, 48) if uri.startswith("s3://") else (6, 90)
    targets = [open_storage(f"{uri}/{n}") for n in range((least_changes + 60) // step)]
    whole = {row["run"]: row for row in listed_runs(folder)}
    killed, code = killed_everywhere([target.uri for target in targets], ["cp", folder.uri, "URI"], step=step)
    assert code == 0
    assert killed * step >= least_changes
    done = contents(targets[killed])
    num_there = set()
    for target in targets[:killed]:
        for row in listed_runs(target):
            assert row == whole[row["run"]]
            assert RunFolder(target, row["run"]).best().history
        for row in evaluation_rows(target):
            evaluation = open_evaluation(target, row["evaluation"])
            assert all(evaluation.rows(table) for table in evaluation.files())
        assert runs_table(target)[1] == grids_table(target)[1] == []
        num_there.add(len(target.list_files()))
        assert cp(folder, target) == 0
        # An evaluation's manifest holds who committed it.
        assert contents(target).keys() == done.keys()
    assert {0, len(done)} < num_there | {0, len(done)}


def test_where_a_run_or_grid_is_logged_is_not_copied(folder: Storage, target: Storage, results: Results) -> None:
    for path in (f"runs/{results.runs[0]}", "grids/g"):
        folder.write_bytes(f"{path}/logged/mlflow.json", b"{}")
    assert cp(folder, target) == 0
    assert "logged" not in {part for path in contents(target) for part in path.split("/")}
