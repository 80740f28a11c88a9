"""Grids: every combination of some settings' values with every seed, and their division into stacks.

Imports neither torch nor ray: the launcher lists grids without them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from math import ceil, prod
from pathlib import Path
from typing import Any, get_origin

from mnist_ray.config.names import MAX_GRID_NAME, check_name
from mnist_ray.config.own_settings import argument_of, flat, setting_named
from mnist_ray.config.settings import STACK_SETTINGS, GridConfig, Range, TrainConfig, check_setting, make_config
from mnist_ray.config.variants import variant_config
from mnist_ray.config.yaml_files import parse_value, read_yaml
from mnist_ray.errors import ConfigError
from mnist_ray.setting import did_you_mean_setting
from mnist_ray.text.suggestions import did_you_mean

MAX_SEEDS = 1_000_000
_RANGE_KINDS = ("uniform", "loguniform", "randint")

_SEED_SETTINGS = ("seed", "seeds")
_WHOLE_NUMBERS = (int, int | None)
_NUMBERS = (float, float | None)

# As in a YAML file: a list is an axis.
GRIDS: dict[str, dict[str, Any]] = {
    "variants": {"variant": ["baseline", "dropout", "dropout_batchnorm", "tuned"]},
    # The tutorial's regularized network, 784-256-128-64-10, in every cell.
    "regularization": {
        "variant": "dropout",
        "dropout": [0.0, 0.2, 0.3, 0.5],
        "batch_norm": [False, True],
        "weight_decay": [0.0, 1e-6, 1e-5, 1e-4],
    },
    "smoke": {
        "dataset": "digits",
        "epochs": 2,
        "hidden_sizes": [32, 16],
        "dropout": [0.0, 0.3],
        "batch_norm": [False, True],
    },
}


@dataclass(frozen=True)
class GridRun:
    """One run of a grid; its name is the same in every grid of that name."""

    run: str
    config: TrainConfig


def check_grid_name(value: str) -> str:
    """Returns a grid's name if its runs' names can begin with it.

    Raises:
      ConfigError: the name breaks the rule.
    """
    if len(check_name(value, "grid name")) > MAX_GRID_NAME:
        raise ConfigError(f"grid name={value!r}: use at most {MAX_GRID_NAME} characters; run names begin with it")
    return value


def grid_settings(name_or_path: str) -> dict[str, Any]:
    """Returns the settings of a named grid, or of a YAML file (a name with '/' or ending in .yaml or .yml).

    Raises:
      ConfigError: the grid is unknown, or the file can't be read.
    """
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        return read_yaml(Path(name_or_path), "--grid")
    if name_or_path not in GRIDS:
        advice = did_you_mean(name_or_path, GRIDS)
        raise ConfigError(f"grid={name_or_path!r}: choose one of {', '.join(GRIDS)}, or a FILE.yaml{advice}")
    return GRIDS[name_or_path]


def read_grid(
    settings: Mapping[str, Any],
    *,
    seeds: str | None,
    overrides: Mapping[str, Any],
    source: str,
    default_seeds: tuple[int, ...] = (0,),
) -> GridConfig:
    """Reads a grid: a list is an axis, {uniform: [a, b]} a range, any other value a setting of every run.

    Args:
      settings: setting -> value, as in a YAML file; seed is a number or a list, seeds a count or a list.
      seeds: "5" for the seeds 0 to 4, "3,7" for these two, None to take the settings' seeds.
      overrides: settings that replace others.
      default_seeds: if none are given.

    Raises:
      ConfigError: an unknown setting, or an invalid level, range or value.
    """
    axes: dict[str, tuple[Any, ...]] = {}
    ranges: dict[str, Range] = {}
    fixed: dict[str, Any] = {}
    for name, value in flat({**flat(settings), **flat(overrides)}).items():
        if name in _SEED_SETTINGS:
            continue
        if setting_named(name) not in TrainConfig.model_fields:
            raise ConfigError(f"{source}: unknown setting {name!r}{did_you_mean_setting(TrainConfig, name)}")
        if isinstance(value, Mapping):
            ranges[name] = _range(name, value, source)
        elif is_axis(name, value):
            axes[name] = tuple(_level(name, level, source) for level in value)
        else:
            fixed[name] = _level(name, value, source)
    chosen = _seeds(seeds, source) if seeds is not None else _given_seeds(overrides, settings, source) or default_seeds
    document = {"axes": axes, "ranges": ranges, "fixed": fixed, "seeds": chosen}
    return make_config(GridConfig, document, source)


def is_axis(name: str, value: Any) -> bool:
    """Tells whether a value of a setting is a list of its levels."""
    if not isinstance(value, list | tuple):
        return False
    if get_origin(_type_of(name)) is not tuple:
        return True
    # For hidden_sizes, [256, 128] is one value; [[256, 128], [64]] and ["256,128", "64"] are two.
    return all(isinstance(level, list | tuple | str) for level in value)


def _type_of(name: str) -> Any:
    """Returns a setting's type; Any for an argument of the user's own network."""
    return Any if argument_of(name) else TrainConfig.model_fields[name].annotation


def _level(name: str, value: Any, source: str) -> Any:
    annotation = _type_of(name)
    # A number may be quoted, but a text setting, for instance a folder, must stay as it is.
    if isinstance(value, str) and annotation not in (str, Any):
        value = parse_value(value)
    # Make a single layer a list: two of them, written as [16, 8], would be read back as one network.
    if get_origin(annotation) is tuple and type(value) is int:
        value = (value,)
    # Check before any message shows the value: a data set's URI may hold credentials.
    checked = check_setting(name, value, source)
    # YAML 1.2 reads yes and no as text, and an image's size as a number.
    return checked if annotation is bool or isinstance(checked, str) else value


def _range(name: str, value: Mapping[Any, Any], source: str) -> Range:
    kinds = list(value)
    if len(kinds) != 1 or kinds[0] not in _RANGE_KINDS or not isinstance(value[kinds[0]], list | tuple):
        raise ConfigError(
            f"{source}: {name}={dict(value)!r}: write a range as {{{'|'.join(_RANGE_KINDS)}: [low, high]}}"
        )
    ends = value[kinds[0]]
    if len(ends) != 2:
        raise ConfigError(f"{source}: {name}: {kinds[0]} needs two ends, not {len(ends)}")
    checked = make_config(Range, {"kind": kinds[0], "low": ends[0], "high": ends[1]}, f"{source}: {name}")
    annotation = _type_of(name)
    if annotation not in (*_WHOLE_NUMBERS, *_NUMBERS, Any):
        raise ConfigError(f"{source}: {name}: a range is for one number; give a list of levels")
    if annotation in _WHOLE_NUMBERS and checked.kind != "randint":
        raise ConfigError(f"{source}: {name}: takes whole numbers, which {checked.kind} does not give; write randint")
    for end in ends:
        check_setting(name, end, source)
    return checked


def _seeds(text: str, source: str) -> tuple[int, ...]:
    parts = text.removesuffix(",").split(",")
    try:
        numbers = tuple(int(part) for part in parts)
    except ValueError:
        raise ConfigError(f"{source}: seeds={text!r}: give a number of seeds, or a list such as 3,7,11") from None
    if len(numbers) > 1 or text.endswith(","):
        return numbers
    if numbers[0] < 1:
        raise ConfigError(f"{source}: seeds={text!r}: at least one is needed")
    if numbers[0] > MAX_SEEDS:
        raise ConfigError(f"{source}: seeds={text!r}: at most {MAX_SEEDS}; for this single seed write {text},")
    return tuple(range(numbers[0]))


def _given_seeds(overrides: Mapping[str, Any], settings: Mapping[str, Any], source: str) -> tuple[Any, ...] | None:
    for given in (overrides, settings):
        values = [given[name] for name in _SEED_SETTINGS if name in given]
        if len(values) > 1:
            raise ConfigError(f"{source}: give seed or seeds, not both")
        if values and (isinstance(values[0], str) or ("seeds" in given and type(values[0]) is int)):
            # As with --seeds, 5 is a count.
            return _seeds(str(values[0]), source)
        if values:
            return tuple(values[0]) if isinstance(values[0], list | tuple) else (values[0],)
    return None


def shown_settings(grid: GridConfig) -> tuple[str, ...]:
    """Returns the settings that distinguish the runs of a grid."""
    return (*grid.axes, *grid.ranges) or ("variant",)


def written_grid(grid: GridConfig) -> dict[str, Any]:
    """Returns a grid in the form that read_grid reads, for a YAML file."""
    document = grid.model_dump(mode="json")
    ranges = {name: {each["kind"]: [each["low"], each["high"]]} for name, each in document["ranges"].items()}
    return {**document["fixed"], **ranges, **document["axes"], "seeds": document["seeds"]}


def expand(grid: GridConfig, *, name: str, max_runs: int) -> tuple[GridRun, ...]:
    """Returns all runs of a grid in the order of the axes' levels; the seeds vary fastest, then the last axis.

    Raises:
      ConfigError: too many runs, a duplicate run, an invalid setting, or ranges.
    """
    if grid.ranges:
        raise ConfigError(f"{next(iter(grid.ranges))}: a range needs --search random or optuna; an axis is a list")
    check_count(prod(len(levels) for levels in grid.axes.values()) * len(grid.seeds), name, max_runs)
    return distinct_runs(
        [
            (dict(zip(grid.axes, levels, strict=True)), seed)
            for levels in product(*grid.axes.values())
            for seed in grid.seeds
        ],
        grid,
        name=name,
    )


def check_count(count: int, name: str, max_runs: int) -> None:
    """Raises ConfigError for more runs than a limit against typing mistakes."""
    if count > max_runs:
        raise ConfigError(f"grid {name!r}: has {count} runs, more than {max_runs}; raise --max-runs if intended")


def distinct_runs(
    cells: Sequence[tuple[Mapping[str, Any], int]], grid: GridConfig, *, name: str
) -> tuple[GridRun, ...]:
    """Returns the runs of some cells (settings and seed) of a grid.

    Raises:
      ConfigError: an invalid setting, or a duplicate run.
    """
    runs: dict[str, GridRun] = {}
    cell_of: dict[str, str] = {}
    for settings, seed in cells:
        words = ", ".join(f"{setting}={json.dumps(value)}" for setting, value in {**settings, "seed": seed}.items())
        chosen = {**grid.fixed, **settings, "seed": seed}
        try:
            config = variant_config(chosen.pop("variant", "baseline"), chosen)
        except ConfigError as error:
            raise ConfigError(f"grid {name!r} ({words}): {str(error).removeprefix('config: ')}") from None
        run = run_name(name, config)
        if run in runs:
            raise ConfigError(f"grid {name!r}: ({cell_of[run]}) and ({words}) are the same run; leave one out")
        runs[run], cell_of[run] = GridRun(run, config), words
    return tuple(runs.values())


def run_name(grid_name: str, config: TrainConfig) -> str:
    """Returns a run's name, which depends only on the grid's name and the config, so that a grid can grow."""
    return f"{grid_name}-s{config.seed}-{config.config_hash()[:10]}"


def stacks(runs: Sequence[GridRun], *, size: int) -> tuple[tuple[GridRun, ...], ...]:
    """Divides runs into as few stacks of at most `size` as possible, with sizes that differ by at most one run.

    Runs with equal seeds stay together. The result does not depend on the order of the runs. Stacks with more weights,
    epochs or runs come first, so that the last stacks to end are short.
    """
    groups: dict[tuple[object, ...], list[GridRun]] = {}
    for run in runs:
        groups.setdefault(tuple(getattr(run.config, name) for name in STACK_SETTINGS), []).append(run)
    made = []
    for group in groups.values():
        # Runs with the same seed share batches and noise.
        ordered = sorted(group, key=lambda run: (run.config.seed, run.config.canonical_json()))
        count = ceil(len(ordered) / size)
        edges = [round(index * len(ordered) / count) for index in range(count + 1)]
        made += [tuple(ordered[start:end]) for start, end in pairwise(edges)]
    return tuple(sorted(made, key=lambda stack: (-_work(stack), stack[0].run)))


def _work(stack: Sequence[GridRun]) -> int:
    config = stack[0].config
    weights = prod(config.hidden_sizes) if config.model == "cnn" else sum(config.hidden_sizes)
    return len(stack) * config.epochs * weights * (1 if config.augmentation == "none" else 2)
