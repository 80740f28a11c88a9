"""Opening a committed evaluation."""

from pathlib import Path
from typing import Any

import pytest

from mnist_ray.cli.main import run_command
from mnist_ray.errors import CheckpointError, ConfigError
from mnist_ray.results import parquet
from mnist_ray.results.columns import SCHEMA_VERSION
from mnist_ray.results.evaluation_folder import (
    committed_evaluations,
    evaluations_of_split,
    find_evaluation,
    open_evaluation,
)
from mnist_ray.storage.storage import open_storage
from tests.support.doing_lines import without_doing

COMMANDS = (["report", "e"], ["compare", "e"], ["query", "SELECT 1", "--evaluation", "e"])


def confusion(count: int) -> bytes:
    columns = {
        "evaluation": "e", "run": "a", "dataset": "digits", "split": "test", "dataset_id": "ab",
        "label": [0], "label_name": "0", "predicted_label": [0],
        "predicted_label_name": "0", "count": [count],
    }  # fmt: skip
    return parquet.to_parquet_bytes(parquet.make_table("confusion", columns, code_version="1"))


def commit(uri: Path, name: str, *, data_sha256: str = "ab", **changes: Any) -> None:
    pending = open_storage(str(uri)).pending_folder(f"evaluations/{name}")
    files = [pending.write(f"confusion/part-{part:05d}.parquet", confusion(part)) for part in (1, 0, 2)]
    config = {"dataset": "digits", "split": "test", "grid": None}
    pending.commit(files, {"schema_version": SCHEMA_VERSION, "config": config, "data_sha256": data_sha256, **changes})


def test_a_table_is_read_from_its_parts_in_order(tmp_path: Path) -> None:
    commit(tmp_path, "e")
    folder = open_evaluation(open_storage(str(tmp_path)), "e")
    assert folder.files() == {"confusion": [f"confusion/part-0000{part}.parquet" for part in range(3)]}
    assert [row["count"] for row in folder.rows("confusion")] == [0, 1, 2]
    assert (folder.dataset, folder.split, folder.grid, folder.earlier_evaluations) == ("digits", "test", None, [])


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_evaluation_is_one_line(command: list[str], tmp_path: Path, capsys: Any) -> None:
    commit(tmp_path, "other")
    assert run_command([*command, "--storage", str(tmp_path)]) == 3
    assert without_doing(capsys.readouterr().err) == (
        f"mnist-ray: error: evaluation 'e': not in {tmp_path}; `mnist-ray evaluations` lists what is\n"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_an_evaluation_that_was_not_committed_is_unknown(command: list[str], tmp_path: Path, capsys: Any) -> None:
    commit(tmp_path, "e")
    (tmp_path / "evaluations" / "e" / "_manifest.json").unlink()
    assert run_command([*command, "--storage", str(tmp_path)]) == 3
    assert "evaluation 'e': not in" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("version", [1, 4, None])
def test_another_schema_version_is_one_line(
    command: list[str], version: int | None, tmp_path: Path, capsys: Any
) -> None:
    commit(tmp_path, "e", schema_version=version)
    assert run_command([*command, "--storage", str(tmp_path)]) == 3
    assert without_doing(capsys.readouterr().err) == (
        f"mnist-ray: error: evaluation 'e': its tables have schema version {version}, this version of mnist-ray "
        "reads 2 and 3: read it with the version that wrote it, or evaluate again\n"
    )


def test_the_looks_at_a_split_are_found_by_its_content(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    assert evaluations_of_split(storage, "ab") == []
    commit(tmp_path, "a")
    commit(tmp_path, "b", data_sha256="cd")
    commit(tmp_path, "c")
    assert evaluations_of_split(storage, "ab") == ["a", "c"]
    # Nobody can tell what a damaged one has read.
    (tmp_path / "evaluations" / "b" / "_manifest.json").write_text("{")
    assert evaluations_of_split(storage, "ab") == ["a", "b", "c"]


def test_an_evaluation_is_found_by_its_name_the_beginning_of_it_or_as_the_latest(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))
    times = {"cnn": "2026-11-02T00:00:00+00:00", "cnn-2": "2026-11-01T00:00:00+00:00", "a": None}
    for name, time in times.items():
        commit(tmp_path, name, volatile={"evaluated_at": time} if time else {})
    assert [folder.name for folder in committed_evaluations(storage)] == ["a", "cnn-2", "cnn"]
    wanted = {"cnn": "cnn", "cnn-": "cnn-2", "a": "a", "latest": "cnn"}
    assert {name: find_evaluation(storage, name).name for name in wanted} == wanted
    with pytest.raises(ConfigError, match="evaluation 'c': 2 names begin with it: cnn, cnn-2; give more of the name"):
        find_evaluation(storage, "c")
    with pytest.raises(CheckpointError, match="evaluation 'd': not in"):
        find_evaluation(storage, "d")
    # The candidates are said, as many as one can read.
    for number in range(12):
        commit(tmp_path, f"many-{number:02d}")
    with pytest.raises(
        ConfigError, match=r"'many': 12 names begin with it: many-00, .*, many-09 and 2 more; give more of the name"
    ):
        find_evaluation(storage, "many")
    # One that is not committed doesn't count.
    (tmp_path / "evaluations" / "cnn-2" / "_manifest.json").unlink()
    assert find_evaluation(storage, "c").name == "cnn"


def test_an_evaluation_that_can_not_be_read_is_said_and_left_out(tmp_path: Path, capsys: Any) -> None:
    commit(tmp_path, "a")
    commit(tmp_path, "old", schema_version=1)
    (tmp_path / "evaluations" / "half").mkdir()
    (tmp_path / "evaluations" / "half" / "_manifest.json").write_text("{")
    assert [folder.name for folder in committed_evaluations(open_storage(str(tmp_path)))] == ["a"]
    said = without_doing(capsys.readouterr().err).splitlines()
    assert [line.partition(": ")[0] for line in said] == [
        f"without {tmp_path}/evaluations/half/_manifest.json",
        "without evaluation 'old'",
    ]
    assert "its tables have schema version 1" in said[1]
    assert "evaluate again" in said[1]
