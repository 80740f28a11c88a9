"""Settings in words, such as `bn`, `dropout 0.3`, or a whole config as `dropout, weight decay 0.0001`."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mnist_ray.config.own_settings import argument_of, is_own
from mnist_ray.config.settings import TrainConfig
from mnist_ray.config.variants import VARIANTS
from mnist_ray.results.columns import SETTING_COLUMNS, column_of
from mnist_ray.setting import Setting, setting_of

_DEFAULTS = {column_of(name): field.default for name, field in TrainConfig.model_fields.items()}
_CODE_DIGITS = 8


def setting_words(row: Mapping[str, Any]) -> str:
    """Returns a row's settings without the seed in words: the variant, or the own network, and what differs from it.

    Args:
      row: of a table with setting columns; columns that it lacks have their defaults.
    """
    return named(origin(row), differences(row))


def differences(row: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a row, except the seed, that differ from its variant: setting -> value."""
    own = {**_DEFAULTS, **VARIANTS.get(row["variant"], {})}
    values = {name: row.get(name, own.get(name)) for name in SETTING_COLUMNS if name != "variant"}
    arguments = json.loads(values.pop("model_settings") or "{}") if isinstance(values["model_settings"], str) else {}
    code = values.pop("code_sha256")
    values |= {
        "code": code and code[:_CODE_DIGITS],
        **{f"model_settings.{name}": arguments[name] for name in arguments},
    }
    return {name: value for name, value in values.items() if differs(name, value, own.get(name))}


def varying_words(rows: Sequence[Mapping[str, Any]]) -> tuple[str, list[str]]:
    """Returns in words the settings that all rows share, and of each row those that vary among them; no seeds.

    Args:
      rows: of a table with setting columns.
    """
    origins, different = [origin(row) for row in rows], [differences(row) for row in rows]
    first = different[0] if rows else {}
    common = {name: first[name] for name in first if all(name in own and own[name] == first[name] for own in different)}
    varying = list(dict.fromkeys(name for own in different for name in own if name not in common))
    if len({*origins}) > 1:
        texts = [
            named(start, {name: own[name] for name in varying if name in own})
            for start, own in zip(origins, different, strict=True)
        ]
        return named(None, common), texts
    values = [{**row, **own} for row, own in zip(rows, different, strict=True)]
    texts = [named(None, {name: row[name] for name in varying if name in row}) for row in values]
    return named(origins[0] if rows else None, common), texts


def origin(row: Mapping[str, Any]) -> str:
    """Returns what a run's network comes from: a variant, or the user's own code."""
    return str(row["model"] if is_own(row["model"]) else row["variant"])


def differs(name: str, value: Any, default: Any) -> bool:
    """Tells whether a setting differs from its default; an own network is named by its origin already."""
    return json.dumps(value) != json.dumps(default) and not (name == "model" and is_own(value))


def named(
    beginning: str | None, values: Mapping[str, Any], texts: Mapping[str, Callable[[Any], str]] | None = None
) -> str:
    """Returns settings with their values, separated by commas.

    Args:
      beginning: comes first; None if nothing does.
      values: setting -> value.
      texts: setting -> how to write its values; exactly by default.
    """
    # The shortest words, such as bn, come first.
    ordered = sorted(values, key=lambda name: values[name] is not True)
    parts = [value_words(name, values[name], (texts or {}).get(name, exact_text)) for name in ordered]
    return ", ".join(parts if beginning is None else [beginning, *parts])


def setting_text(value: Any) -> str:
    """Returns a value as a user would write it on the command line, a float with six digits."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    if isinstance(value, float):
        return f"{value:g}".replace("e-0", "e-")
    return "none" if value is None else str(value)


def exact_text(value: Any) -> str:
    """Returns a value as setting_text does, with all digits if six aren't enough."""
    text = setting_text(value)
    return json.dumps(value) if isinstance(value, float) and float(text) != value else text


def value_words(name: str, value: Any, text: Callable[[Any], str] = setting_text) -> str:
    """Returns a setting with its value, such as `bn`, `no bn` or `dropout 0.3`."""
    word = _setting(name).word or words(name)
    if isinstance(value, bool):
        return word if value else f"no {word}"
    return f"{word} {value_text(name, value, text)}"


def _setting(name: str) -> Setting:
    return setting_of(TrainConfig, name) if name in TrainConfig.model_fields else Setting()


def level_words(name: str, value: Any) -> str:
    """Returns a level of a setting in a sentence, such as `batch norm`, `no batch norm` or `dropout 0.3`."""
    if isinstance(value, bool):
        return words(name) if value else f"no {words(name)}"
    return f"{words(name)} {value_text(name, value)}"


def value_text(name: str, value: Any, text: Callable[[Any], str] = setting_text) -> str:
    """Returns a value of a setting; no value as what it means."""
    return _setting(name).none_word if value is None else text(value)


def words(name: str) -> str:
    """Returns the name of a setting in words."""
    return (argument_of(name) or name).replace("_", " ")
