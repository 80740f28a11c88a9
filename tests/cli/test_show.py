"""The command show."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest

from mnist_ray.cli.main import run_command
from mnist_ray.results.evaluation_folder import open_evaluation
from mnist_ray.results.run_progress import read_history
from mnist_ray.storage.storage import open_storage
from tests.support.doing_lines import without_doing

OLD = Path(__file__).parents[1] / "storages/version-2.tar.xz"


@pytest.fixture(scope="module")
def shown_storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 7 epochs with its evaluation, beside the runs, grid and evaluations of an older version."""
    folder = tmp_path_factory.mktemp("storage")
    with tarfile.open(OLD) as archive:
        archive.extractall(folder, filter="data")
    train = ["train", "--variant", "dropout", "--dataset", "digits", "--epochs", "7", "--name", "mine", "--seed", "3"]
    assert run_command([*train, "--train-limit", "300", "--storage", str(folder)]) == 0
    assert run_command(["evaluate", "--run", "mine", "--no-report", "--storage", str(folder)]) == 0
    for half in ("evaluations/half/metrics/part-0.parquet", "grids/half/runs.parquet"):
        open_storage(str(folder)).write_bytes(half, b"")
    return folder


@pytest.fixture
def storage(shown_storage: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    shutil.copytree(shown_storage, tmp_path / "storage")
    return tmp_path / "storage"


def test_json_has_all_epochs_checkpoints_and_evaluations(
    shown_storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run_command(["show", "mine", "--storage", str(shown_storage), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    history = read_history(open_storage(str(shown_storage)), "mine")
    assert [(row["epoch"], row["val_loss"]) for row in facts["history"]] == [
        (row.epoch, row.val_loss) for row in history
    ]
    assert (facts["status"], facts["epochs_done"], facts["seed"], facts["dropout"]) == ("finished", 7, 3, 0.3)
    assert facts["begun_at"] < facts["trained_at"] < facts["evaluations"][0]["evaluated_at"]
    checkpoints = {row["checkpoint"]: row["bytes"] for row in facts["checkpoints"]}
    for name, size in checkpoints.items():
        assert size == sum(path.stat().st_size for path in (shown_storage / "runs/mine" / name).iterdir())
    assert {"best", "checkpoints/epoch-0007"} <= checkpoints.keys()
    config = json.loads((shown_storage / "runs/mine/config.json").read_text())
    assert facts["train_data_sha256"] == config["data_sha256"]
    (evaluation,) = facts["evaluations"]
    (row,) = open_evaluation(open_storage(str(shown_storage)), evaluation["evaluation"]).rows("metrics")
    for name in ("accuracy", "accuracy_low", "accuracy_high", "dataset", "split", "dataset_id"):
        assert evaluation[name] == row[name]
    assert facts["lineage"]["python"]
    assert facts["code_version"]


def test_the_settings_that_differ_and_the_ends_of_the_curve_are_printed(
    shown_storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run_command(["show", "mine", "--storage", str(shown_storage)]) == 0
    lines = capsys.readouterr().out.splitlines()
    fields = dict(line.split(None, 1) for line in lines if line and line[0].isalpha())
    assert fields["differs"] == "train_dataset=digits, epochs=7, train_limit=300"
    assert fields["setting"] == "dropout, seed 3"
    assert fields["status"] == "finished, 7 of 7 epochs"
    assert "learning_rate=0.001" in " ".join(lines[lines.index(f"unchanged  {fields['unchanged']}") :])
    assert max(len(line.rstrip()) for line in lines) <= 100
    # The best epoch of so short a training is among the last.
    assert [line.split()[0] for line in lines if line.strip()[:1].isdigit()] == ["1", "5", "6", "7"]
    (name,) = [path.name for path in (shown_storage / "evaluations").iterdir() if path.name.startswith("mine")]
    assert sum(name in line.split() for line in lines) == 1


def test_a_run_of_a_grid_by_an_older_version_names_its_grid_and_evaluation(
    shown_storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["show", "g-s0-9a51aa4f51", "--storage", str(shown_storage), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["grid"], facts["begun_at"]) == ("g", None)
    assert [row["evaluation"] for row in facts["evaluations"]] == ["digits-test-g-4runs-65e82b01d2d4"]


@pytest.mark.parametrize(
    ("command", "what", "end"),
    [
        (["show", "mime"], "run 'mime'", "; did you mean mine?"),
        (["show", "min"], "run 'min'", "; did you mean mine?"),
        (["show", "g-s"], "run 'g-s'", "; `mnist-ray runs` lists what is"),
        (["show", "x/../y"], "run 'x/../y'", "; `mnist-ray runs` lists what is"),
        (["evaluate", "--run", "mime"], "run 'mime'", "; did you mean mine?"),
        (["export", "mime", "--to", "safetensors"], "run 'mime'", "; did you mean mine?"),
        (["rm", "run", "mime", "--yes"], "run 'mime'", "; did you mean mine?"),
        (["evaluate", "--grid", "G"], "grid 'G'", "; did you mean g?"),
        (["evaluate", "--grid", "h"], "grid 'h'", "; `mnist-ray grids` lists what is"),
        (["report", "nine"], "evaluation 'nine'", "; `mnist-ray evaluations` lists what is"),
        (["rm", "prediction", "nine", "--yes"], "prediction 'nine'", ""),
        # Folders without the file that makes them results.
        (["report", "half"], "evaluation 'half'", "; `mnist-ray evaluations` lists what is"),
        (["report", "halv"], "evaluation 'halv'", "; `mnist-ray evaluations` lists what is"),
        (["evaluate", "--grid", "hal"], "grid 'hal'", "; `mnist-ray grids` lists what is"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_unknown_name_ends_with_3_and_the_nearest_one(
    shown_storage: Path, command: list[str], what: str, end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert run_command([*command, "--storage", str(shown_storage)]) == 3
    assert without_doing(capsys.readouterr().err) == f"mnist-ray: error: {what}: not in {shown_storage}{end}\n"


def test_an_unfinished_run_is_shown_from_its_newest_whole_checkpoint(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(storage / "runs/mine/best")
    (storage / "runs/mine/checkpoints/epoch-0008").mkdir()
    (storage / "runs/mine/checkpoints/epoch-0008/model.safetensors").write_bytes(b"half")
    assert run_command(["show", "mine", "--storage", str(storage), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["status"], facts["trained_at"], len(facts["history"])) == ("unfinished", None, 7)
    assert len(facts["class_names"]) == 10
    assert {"checkpoint": "checkpoints/epoch-0008", "bytes": 4} in facts["checkpoints"]


def test_a_damaged_evaluation_is_left_out_with_a_line_and_a_damaged_run_ends_with_3(
    storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (part,) = storage.glob("evaluations/mine*/metrics/part-0.parquet")
    part.write_bytes(b"PAR1")
    assert run_command(["show", "mine", "--storage", str(storage)]) == 0
    shown = capsys.readouterr()
    assert "not evaluated yet" in shown.out
    assert "not the content that was committed" in shown.err
    (storage / "runs/mine/config.json").write_bytes(b"{")
    assert run_command(["show", "mine", "--storage", str(storage)]) == 3
    assert "config.json is damaged" in capsys.readouterr().err
