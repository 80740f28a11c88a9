"""Suggests the choice nearest to a mistyped value."""

import difflib
from collections.abc import Iterable, Mapping


def did_you_mean(value: str, choices: Iterable[str], usual: Mapping[str, str] | None = None) -> str:
    """Returns '; did you mean X?' for the choice nearest to a mistyped value, or "" if none is near."""
    near = nearest(value, choices, usual)
    return f"; did you mean {near}?" if near else ""


def nearest(value: str, choices: Iterable[str], usual: Mapping[str, str] | None = None) -> str | None:
    """Returns the choice nearest to a mistyped value, None if none is near; ignores case.

    Args:
      usual: other name of a choice -> the choice.
    """
    choice_of = {name.lower(): choice for name, choice in {**(usual or {}), **{each: each for each in choices}}.items()}
    names = difflib.get_close_matches(value.lower(), choice_of, n=1)
    return choice_of[names[0]] if names else None
