"""Names that are safe as those of folders: of runs, grids, variants and evaluations."""

import re

from mnist_ray.errors import ConfigError

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
EVALUATION_PATTERN = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


def check_name(value: str, setting: str = "name") -> str:
    """Returns the name of a run, grid or variant if it is safe as a folder name.

    Raises:
      ConfigError: the name breaks the rule.
    """
    if not NAME_PATTERN.fullmatch(value):
        raise ConfigError(
            f"{setting}={value!r}: use 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit"
        )
    return value


def check_evaluation_name(value: str) -> str:
    """Returns the name of an evaluation if it is valid.

    Raises:
      ConfigError: the name breaks the rule.
    """
    if not EVALUATION_PATTERN.fullmatch(value):
        raise ConfigError(
            f"evaluation={value!r}: not a name as `mnist-ray evaluations` lists them: letters, digits, '.', '_' or '-'"
        )
    return value
