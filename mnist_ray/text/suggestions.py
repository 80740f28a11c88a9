"""Suggests the choice nearest to a mistyped value."""

import difflib
from collections.abc import Iterable


def did_you_mean(value: str, choices: Iterable[str]) -> str:
    """Returns '; did you mean X?' for the choice nearest to a mistyped value, or "" if none is near."""
    nearest = difflib.get_close_matches(value, list(choices), n=1)
    return f"; did you mean {nearest[0]}?" if nearest else ""
