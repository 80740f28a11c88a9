"""The arguments of the function that makes the user's own network, as one setting of a config."""

import json
import math
from collections.abc import Mapping
from typing import Any

from pydantic import PlainValidator

from mnist_ray.text.suggestions import did_you_mean

# The keys of networks.BUILDERS, which needs torch; a test compares them.
MODELS = ("mlp", "cnn", "resnet")
# Settings that only these networks use.
OF_BUILT_IN = ("hidden_sizes", "dropout", "dropout_layers", "batch_norm")
_FIELD = "model_settings"


class OwnSettings(dict[str, Any]):
    """Argument -> its value, a scalar or a list of scalars; equal if their JSON is. Never changed."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(self.text())

    def __eq__(self, other: object) -> bool:
        # For a dict, 1, 1.0 and True are equal; for a network they need not be.
        return isinstance(other, OwnSettings) and self.text() == other.text()

    def __ne__(self, other: object) -> bool:
        return not self == other

    def text(self) -> str:
        """Returns the settings as JSON with sorted keys and no spaces."""
        return json.dumps(self, sort_keys=True, separators=(",", ":"))

    def words(self) -> str:
        """Returns the settings in words, such as 'width=64 depth=2'."""
        return " ".join(f"{name}={json.dumps(value)}" for name, value in self.items())

    def arguments(self) -> dict[str, Any]:
        """Returns a copy, lists included, that a function may change."""
        return dict(json.loads(self.text()))


def _checked(value: Any) -> OwnSettings:
    if not isinstance(value, Mapping):
        raise ValueError("must be a mapping such as {width: 64}")
    for name, given in value.items():
        if not isinstance(name, str) or not name.isidentifier():
            raise ValueError(f"{name!r} is no name of an argument")
        for each in given if isinstance(given, list | tuple) else [given]:
            if not isinstance(each, str | int | float | None) or (isinstance(each, float) and not math.isfinite(each)):
                raise ValueError(f"{name}: must be a number, text, true, false, null or a list of these")
    return OwnSettings({name: list(each) if isinstance(each, tuple) else each for name, each in value.items()})


OwnSettingsField = PlainValidator(_checked)


def is_own(model: str) -> bool:
    """Tells whether a value of the setting model names a network of the user's own."""
    return ":" in model


def check_model(value: str) -> str:
    """Returns a value of the setting model if it names a network; else raises ValueError."""
    if value not in MODELS and not all(value.rpartition(":")[::2]):
        *names, last = map(repr, MODELS)
        raise ValueError(
            f"must be {', '.join(names)} or {last}, or your own: FILE.py:FUNCTION or package.module:FUNCTION"
            f"{did_you_mean(value, MODELS)}"
        )
    return value


def check_network_settings(model: str, arguments: OwnSettings, changed: Mapping[str, Any]) -> None:
    """Raises ValueError for settings of the other kind of network.

    Args:
      changed: those of OF_BUILT_IN that differ from their defaults.
    """
    if not is_own(model) and arguments:
        raise ValueError(f"model_settings={arguments}: model={model!r} takes none; your own network does")
    for name, value in changed.items() if is_own(model) else ():
        raise ValueError(
            f"{name}={value!r}: only the built-in networks use it; leave it out, or the variant that sets it, and give "
            f"{model} its own as model_settings.{name}"
        )


def argument_of(name: str) -> str | None:
    """Returns the argument that a dotted name such as model_settings.width means; None for any other name."""
    field, _, argument = name.partition(".")
    return argument if field == _FIELD and argument else None


def setting_named(name: str) -> str:
    """Returns the setting that a name belongs to: model_settings for model_settings.width."""
    return _FIELD if argument_of(name) else name


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings with each argument under a dotted name of its own; a later one replaces an earlier one."""
    flattened: dict[str, Any] = {}
    for name, value in settings.items():
        if name == _FIELD and isinstance(value, Mapping):
            flattened |= {f"{_FIELD}.{argument}": each for argument, each in value.items()}
        else:
            flattened[name] = value
    return flattened


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings as a config takes them, the reverse of `flat`."""
    arguments = {argument: value for name, value in settings.items() if (argument := argument_of(name))}
    rest = {name: value for name, value in settings.items() if not argument_of(name)}
    return {**rest, _FIELD: arguments} if arguments else rest
