import json
import random
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mnist_ray.config.given_settings import given_settings
from mnist_ray.config.settings import STACK_SETTINGS, GridConfig, TrainConfig, make_config
from mnist_ray.errors import ConfigError
from mnist_ray.grids.grid import (
    GRIDS,
    GridRun,
    check_grid_name,
    expand,
    grid_settings,
    read_grid,
    stacks,
    written_grid,
)

LEVELS: dict[str, list[Any]] = {
    "dropout": [0.0, 0.1, 0.25, 0.5],
    "batch_norm": [False, True],
    "hidden_sizes": [[16], [32, 16], [64]],
    "learning_rate": [1e-4, 1e-3],
    "gradient_clip_norm": [None, 1.0],
    "epochs": [1, 2],
    "variant": ["baseline", "dropout", "tuned"],
}


@st.composite
def grids(draw: st.DrawFn) -> GridConfig:
    names = draw(st.lists(st.sampled_from(sorted(set(LEVELS) - {"variant"})), unique=True, max_size=3))
    settings = {name: draw(st.lists(st.sampled_from(LEVELS[name]), min_size=1, unique_by=json.dumps)) for name in names}
    seeds = draw(st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True))
    return make_config(
        GridConfig,
        {
            "axes": {name: tuple(map(_frozen, levels)) for name, levels in settings.items()},
            "ranges": {},
            "fixed": {"dataset": "digits"},
            "seeds": tuple(seeds),
        },
    )


def _frozen(level: Any) -> Any:
    return tuple(level) if isinstance(level, list) else level


def runs_of(grid: GridConfig, name: str = "g") -> tuple[GridRun, ...]:
    return expand(grid, name=name, max_runs=10_000)


@given(grids())
def test_a_grid_has_every_combination_once_with_a_name_of_its_own(grid: GridConfig) -> None:
    runs = runs_of(grid)
    count = len(grid.seeds)
    for levels in grid.axes.values():
        count *= len(levels)
    assert len(runs) == len({run.run for run in runs}) == len({run.config for run in runs}) == count
    assert runs == runs_of(grid)
    cells = {(*(getattr(run.config, name) for name in grid.axes), run.config.seed) for run in runs}
    assert len(cells) == count
    # The last axis is the fastest but for the seeds.
    assert [run.config.seed for run in runs[: len(grid.seeds)]] == list(grid.seeds)


@given(grids(), st.integers(10, 20))
def test_a_grid_that_grows_keeps_the_names_of_its_runs(grid: GridConfig, seed: int) -> None:
    more = grid.model_copy(update={"seeds": (seed, *grid.seeds)})
    assert {run.run for run in runs_of(grid)} <= {run.run for run in runs_of(more)}
    longer = {name: (*reversed(levels), *_further(name, levels)) for name, levels in grid.axes.items()}
    assert set(runs_of(grid)) <= set(runs_of(more.model_copy(update={"axes": longer})))


def _further(name: str, levels: tuple[Any, ...]) -> list[Any]:
    return [level for level in map(_frozen, LEVELS[name]) if level not in levels]


@given(grids(), st.integers(1, 9), st.randoms(use_true_random=False))
def test_every_run_is_in_one_stack_with_runs_that_share_its_shapes(
    grid: GridConfig, size: int, order: random.Random
) -> None:
    runs = runs_of(grid)
    made = stacks(runs, size=size)
    assert sorted(run.run for stack in made for run in stack) == sorted(run.run for run in runs)
    sizes: dict[tuple[object, ...], list[int]] = {}
    for stack in made:
        (shared,) = {tuple(getattr(run.config, name) for name in STACK_SETTINGS) for run in stack}
        sizes.setdefault(shared, []).append(len(stack))
    for of_group in sizes.values():
        assert max(of_group) <= size
        assert max(of_group) - min(of_group) <= 1
        assert len(of_group) == -(-sum(of_group) // size)
    shuffled = list(runs)
    order.shuffle(shuffled)
    assert stacks(shuffled, size=size) == made


def test_a_grids_own_data_sets_have_absolute_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"dataset": ["folder:a", "parquet:s3://b/c", "digits"], "epochs": 1}
    made = {"dataset": [f"folder:{tmp_path}/a", "parquet:s3://b/c", "digits"], "epochs": 1}
    assert given_settings(settings) == made
    assert given_settings({"dataset": "idx:a"}) == {"dataset": f"idx:{tmp_path}/a"}


def test_levels_that_are_written_in_several_ways_are_those_of_the_runs() -> None:
    settings = {"dataset": "folder:photos", "image_size": [32, "40x30"]}
    grid = read_grid(settings, seeds="1", overrides={}, source="test")
    assert grid.axes["image_size"] == ("32x32", "40x30")
    assert [run.config.image_size for run in expand(grid, name="g", max_runs=9)] == ["32x32", "40x30"]


def test_equal_seeds_stand_together_in_stacks() -> None:
    grid = read_grid(grid_settings("regularization"), seeds="3", overrides={}, source="test")
    # 16 settings with and 16 without batch norm.
    made = stacks(runs_of(grid), size=16)
    assert len(made) == 6
    assert all(len({run.config.seed for run in stack}) == 1 for stack in made)


def test_runs_of_a_stack_may_differ_in_these_settings_alone() -> None:
    assert set(TrainConfig.model_fields) - set(STACK_SETTINGS) == {
        "variant", "seed", "dropout", "weight_decay", "learning_rate", "label_smoothing", "gradient_clip_norm",
        "early_stopping_patience", "schedule", "warmup_epochs", "step_epochs", "step_factor",
    }  # fmt: skip


def test_the_stacks_with_the_most_work_come_first() -> None:
    settings = {"hidden_sizes": [[8], [128]], "epochs": [1, 4]}
    made = stacks(runs_of(read_grid(settings, seeds="3", overrides={}, source="test")), size=2)
    work = [(stack[0].config.epochs, stack[0].config.hidden_sizes[0], len(stack)) for stack in made]
    assert work == [(4, 128, 2), (4, 128, 1), (1, 128, 2), (1, 128, 1), (4, 8, 2), (4, 8, 1), (1, 8, 2), (1, 8, 1)]


def test_the_named_grids_are_what_they_are_called() -> None:
    def of(name: str) -> tuple[GridRun, ...]:
        return runs_of(read_grid(GRIDS[name], seeds=None, overrides={}, source=name))

    assert [run.config.variant for run in of("variants")] == ["baseline", "dropout", "dropout_batchnorm", "tuned"]
    cells = {(run.config.dropout, run.config.batch_norm, run.config.weight_decay) for run in of("regularization")}
    assert cells == {(p, bn, wd) for p in (0, 0.2, 0.3, 0.5) for bn in (False, True) for wd in (0, 1e-6, 1e-5, 1e-4)}
    assert {run.config.hidden_sizes for run in of("regularization")} == {(256, 128, 64)}
    assert len(of("smoke")) == 4


def test_overrides_replace_axes_and_settings() -> None:
    grid = read_grid(
        grid_settings("regularization"), seeds="3,5", overrides={"dropout": 0.4, "epochs": [1, 2]}, source="test"
    )
    assert list(grid.axes) == ["batch_norm", "weight_decay", "epochs"]
    assert (grid.fixed["dropout"], grid.seeds) == (0.4, (3, 5))


def test_a_yaml_file_may_hold_axes_ranges_seeds_and_lists_as_values(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text(
        "variant: dropout\nhidden_sizes: [[64, 32], '16']\nweight_decay: [1e-6, 0]\nseeds: [4, 2]\n"
        "gradient_clip_norm: [null, 1]\nlearning_rate: {loguniform: [1e-4, 1e-2]}\n"
    )
    grid = read_grid(grid_settings(str(file)), seeds=None, overrides={"hidden_sizes": [16, 8]}, source="test")
    assert grid.fixed == {"variant": "dropout", "hidden_sizes": (16, 8)}
    assert grid.axes == {"weight_decay": (1e-6, 0), "gradient_clip_norm": (None, 1)}
    assert (grid.ranges["learning_rate"].low, grid.seeds) == (1e-4, (4, 2))


@given(grids())
def test_a_grid_survives_json_and_yaml(grid: GridConfig) -> None:
    document = json.loads(json.dumps(grid.model_dump(mode="json")))
    assert make_config(GridConfig, document) == grid
    assert runs_of(make_config(GridConfig, document)) == runs_of(grid)
    again = read_grid(json.loads(json.dumps(written_grid(grid))), seeds=None, overrides={}, source="test")
    assert runs_of(again) == runs_of(grid)


@pytest.mark.parametrize(
    ("settings", "seeds", "message"),
    [
        ({"dropuot": 0.1}, None, "test: unknown setting 'dropuot'; did you mean dropout?"),
        ({"dropout": []}, None, "dropout: an axis needs at least one level"),
        ({"dropout": {"uniform": [0.5, 0.1]}}, None, "the low end 0.5 must lie below the high end 0.1"),
        ({"dropout": {"uniform": [0.5]}}, None, "dropout: uniform needs two ends, not 1"),
        ({"dropout": {"normal": [0, 1]}}, None, "write a range as {uniform|loguniform|randint: [low, high]}"),
        ({"learning_rate": {"loguniform": [0, 1]}}, None, "the low end 0 of loguniform must lie above 0"),
        ({"epochs": {"randint": [1.5, 3]}}, None, "the ends of randint must be whole numbers"),
        ({}, "0", "seeds='0': at least one is needed"),
        ({"dropout": [0.1, 1.5]}, None, "test: dropout=1.5: must be less than 1"),
        ({"weight_decay": -1}, None, "test: weight_decay=-1: must be greater than or equal to 0"),
        ({"dropout": [date(2026, 1, 2)]}, None, "test: dropout=datetime.date(2026, 1, 2): must be a valid number"),
        ({"dropout": {"uniform": [0, 1]}}, None, "test: dropout=1: must be less than 1"),
        ({"epochs": {"uniform": [1, 5]}}, None, "epochs: takes whole numbers, which uniform does not give"),
        ({"batch_norm": {"randint": [0, 1]}}, None, "batch_norm: a range is for one number; give a list of levels"),
        ({"hidden_sizes": {"randint": [8, 16]}}, None, "hidden_sizes: a range is for one number"),
        ({}, "a", "seeds='a': give a number of seeds, or a list such as 3,7,11"),
        ({}, "1000001", "seeds='1000001': at most 1000000; for this single seed write 1000001,"),
        ({}, "4,-1", "seeds=-1: must be greater than or equal to 0"),
        ({"seed": True}, None, "seeds=True: must be a valid integer"),
        ({}, "1,1", "seeds=[1, 1]: must be distinct"),
        ({"seed": 1, "seeds": 2}, None, "give seed or seeds, not both"),
    ],
)
def test_what_is_no_grid_is_refused(settings: dict[str, Any], seeds: str | None, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_grid(settings, seeds=seeds, overrides={}, source="test")
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"warmup_epochs": [1, 9]},
            "grid 'g' (warmup_epochs=9, seed=0): warmup_epochs=9.0: must not exceed epochs=5",
        ),
        ({"dropout": [0.1, 0.1]}, "(dropout=0.1, seed=0) and (dropout=0.1, seed=0) are the same run; leave one out"),
        ({"dropout": [0, 0.0]}, "are the same run"),
        ({"variant": ["baseline", "bsaeline"]}, "variant='bsaeline': choose one of"),
        ({"dropout": {"uniform": [0, 0.5]}}, "dropout: a range needs --search random or optuna; an axis is a list"),
    ],
)
def test_what_can_not_be_expanded_is_refused_and_named(settings: dict[str, Any], message: str) -> None:
    grid = read_grid(settings, seeds=None, overrides={}, source="test")
    with pytest.raises(ConfigError) as raised:
        runs_of(grid)
    assert message in str(raised.value)


def test_no_message_shows_the_credentials_in_a_data_sets_uri() -> None:
    with pytest.raises(ConfigError) as raised:
        read_grid({"dataset": ["digits", "parquet:s3://id:hidden@b/x"]}, seeds=None, overrides={}, source="test")
    assert str(raised.value).startswith("test: dataset: parquet='s3://***@b/x': no credentials in a URI")


def test_the_text_of_a_setting_that_is_text_is_taken_as_it_is() -> None:
    grid = read_grid({"dataset": "folder:/digits #2"}, seeds=None, overrides={}, source="test")
    assert grid.fixed == {"dataset": "folder:/digits #2"}


def test_networks_of_one_layer_stay_an_axis_when_the_grid_is_written_and_read() -> None:
    grid = read_grid({"hidden_sizes": ["16", "8"]}, seeds=None, overrides={}, source="test")
    assert written_grid(grid) == {"hidden_sizes": [[16], [8]], "seeds": [0]}
    assert read_grid(written_grid(grid), seeds=None, overrides={}, source="test") == grid


def test_the_command_lines_seeds_win_over_set_and_that_over_the_file() -> None:
    def seeds(settings: dict[str, Any], text: str | None = None, **overrides: Any) -> tuple[int, ...]:
        return read_grid(settings, seeds=text, overrides=overrides, source="test").seeds

    assert seeds({}) == (0,)
    assert seeds({"seeds": [4, 2]}) == (4, 2)
    assert seeds({"seeds": [4, 2]}, seed=5) == (5,)
    assert seeds({"seeds": [4, 2]}, "3", seed=5) == (0, 1, 2)
    assert seeds({}, "3,") == (3,)


def test_a_grid_larger_than_the_limit_is_refused_before_it_is_expanded() -> None:
    grid = read_grid({"seeds": list(range(50)), "dropout": [0.1, 0.2]}, seeds=None, overrides={}, source="test")
    with pytest.raises(ConfigError, match="grid 'g': has 100 runs, more than 99; raise --max-runs"):
        expand(grid, name="g", max_runs=99)


def test_a_name_that_its_runs_names_could_not_begin_with_is_refused() -> None:
    assert check_grid_name("a" * 32) == "a" * 32
    with pytest.raises(ConfigError, match="use at most 32 characters"):
        check_grid_name("a" * 33)
    with pytest.raises(ConfigError, match=r"grid name='\.\./x'"):
        check_grid_name("../x")


def test_an_unknown_grid_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"grid='regularisation': choose one of .*; did you mean regularization\?"):
        grid_settings("regularisation")


@pytest.mark.parametrize(
    ("written", "seeds"),
    [({"seeds": 3}, (0, 1, 2)), ({"seeds": [3]}, (3,)), ({"seeds": "3,"}, (3,)), ({"seed": 3}, (3,)), ({}, (0,))],
)
def test_seeds_in_a_file_mean_what_they_mean_as_an_option(written: dict[str, object], seeds: tuple[int, ...]) -> None:
    assert read_grid(written, seeds=None, overrides={}, source="test").seeds == seeds
