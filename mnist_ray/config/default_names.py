"""Default names, which say what was trained: of a run `dropout-digits-wd1e-4-s0`, of a grid `regularization-photos`."""

import hashlib
import json
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from mnist_ray.config.names import MAX_GRID_NAME, MAX_NAME, dataset_name, name_of
from mnist_ray.config.settings import GridConfig, TrainConfig
from mnist_ray.config.variants import VARIANTS
from mnist_ray.setting import setting_of

_DIGITS = 8
_LONGEST_ORIGIN = 20
_OF_NETWORK = ("variant", "model", "model_settings", "code_sha256")
# These have their own places in a name.
_NOT_WORDS = ("variant", "dataset", "seed", "model_settings", "code_sha256")


def default_run_name(config: TrainConfig) -> str:
    """Returns the default name of a run, such as dropout-mnist-s0 or dropout-digits-wd1e-4-s0.

    It has the settings that differ from the variant, in words or, if these are too long, as a hash. Configs that differ
    have different names, except those of data sets that are called alike: see `dataset_name`. The name of one's own
    network has a hash of it, with its code and arguments.
    """
    seed, different = f"s{config.seed}", _differences(config)
    words = [_word(name, value) for name, value in different.items() if name != "model" or not config.is_own_network]
    origin, network = config.variant, []
    if config.is_own_network:
        origin = name_of(config.model.rpartition(":")[2], _LONGEST_ORIGIN)
        network = [_hash({name: value for name, value in _plain(config).items() if name in _OF_NETWORK})]
        words += [name_of(f"{name}{_text(value)}") for name, value in config.model_settings.items()]
    room = MAX_NAME - len("-".join([origin, "", *network, "x" * _DIGITS, seed]))
    beginning = [origin, dataset_name(config.dataset)[:room].rstrip("-._")]
    name = "-".join([*beginning, *words, *network, seed])
    return name if len(name) <= MAX_NAME else "-".join([*beginning, _hash(different), *network, seed])


def default_grid_name(grid_name: str, grid: GridConfig) -> str:
    """Returns the default name of a grid, such as regularization-digits.

    Args:
      grid_name: a named grid, or the path of a file.
      grid: its settings.
    """
    datasets = grid.axes.get("dataset") or [grid.fixed.get("dataset", TrainConfig.model_fields["dataset"].default)]
    parts = [name_of(Path(grid_name).stem, MAX_GRID_NAME), *map(dataset_name, map(str, datasets))]
    return "-".join(parts)[:MAX_GRID_NAME].rstrip("-._")


def unnamed_grid(grid: GridConfig) -> str:
    """Returns what a grid is called that is neither a named one nor a file: its variant and the settings that vary."""
    # The last part of model_settings.width.
    varying = [name.rpartition(".")[2] for name in (*grid.axes, *grid.ranges)]
    variant = grid.fixed.get("variant", None if varying else "baseline")
    return "-".join(dict.fromkeys(part for part in (variant, *varying) if part))


def _plain(config: TrainConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")


def _differences(config: TrainConfig) -> dict[str, Any]:
    """Returns the settings that differ from the variant, except those of _NOT_WORDS: setting -> JSON value."""
    variant = _plain(TrainConfig.model_validate(VARIANTS.get(config.variant, {})))
    plain = _plain(config)
    return {name: plain[name] for name in plain if name not in _NOT_WORDS and plain[name] != variant[name]}


def _word(name: str, value: Any) -> str:
    """Returns a setting in a name: bn, no-bn, wd1e-4, hidden256x128, cosine. No two settings begin alike."""
    setting = setting_of(TrainConfig, name)
    word = setting.short or setting.word or name
    if value is None or value is False or value == "none":
        return f"no-{word}"
    if value is True:
        return word
    # A choice, such as cosine, says by itself what it is of; a size doesn't.
    return value if isinstance(value, str) and value[0].isalpha() else word + _text(value)


def _text(value: Any) -> str:
    """Returns a value in as few letters as it takes: 0.3, 1e-4, 64, 256x128."""
    if isinstance(value, list):
        return "x".join(map(_text, value))
    if isinstance(value, float):
        return min(repr(value).removesuffix(".0"), f"{Decimal(repr(value)).normalize():e}".replace("+", ""), key=len)
    return str(value)


def _hash(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:_DIGITS]
