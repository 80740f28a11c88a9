"""The nearest choice to a mistyped one."""

import difflib
from collections.abc import Iterable


def did_you_mean(value: str, choices: Iterable[str]) -> str:
    """Returns '; did you mean X?' for the choice nearest to a mistyped value, or nothing."""
    nearest = difflib.get_close_matches(value, list(choices), n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""
