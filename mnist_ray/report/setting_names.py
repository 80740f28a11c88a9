"""Names the settings of an evaluation by what differs, such as `bn, dropout 0.3`."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mnist_ray.config.own_settings import argument_of
from mnist_ray.config.settings import TrainConfig
from mnist_ray.config.variants import VARIANTS
from mnist_ray.errors import ConfigError
from mnist_ray.grids.grid import GridRun
from mnist_ray.results.columns import SETTING_COLUMNS, column_of, config_columns, with_own_settings
from mnist_ray.results.setting_words import differs, named, origin, setting_text

_DEFAULTS = {column_of(name): field.default for name, field in TrainConfig.model_fields.items()}
# One setting's runs: seed -> row of the metrics table.
Runs = Mapping[int, Mapping[str, Any]]


def group_settings(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Groups the rows of a metrics table by all settings except the seed.

    A name lists the settings that vary among the runs and differ from the defaults, such as `bn, dropout 0.3`; all that
    vary if none differs. With several variants, or networks of one's own, it begins with them, and lists what differs
    from the variant. If two runs have the same settings and seed, the first by name counts.

    Returns:
      Name -> seed -> row, the variants in the order of VARIANTS, then by the values.
    """
    names = varying_settings(rows)
    # Use all digits if six don't tell the values apart.
    texts = {
        name: setting_text if _num_values(name, rows, setting_text) == _num_values(name, rows) else json.dumps
        for name in names
    }
    groups: dict[str, dict[int, Mapping[str, Any]]] = {}
    several = len({origin(row) for row in rows}) > 1
    for row in sorted(rows, key=lambda row: _place(row, names)):
        groups.setdefault(_name(row, names, texts, several), {}).setdefault(row["seed"], row)
    return groups


def names_of_runs(runs: Sequence[GridRun]) -> dict[str, str]:
    """Returns run -> name of its setting among these runs; see group_settings."""
    columns = config_columns([run.config for run in runs]) | {"run": [run.run for run in runs]}
    rows = with_own_settings([dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)])
    return {row["run"]: name for name, group in group_settings(rows).items() for row in group.values()}


def varying_settings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the settings, as columns of the metrics table, that vary among the runs of one variant."""
    by_variant: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_variant.setdefault(row["variant"], []).append(row)
    columns = [*SETTING_COLUMNS, *(name for name in next(iter(rows), {}) if argument_of(name))]
    # The arguments in model_settings have columns of their own; other code is said only where the model doesn't.
    hidden = {"model_settings"} | ({"code_sha256"} if len(_code(rows)) == _num_values("model", rows) else set())
    return [
        name
        for name in columns
        if name not in hidden and any(_num_values(name, group) > 1 for group in by_variant.values())
    ]


def _name(
    row: Mapping[str, Any], names: Sequence[str], texts: Mapping[str, Callable[[Any], str]], several: bool
) -> str:
    own = VARIANTS.get(row["variant"], {}) if several else {}
    values = {name: row[name] for name in names if not (argument_of(name) and row[name] is None)}
    differing = {
        name: value for name, value in values.items() if differs(name, value, own.get(name, _DEFAULTS.get(name)))
    }
    used = differing if differing or several else values
    return named(origin(row) if several or not used else None, used, texts)


def _code(rows: Sequence[Mapping[str, Any]]) -> set[tuple[str, str | None]]:
    """Returns each network with its code."""
    return {(row["model"], row["code_sha256"]) for row in rows}


def _num_values(name: str, rows: Sequence[Mapping[str, Any]], text: Callable[[Any], str] = json.dumps) -> int:
    return len({text(row[name]) for row in rows})


def _place(row: Mapping[str, Any], names: Sequence[str]) -> tuple[Any, ...]:
    order = list(VARIANTS)
    variant = order.index(row["variant"]) if row["variant"] in order else len(order)
    return variant, row["variant"], [_order(row[name]) for name in names], row["seed"], row["run"]


def _order(value: Any) -> tuple[bool, str, Any]:
    # An argument of the user's own network may be a number in one run and text in another.
    is_number = isinstance(value, int | float)
    return value is not None, "" if is_number else type(value).__name__, value


def find_setting(groups: Mapping[str, Runs], name: str) -> str:
    """Returns the setting with this name, or the only setting with this variant.

    Raises:
      ConfigError: no such setting, or several.
    """
    if name in groups:
        return name
    matching = [label for label, runs in groups.items() if next(iter(runs.values()))["variant"] == name]
    if len(matching) == 1:
        return matching[0]
    what = f"{len(matching)} settings have this variant" if matching else "no such setting in the evaluation"
    labels = ", ".join(repr(label) for label in matching or groups)
    raise ConfigError(f"--baseline {name!r}: {what}; give one of {labels}")
