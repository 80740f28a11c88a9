"""Grids that grow on a cluster: until they are settled, or until a budget is used."""

import json
from pathlib import Path

import duckdb
import pytest

from mnist_ray.cli.main import run_command
from tests.support.grid_runs import train_without_ray, weights
from tests.support.ray_head import RayHead
from tests.support.ray_jobs import run_job

pytestmark = [pytest.mark.ray, pytest.mark.slow]
GRID = ["tune", "--grid", "smoke", "--name", "g"]


def test_a_grid_grows_on_a_cluster_and_is_evaluated_and_compared_with_unequal_seeds(
    shared_head: RayHead, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tune = [*GRID, "--until-settled", "--looks", "2,4", "--storage", str(tmp_path / "grown")]
    done = run_job(shared_head, *tune)
    assert done.code == 0, done.log
    assert "until settled: looks at 2 and 4 seeds of 4 settings, 8 to 16 runs" in done.log
    looks = json.loads((tmp_path / "grown/grids/g/looks.json").read_text())["looks"]
    assert [f"look at {look['num_seeds']} seeds:" in done.log for look in looks] == [True] * len(looks)
    seeds = {name: look["num_seeds"] for look in looks for name in look["compared"]}
    rows = duckdb.sql(
        f"SELECT dropout, batch_norm, count(*) FROM '{tmp_path}/grown/grids/g/runs.parquet' WHERE status = 'finished' "
        "GROUP BY ALL"
    ).fetchall()
    assert sorted(count for *_, count in rows) == sorted(seeds.values())
    # The same bits as runs of a grid that doesn't grow.
    train_without_ray(str(tmp_path / "whole"), "smoke", seeds="4")
    expected = weights(tmp_path / "whole")
    for run, tensors in weights(tmp_path / "grown").items():
        assert all(value.equal(expected[run][name]) for name, value in tensors.items()), run
    again = run_job(shared_head, *tune)
    assert again.code == 0, again.log
    assert "all were done already" in again.output
    storage = ["--storage", str(tmp_path / "grown")]
    assert run_command(["evaluate", "--grid", "g", *storage, "--json"]) == 0
    name = json.loads(capsys.readouterr().out)["evaluation"]
    assert run_command(["compare", name, *storage, "--json"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert {row["setting"]: row["num_seeds"] for row in settings} == seeds


@pytest.mark.series
def test_a_budget_that_is_too_small_for_a_run_ends_with_a_line_that_says_so(
    shared_head: RayHead, tmp_path: Path
) -> None:
    # 4,000 epochs take minutes.
    tune = [*GRID, "--seeds", "2", "--epochs", "4000", "--budget", "20s", "--storage", str(tmp_path)]
    done = run_job(shared_head, *tune)
    assert done.code == 7, done.log
    assert "the budget was not enough for a single run" in done.log.splitlines()[-1]
