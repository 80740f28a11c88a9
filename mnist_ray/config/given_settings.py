"""Settings as people give them, on a command line, in a file or in Python, made those of a config."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mnist_ray.config.own_code import use_model
from mnist_ray.config.own_settings import flat
from mnist_ray.config.settings import TrainConfig
from mnist_ray.config.variants import variant_config

# One slash is enough: check_uri reports a missing second one.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def given_config(settings: Mapping[str, Any]) -> TrainConfig:
    """Returns the config of a run, with the variant's settings where none are given.

    Raises:
      ConfigError, CheckpointError: see variant_config and use_model.
    """
    chosen = given_settings(flat(settings))
    return variant_config(chosen.pop("variant", "baseline"), chosen)


def given_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings of a run or a grid with absolute paths of data, and own networks as configs name them.

    Gives the code of the networks.

    Raises:
      ConfigError: there is no such code.
    """
    changed = {"dataset": absolute_dataset, "model": use_model}
    return {name: _each(changed[name], value) if name in changed else value for name, value in settings.items()}


def _each(change: Callable[[str], str], value: Any) -> Any:
    """Changes a setting's text, or each level of its axis."""
    if isinstance(value, list | tuple):
        return [_each(change, level) for level in value]
    return change(value) if isinstance(value, str) else value


def absolute_dataset(dataset: str) -> str:
    """Makes the path of the user's own data set absolute: Ray's workers run in other folders."""
    kind, _, place = dataset.partition(":")
    if not place or _SCHEME.match(place):
        return dataset
    # A shell doesn't expand the '~' in folder:~/x; Path.expanduser raises for an unknown user.
    return f"{kind}:{Path(os.path.expanduser(place)).absolute()}"
