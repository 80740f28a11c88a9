"""Checks of arguments that no config has; on the command line, its options check them."""

import math
from collections.abc import Iterable

from mnist_ray.errors import ConfigError
from mnist_ray.text.suggestions import did_you_mean


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raises ConfigError for a value that is no choice."""
    choices = list(choices)
    if value not in choices:
        raise ConfigError(f"{name}={value!r}: choose one of {', '.join(choices)}{did_you_mean(str(value), choices)}")


def check_counts(least: int, **counts: int | None) -> None:
    """Raises ConfigError for an argument that is given and no whole number from `least`."""
    for name, value in counts.items():
        if value is not None and (type(value) is not int or value < least):
            raise ConfigError(f"{name}={value!r}: must be a whole number from {least}")


def share_of_points(name: str, points: float) -> float:
    """Returns points of accuracy as a fraction.

    Raises:
      ConfigError: they are not above 0 and at most 100.
    """
    if isinstance(points, bool) or not isinstance(points, int | float) or not 0 < points <= 100:
        raise ConfigError(f"{name}={points!r}: must be points of accuracy, above 0 and at most 100")
    return points / 100


def check_share(name: str, value: float) -> None:
    """Raises ConfigError for an argument that is no number above 0 and at most 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1 or math.isnan(value):
        raise ConfigError(f"{name}={value!r}: must be a number above 0 and at most 1")
