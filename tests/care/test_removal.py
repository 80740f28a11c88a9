"""mnist-ray rm: what goes, what stays, what is said; on a disk and on S3; killed anywhere."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from mnist_ray.cli.main import run_command
from mnist_ray.config.settings import TrainConfig
from mnist_ray.errors import CheckpointError, ConflictError
from mnist_ray.grids.grid import expand
from mnist_ray.results.grid_folder import GridFolder
from mnist_ray.results.inventory import runs_table
from mnist_ray.results.listing import evaluation_rows
from mnist_ray.results.run_documents import read_run_document
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.storage.storage import Storage
from mnist_ray.training.data import load_data
from tests.care.conftest import Results
from tests.support.doing_lines import without_doing
from tests.support.report_evaluations import CPU
from tests.support.stored_results import killed_everywhere, listed_runs, put


def rm(storage: Storage, *arguments: str) -> int:
    return run_command(["rm", *arguments, "--storage", storage.uri])


def paths(storage: Storage) -> set[str]:
    return {entry.path for entry in [*storage.list_files(), *storage.list_files(".staging")]}


def test_a_run_goes_and_what_depends_on_it_is_said_and_stays(
    storage: Storage, results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = results.runs
    before = paths(storage)
    size = sum(entry.size for entry in storage.list_files(f"runs/{run}"))
    assert rm(storage, "run", run, "--dry-run") == 0
    said = f"run {run}: {size / 1000:.0f} kB; listed by grid g; evaluated by evaluation {results.evaluation}; "
    assert capsys.readouterr().out.splitlines() == [
        f"{said}used by prediction p",
        f"would delete 1 run ({size / 1000:.0f} kB)",
    ]
    assert paths(storage) == before
    assert rm(storage, "run", run, "--yes") == 0
    assert capsys.readouterr().out.endswith(f"deleted 1 run ({size / 1000:.0f} kB)\n")
    assert paths(storage) == {path for path in before if not path.startswith(f"runs/{run}/")}
    assert [row["run"] for row in listed_runs(storage)] == [other]
    # What remains says what is missing.
    assert run_command(["evaluate", "--run", run, "--storage", storage.uri]) == 3
    assert f"run {run!r}: not in {storage.uri}" in capsys.readouterr().err
    assert rm(storage, "run", run, "--yes") == 3
    error = f"mnist-ray: error: run {run!r}: not in {storage.uri}; `mnist-ray runs` lists what is\n"
    assert without_doing(capsys.readouterr().err) == error


def test_what_a_killed_removal_has_hidden_stays_in_a_dry_run_and_goes_then(folder: Storage, results: Results) -> None:
    folder.write_bytes(".staging/deleted-0123456789abcdef/config.json", b"{}")
    assert rm(folder, "run", results.runs[0], "--dry-run") == 0
    assert len(folder.list_files(".staging")) == 1
    assert rm(folder, "run", results.runs[0], "--yes") == 0
    assert folder.list_files(".staging") == []


def test_of_several_names_those_that_are_there_go(folder: Storage, results: Results) -> None:
    assert rm(folder, "run", *results.runs, "nobody", results.runs[0], "--yes") == 0
    assert folder.list_folders("runs") == []


def test_a_grid_goes_without_its_runs_or_with_them(
    storage: Storage, results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {path for path in paths(storage) if not path.startswith(("grids/", "runs/"))}
    assert rm(storage, "grid", "g", "--dry-run") == 0
    assert f"evaluated by evaluation {results.evaluation}; its runs stay\n" in capsys.readouterr().out
    assert rm(storage, "grid", "g", "--with-runs", "--yes") == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in said[:3]] == [*(f"run {run}" for run in results.runs), "grid g"]
    assert "listed by" not in "".join(said)
    assert said[3].startswith("deleted 2 runs, 1 grid (")
    assert paths(storage) == kept


def test_the_latest_evaluation_and_its_report_go(
    folder: Storage, results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    # Not committed, so it is not the latest.
    folder.write_bytes("evaluations/z/x", b"x")
    assert rm(folder, "report", "latest", "--yes") == 0
    assert capsys.readouterr().out.startswith(f"report {results.evaluation}: ")
    assert folder.list_folders("reports") == []
    assert rm(folder, "evaluation", "latest", "--yes") == 0
    assert capsys.readouterr().out.startswith(f"evaluation {results.evaluation}: ")
    assert folder.list_folders("evaluations") == ["z"]
    assert rm(folder, "evaluation", "latest", "--yes") == 3


def test_an_evaluation_takes_its_report_along_and_a_report_goes_alone(storage: Storage, results: Results) -> None:
    assert rm(storage, "report", results.evaluation[:5], "--yes") == 0
    assert storage.list_folders("reports") == []
    storage.write_bytes(f"reports/{results.evaluation}/report.html", b"again")
    assert [row["evaluation"] for row in evaluation_rows(storage)] == [results.evaluation]
    assert rm(storage, "evaluation", results.evaluation[:5], "--yes") == 0
    assert rm(storage, "prediction", "p", "--yes") == 0
    assert {path.split("/")[0] for path in paths(storage)} == {"grids", "runs"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["report", "latest"], 3, "report 'latest': not in "),
        (["evaluation", "g"], 2, "evaluation 'g': 2 names begin with it: g-2, g-on-digits-test-"),
        (["evaluation", ""], 3, "evaluation '': not in "),
        (["run", "g-s0"], 3, "run 'g-s0': not in "),
        (["grid", "../grids/g"], 3, "grid '../grids/g': not in "),
        (["prediction", "q"], 3, "prediction 'q': not in "),
    ],
)
def test_what_cant_be_meant_is_one_line_and_deletes_nothing(
    arguments: list[str], code: int, message: str, folder: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    folder.write_bytes("evaluations/g-2/x", b"x")
    folder.delete_folder("reports")
    before = paths(folder)
    assert rm(folder, *arguments, "--yes") == code
    (line,) = without_doing(capsys.readouterr().err).splitlines()
    assert line.startswith(f"mnist-ray: error: {message}")
    assert paths(folder) == before


def test_without_a_terminal_nothing_goes_without_yes(
    folder: Storage, results: Results, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = paths(folder)
    with open(os.devnull) as nobody:
        monkeypatch.setattr(sys, "stdin", nobody)
        assert rm(folder, "grid", "g") == 2
    error = "mnist-ray: error: rm: there is nobody to ask; delete with --yes, or look with --dry-run\n"
    assert without_doing(capsys.readouterr().err) == error
    assert paths(folder) == before


@pytest.mark.parametrize(("answer", "stays"), [("n", True), ("y", False)])
def test_on_a_terminal_it_asks_after_it_has_said_what_goes(answer: str, stays: bool, folder: Storage) -> None:
    main, terminal = pty.openpty()
    os.write(main, f"{answer}\n".encode())
    command = [sys.executable, "-m", "mnist_ray", "rm", "evaluation", "g-on", "--storage", folder.uri]
    done = subprocess.run(command, stdin=terminal, capture_output=True, text=True, timeout=60, check=True)
    os.close(main)
    os.close(terminal)
    name, end = done.stdout.index("evaluation g-on-digits-test-"), done.stdout.index("? [y/N]: ")
    assert name < done.stdout.index("delete 1 report, 1 evaluation (") < end
    assert ("nothing deleted" in done.stdout) is stays
    assert bool(folder.list_folders("evaluations")) is stays


def test_a_damaged_result_can_be_deleted(folder: Storage, results: Results) -> None:
    for path in (f"runs/{results.runs[0]}/config.json", "grids/g/grid.json", "predictions/p/_manifest.json"):
        Path(folder.uri, path).write_bytes(b"{")
    Path(folder.uri, f"evaluations/{results.evaluation}/_manifest.json").write_bytes(b"{")
    for kind, name in (("run", results.runs[0]), ("evaluation", "g"), ("prediction", "p"), ("grid", "g")):
        assert rm(folder, kind, name, "--yes") == 0
    assert {path.split("/")[0] for path in paths(folder)} == {"runs"}


def test_what_is_half_deleted_is_no_result_and_its_name_is_not_taken_again(
    storage: Storage, results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    run, other = results.runs
    config = TrainConfig.model_validate(read_run_document(storage, run)["config"])
    grid = GridFolder(storage, "g").settings()
    for path in (f"runs/{run}/config.json", "grids/g/grid.json"):
        storage.delete(path)
    assert [row["run"] for row in listed_runs(storage)] == [other]
    table, left_out = runs_table(storage)
    assert (table["run"].to_pylist(), left_out) == ([other], [])
    told = "half deleted or half copied; give that command again, or remove the rest with `mnist-ray rm"
    data = load_data(config, Path("unused"), CPU)
    with pytest.raises(ConflictError, match=f"run '{run}': {told} run {run}`"):
        RunFolder(storage, run).claim(config, data)
    with pytest.raises(CheckpointError, match=f"run '{run}': {told} run {run}`"):
        RunFolder(storage, run).best()
    with pytest.raises(ConflictError, match=f"grid 'g': {told} grid g`"):
        GridFolder(storage, "g").claim(grid, expand(grid, name="g", max_runs=10))
    # The evaluation of all runs leaves it out.
    assert run_command(["evaluate", "--all-runs", "--dataset", "digits", "--no-report", "--storage", storage.uri]) == 0
    assert rm(storage, "run", run, "--yes") == 0
    assert rm(storage, "grid", "g", "--yes") == 0
    RunFolder(storage, run).claim(config, data)


_ON_S3 = [pytest.mark.s3, pytest.mark.series]


@pytest.mark.fault
@pytest.mark.parametrize(
    ("uri", "arguments", "least_changes"),
    [
        pytest.param("local", ["run", "RUN"], 15, id="run"),
        pytest.param("local", ["evaluation", "g-on"], 20, id="evaluation"),
        pytest.param("local", ["grid", "g", "--with-runs"], 30, id="grid", marks=pytest.mark.slow),
        pytest.param("s3", ["run", "RUN"], 8, id="run on S3", marks=pytest.mark.s3),
        pytest.param("s3", ["evaluation", "g-on"], 8, id="evaluation on S3", marks=_ON_S3),
        pytest.param("s3", ["grid", "g", "--with-runs"], 18, id="grid on S3", marks=_ON_S3),
    ],
    indirect=["uri"],
)
def test_killed_anywhere_it_leaves_nothing_half_there_and_the_same_command_finishes(
    uri: str, arguments: list[str], least_changes: int, results: Results
) -> None:
    arguments = [results.runs[0] if word == "RUN" else word for word in arguments]
    step = 4 if uri.startswith("s3://") else 1
    storages = [put(results.folder, f"{uri}/{n}") for n in range((least_changes + 20) // step)]
    whole = {row["run"]: row for row in listed_runs(storages[0])}
    killed, code = killed_everywhere(
        [storage.uri for storage in storages],
        ["rm", *arguments, "--yes", "--storage", "URI"],
        step=step,
    )
    assert code == 0
    assert killed * step >= least_changes
    done = paths(storages[killed])
    num_left = set()
    for storage in storages[:killed]:
        for row in listed_runs(storage):
            assert row == whole[row["run"]]
        for row in evaluation_rows(storage):
            assert row["status"] == "committed"
            assert storage.read_committed(f"evaluations/{row['evaluation']}", "metrics/part-0.parquet")
        assert runs_table(storage)[1] == []
        num_left.add(len(paths(storage)))
        # On a disk, the last of what was there may have vanished at once.
        assert rm(storage, *arguments, "--yes") in ((0, 3) if storage.is_local else (0,))
        assert paths(storage) == done
    # Some points lie in the middle.
    assert any(len(done) < num < max(num_left) for num in num_left)


def test_that_a_lake_has_an_evaluation_is_said(
    folder: Storage, results: Results, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rm(folder, "evaluation", results.evaluation, "--dry-run") == 0
    assert "lake" not in capsys.readouterr().out
    folder.write_bytes("lake/delta/metrics/_delta_log/0.json", b"{}")
    assert rm(folder, "evaluation", results.evaluation, "--dry-run") == 0
    said = "; in the lake's tables (delta) until `mnist-ray publish` runs again\n"
    assert f"evaluation {results.evaluation}: " in (out := capsys.readouterr().out)
    assert said in out
