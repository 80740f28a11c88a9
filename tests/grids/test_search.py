import math
from pathlib import Path

import pytest
from scipy import stats

from mnist_ray.cli.main import run_command
from mnist_ray.config.settings import GridConfig, Range
from mnist_ray.grids.grid import read_grid
from mnist_ray.grids.search import Search, random_samples, runs_of_samples, value_in


def grid_of(**settings: object) -> GridConfig:
    return read_grid(settings, seeds="2", overrides={}, source="test")


def test_values_are_spread_evenly_over_their_range_or_its_logarithm() -> None:
    grid = grid_of(
        dropout={"uniform": [0.1, 0.5]}, learning_rate={"loguniform": [1e-4, 1e-1]}, epochs={"randint": [3, 6]}
    )
    samples = random_samples(grid, Search("random", 2000))
    shares = [(sample["dropout"] - 0.1) / 0.4 for sample in samples]
    assert stats.kstest(shares, "uniform").pvalue > 0.01
    shares = [math.log(sample["learning_rate"] / 1e-4) / math.log(1e3) for sample in samples]
    assert stats.kstest(shares, "uniform").pvalue > 0.01
    counts = [sum(sample["epochs"] == epochs for sample in samples) for epochs in (3, 4, 5, 6)]
    assert sum(counts) == 2000
    assert stats.chisquare(counts).pvalue > 0.01


def test_fewer_samples_are_a_beginning_and_another_seed_gives_others() -> None:
    grid = grid_of(dropout={"uniform": [0, 0.5]}, hidden_sizes=[[8], [16, 8]])
    samples = random_samples(grid, Search("random", 20))
    assert random_samples(grid, Search("random", 7)) == samples[:7]
    assert random_samples(grid, Search("random", 7, seed=1)) != samples[:7]
    assert {sample["hidden_sizes"] for sample in samples} == {(8,), (16, 8)}
    runs = runs_of_samples(samples, grid, name="g")
    assert len({run.run for run in runs}) == 40


def test_equal_samples_are_there_once() -> None:
    assert len(random_samples(grid_of(batch_norm=[False, True]), Search("random", 50))) == 2


def test_a_search_with_optuna_is_refused_before_it_starts_if_it_has_too_many_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("dataset: digits\nepochs: 1\ndropout: {uniform: [0.1, 0.4]}\n")
    command = [
        "tune",
        "--grid",
        str(space),
        "--seeds",
        "2",
        "--search",
        "optuna",
        "--storage",
        str(tmp_path / "results"),
    ]
    assert run_command([*command, "--num-samples", "3", "--max-runs", "5"]) == 2
    assert "has 6 runs, more than 5" in capsys.readouterr().err
    assert not (tmp_path / "results/grids").exists()
    assert run_command(["plan", *command, "--num-samples", "3"]) == 0
    assert "6 runs, 0 done already" in capsys.readouterr().out


def test_the_ends_of_a_range() -> None:
    assert value_in(Range(kind="randint", low=2, high=4), 0.999) == 4
    assert value_in(Range(kind="randint", low=2, high=4), 0.0) == 2
    assert value_in(Range(kind="uniform", low=2, high=4), 0.5) == 3.0
    assert value_in(Range(kind="loguniform", low=1, high=100), 0.5) == pytest.approx(10.0, rel=1e-12)
    # math.exp(math.log(1e-5)) lies below 1e-5.
    assert value_in(Range(kind="loguniform", low=1e-5, high=1e-3), 0.0) == 1e-5
