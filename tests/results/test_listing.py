"""Lists of runs and evaluations that show what is damaged."""

from pathlib import Path

import pytest

from mnist_ray.cli.main import run_command
from mnist_ray.errors import CheckpointError
from mnist_ray.results.listing import list_evaluations, list_runs
from mnist_ray.results.run_documents import read_run_document
from mnist_ray.storage.manifest import MANIFEST
from mnist_ray.storage.storage import open_storage

CONFIG = b'{"config": {"variant": "baseline", "dataset": "digits", "seed": 0, "model": "mlp"}}'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", CONFIG[:20]),
        ("config.json", b"[]"),
        ("history.parquet", b"PAR1"),
        ("status.json", b'{"status"'),
        ("status.json", b"[]"),
    ],
)
def test_a_damaged_run_is_a_row_among_the_others(tmp_path: Path, name: str, content: bytes) -> None:
    for run in ("a", "b"):
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / "config.json").write_bytes(CONFIG)
    (tmp_path / "runs/a" / name).write_bytes(content)
    assert [(row["run"], row["status"]) for row in list_runs(str(tmp_path))] == [("a", "damaged"), ("b", "unfinished")]


def test_a_damaged_evaluation_is_a_row_among_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    storage = open_storage(str(tmp_path))
    pending = storage.pending_folder("evaluations/good")
    manifest = {"config": {"dataset": "digits", "split": "test"}, "runs": ["a"], "num_examples": 3}
    pending.commit([pending.write("metrics.parquet", b"")], manifest)
    for name, content in [("cut", b'{"files"'), ("uncommitted", None)]:
        (tmp_path / "evaluations" / name).mkdir()
        if content:
            (tmp_path / "evaluations" / name / MANIFEST).write_bytes(content)
    rows = list_evaluations(str(tmp_path))
    assert [(row["evaluation"], row["status"]) for row in rows] == [("cut", "damaged"), ("good", "committed")]
    assert run_command(["evaluations", "--storage", str(tmp_path)]) == 0
    assert "damaged" in capsys.readouterr().out


def test_a_run_whose_config_is_cut_short_is_a_damaged_one(tmp_path: Path) -> None:
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "runs/a/config.json").write_bytes(CONFIG[:20])
    with pytest.raises(CheckpointError, match=r"run 'a': config\.json is damaged"):
        read_run_document(open_storage(str(tmp_path)), "a")
