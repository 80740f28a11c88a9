"""Rows of the lists of runs and evaluations, which show what is damaged, and the selection of rows."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mnist_ray.config.settings import TrainConfig
from mnist_ray.errors import CheckpointError, ConfigError
from mnist_ray.results.listing import Selection, evaluation_rows, run_rows
from mnist_ray.results.run_documents import read_run_document, with_checksum
from mnist_ray.storage.manifest import MANIFEST
from mnist_ray.storage.storage import open_storage

CONFIG = with_checksum(
    {
        "run": "a",
        "config": TrainConfig(dataset="digits").model_dump(mode="json"),
        "config_hash": "",
        "data_sha256": "",
        "begun_at": "2026-11-01T10:00:00+00:00",
    }
)
ROWS: list[dict[str, Any]] = [
    {"run": "a", "date": None, "dropout": 0.3, "batch_norm": True, "train_limit": None, "hidden_sizes": [16, 8]},
    {"run": "b", "date": datetime(2026, 11, 1, tzinfo=UTC), "dropout": 0.1, "batch_norm": False, "train_limit": 100},
    {"run": "c", "date": datetime(2026, 10, 31, 23, 59, tzinfo=UTC), "dropout": 1e-4, "train_dataset": "digits"},
]


def wanted(**selection: Any) -> list[str]:
    aliases = {"size": "bytes"}
    return [row["run"] for row in Selection(**selection).of(ROWS, aliases=aliases, known=["status", "bytes"])]


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
    whole, damaged = run_rows(open_storage(str(tmp_path)))
    assert (whole["run"], whole["status"], whole["date"]) == ("b", "unfinished", datetime(2026, 11, 1, 10, tzinfo=UTC))
    assert (whole["bytes"], whole["uri"]) == (len(CONFIG), f"{tmp_path}/runs/b")
    assert (damaged["run"], damaged["status"], damaged["date"]) == ("a", "damaged", None)
    assert name in damaged["reason"]
    others = len(CONFIG) if name != "config.json" else 0
    assert damaged["bytes"] == len(content) + others


def test_a_damaged_evaluation_is_a_row_and_an_uncommitted_one_is_not(tmp_path: Path) -> None:
    for name, content in [("cut", b'{"files"'), ("uncommitted", b""), ("other", b'{"files": [], "schema_version": 3}')]:
        (tmp_path / "evaluations" / name).mkdir(parents=True)
        (tmp_path / "evaluations" / name / (MANIFEST if content else "a.parquet")).write_bytes(content)
    rows = evaluation_rows(open_storage(str(tmp_path)))
    assert [(row["evaluation"], row["status"], row["bytes"]) for row in rows] == [
        ("cut", "damaged", 8),
        ("other", "damaged", 34),
    ]


def test_a_run_whose_config_is_cut_short_is_a_damaged_one(tmp_path: Path) -> None:
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "runs/a/config.json").write_bytes(CONFIG[:20])
    with pytest.raises(CheckpointError, match=r"run 'a': config\.json is damaged"):
        read_run_document(open_storage(str(tmp_path)), "a")


def test_a_list_ends_with_the_newest_or_the_largest_and_begins_with_the_unknown() -> None:
    assert wanted() == ["a", "c", "b"]
    assert wanted(reverse=True) == ["b", "c", "a"]
    assert wanted(sort="dropout") == ["c", "b", "a"]
    assert wanted(sort="hidden_sizes", last=2) == ["c", "a"]
    assert wanted(last=1) == ["b"]


def test_since_keeps_the_day_itself_and_drops_unknown_dates() -> None:
    assert wanted(since=datetime(2026, 11, 1, tzinfo=UTC)) == ["b"]


@pytest.mark.parametrize(
    ("name", "text", "runs"),
    [
        ("dropout", "0.3", ["a"]),
        ("dropout", "1e-4", ["c"]),
        ("dropout", ".0001", ["c"]),
        ("dropout", "high", []),
        ("batch_norm", "true", ["a"]),
        ("batch_norm", "no", ["b"]),
        ("train_limit", "100", ["b"]),
        ("hidden_sizes", "16,8", ["a"]),
        ("hidden_sizes", "[16, 8]", ["a"]),
        # The setting's name and its column's.
        ("dataset", "digits", ["c"]),
        ("train_dataset", "digits", ["c"]),
        ("status", "damaged", []),
    ],
)
def test_where_takes_each_way_to_write_a_value(name: str, text: str, runs: list[str]) -> None:
    assert wanted(where=((name, text),)) == runs


def test_all_conditions_must_hold() -> None:
    assert wanted(where=(("dropout", "0.3"), ("batch_norm", "true"))) == ["a"]
    assert wanted(where=(("dropout", "0.3"), ("batch_norm", "false"))) == []


def test_an_unknown_column_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"--where 'droput': not in this list; did you mean dropout\?"):
        wanted(where=(("droput", "0.3"),))
    with pytest.raises(ConfigError, match=r"--sort 'x': not in this list; choose one of batch_norm, bytes, .*size"):
        wanted(sort="x")
