from pathlib import Path
from typing import Any

import pytest

from mnist_ray.config.settings import GridConfig
from mnist_ray.errors import CheckpointError, ConflictError
from mnist_ray.grids.asha import Decision
from mnist_ray.grids.grid import GridRun, expand, read_grid
from mnist_ray.grids.search import Search, random_samples, runs_of_samples
from mnist_ray.results.grid_folder import GridFolder
from mnist_ray.results.inventory import read_inventory
from mnist_ray.results.run_progress import RunProgress
from mnist_ray.storage.storage import open_storage


def grid_of(dropout: list[float], seeds: str = "1", **more: Any) -> tuple[GridConfig, tuple[GridRun, ...]]:
    grid = read_grid({"dataset": "digits", "dropout": dropout, **more}, seeds=seeds, overrides={}, source="test")
    return grid, expand(grid, name="g", max_runs=100)


def folder_at(path: Path) -> GridFolder:
    return GridFolder(open_storage(str(path)), "g")


def test_a_grid_is_taken_extended_and_read_back_in_its_order(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    assert folder.document() is None
    folder.claim(*grid_of([0.3, 0.1], batch_norm=[True, False]))
    grid, runs = grid_of([0.3, 0.1, 0.0], "2", batch_norm=[True, False])
    folder.claim(grid, runs)
    assert folder.run_names() == [run.run for run in runs]
    # The order of axes and levels is the user's: the first level is the reference of effects.
    assert list(folder.settings().axes.items()) == [("dropout", (0.3, 0.1, 0.0)), ("batch_norm", (True, False))]


def test_a_grid_does_not_shrink_and_no_search_takes_its_name(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    grid, runs = grid_of([0.1, 0.3], "2")
    folder.claim(grid, runs)
    before = (tmp_path / "grids/g/grid.json").read_bytes()
    with pytest.raises(ConflictError, match=r"\(dropout=0.1,0.3 there, 0.1 here\); a grid can only grow"):
        folder.claim(*grid_of([0.1], "2"))
    with pytest.raises(ConflictError, match="another search"):
        folder.claim(grid, runs, search=Search("random", 4))
    assert (tmp_path / "grids/g/grid.json").read_bytes() == before


def test_samples_of_a_search_are_read_back_as_they_were(tmp_path: Path) -> None:
    grid = read_grid(
        {"hidden_sizes": [[16, 8], [8]], "dropout": {"uniform": [0, 0.5]}}, seeds="2", overrides={}, source="test"
    )
    search = Search("random", 5)
    samples = random_samples(grid, search)
    folder = folder_at(tmp_path)
    folder.claim(grid, runs_of_samples(samples, grid, name="g"), search=search, samples=samples)
    assert folder.samples() == samples


def test_runs_parquet_has_a_row_for_each_run_and_those_gone_are_missing(tmp_path: Path) -> None:
    folder, (grid, runs) = folder_at(tmp_path), grid_of([0.1, 0.3, 0.5, 0.7])
    folder.claim(grid, runs)
    assert folder.read_runs() == []
    done = RunProgress(runs[0].run, "finished", None, 5, 4, 0.1, 0.97, 2.5)
    bad = RunProgress(runs[1].run, "diverged", "epoch 1", 0, None, None, None, 0.0)
    waiting = RunProgress(runs[2].run, "unfinished", None, 2, 2, 0.5, 0.8, 1.0)
    new = RunProgress(runs[3].run, "unfinished", None, 0, None, None, None, 0.0)
    folder.write_runs(runs, {row.run: row for row in (new, waiting, bad, done)})
    rows = folder.read_runs()
    assert [(row["run"], row["dropout"], row["status"], row["checkpoint"]) for row in rows] == [
        (runs[0].run, 0.1, "finished", f"runs/{runs[0].run}/best"),
        (runs[1].run, 0.3, "diverged", None),
        (runs[2].run, 0.5, "unfinished", None),
        (runs[3].run, 0.7, "unfinished", None),
    ]
    # None of them has a folder.
    (listed,) = read_inventory(folder.storage).grids
    assert [listed[f"num_{kind}"] for kind in ("runs", "finished", "diverged", "unfinished", "missing")] == [
        4, 0, 0, 1, 3,
    ]  # fmt: skip


def test_decisions_are_added_to_those_of_earlier_commands(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    folder.write_decisions([Decision("a", 1, 0.5, True)])
    folder.write_decisions([Decision("b", 1, 0.6, False)])
    assert folder.storage.read_bytes("grids/g/asha.json").count(b"goes_on") == 2


def test_a_grid_that_is_not_there_or_damaged_is_said_to_be(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    with pytest.raises(CheckpointError, match=r"grid 'g': not in .*; `mnist-ray grids` lists what is"):
        folder.run_names()
    folder.storage.write_bytes("grids/g/grid.json", b"{")
    with pytest.raises(CheckpointError, match=r"grid 'g': grid\.json is damaged"):
        folder.settings()
