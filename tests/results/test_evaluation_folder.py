"""Opening a committed evaluation."""

from pathlib import Path
from typing import Any

import pytest

from mnist_ray.cli.main import run_command
from mnist_ray.results import parquet
from mnist_ray.results.columns import SCHEMA_VERSION
from mnist_ray.results.evaluation_folder import evaluations_of_split, is_likely_there, open_evaluation
from mnist_ray.storage.storage import open_storage

COMMANDS = (["report", "e"], ["compare", "e"], ["query", "e", "SELECT 1"])


def confusion(count: int) -> bytes:
    columns = {
        "run": "a", "dataset": "digits", "split": "test", "label": [0], "label_name": "0", "predicted_label": [0],
        "predicted_label_name": "0", "count": [count],
    }  # fmt: skip
    return parquet.to_parquet_bytes(parquet.make_table("confusion", columns, code_version="1"))


def commit(uri: Path, name: str, *, data_sha256: str = "ab", **changes: Any) -> None:
    pending = open_storage(str(uri)).pending_folder(f"evaluations/{name}")
    files = [pending.write(f"confusion-{part:05d}.parquet", confusion(part)) for part in (1, 0, 2)]
    config = {"dataset": "digits", "split": "test", "grid": None}
    pending.commit(files, {"schema_version": SCHEMA_VERSION, "config": config, "data_sha256": data_sha256, **changes})


def test_a_table_is_read_from_its_parts_in_order(tmp_path: Path) -> None:
    commit(tmp_path, "e")
    folder = open_evaluation(open_storage(str(tmp_path)), "e")
    assert folder.files() == {"confusion": [f"confusion-0000{part}.parquet" for part in range(3)]}
    assert [row["count"] for row in folder.rows("confusion")] == [0, 1, 2]
    assert (folder.dataset, folder.split, folder.grid, folder.earlier_evaluations) == ("digits", "test", None, [])


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_evaluation_is_one_line(command: list[str], tmp_path: Path, capsys: Any) -> None:
    commit(tmp_path, "other")
    assert run_command([*command, "--storage", str(tmp_path)]) == 3
    assert capsys.readouterr().err == (
        f"mnist-ray: error: evaluation 'e': not in {tmp_path}; `mnist-ray evaluations` lists what is\n"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_an_evaluation_that_was_not_committed_is_unknown(command: list[str], tmp_path: Path, capsys: Any) -> None:
    commit(tmp_path, "e")
    (tmp_path / "evaluations" / "e" / "_manifest.json").unlink()
    assert run_command([*command, "--storage", str(tmp_path)]) == 3
    assert "evaluation 'e': not in" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("version", [1, 3, None])
def test_another_schema_version_is_one_line(
    command: list[str], version: int | None, tmp_path: Path, capsys: Any
) -> None:
    commit(tmp_path, "e", schema_version=version)
    assert run_command([*command, "--storage", str(tmp_path)]) == 3
    assert capsys.readouterr().err == (
        f"mnist-ray: error: evaluation 'e': its tables have schema version {version}, this version of mnist-ray "
        "reads 2: read it with the version that wrote it, or evaluate again\n"
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


def test_an_evaluation_is_likely_there_if_one_of_the_same_name_has_the_same_runs_and_code(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path))

    def is_there(stem: str = "digits-test-1run", sha256: str = "ab", code_version: str = "1") -> bool:
        return is_likely_there(storage, stem, runs={"a": sha256}, code_version=code_version)

    assert not is_there()
    commit(tmp_path, "digits-test-1run-0123", runs={"a": "ab"}, code_version="1")
    assert is_there()
    assert not is_there(sha256="cd")
    assert not is_there(code_version="2")
    assert not is_there("digits-train-1run")
    # Nobody can tell what a damaged one has evaluated.
    (tmp_path / "evaluations" / "digits-test-1run-0123" / "_manifest.json").write_text("{")
    assert is_there(sha256="cd")
