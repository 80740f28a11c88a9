"""Suggests the choice nearest to a mistyped value."""

import difflib
from collections.abc import Iterable, Mapping


def did_you_mean(value: str, choices: Iterable[str], usual: Mapping[str, str] | None = None) -> str:
    """Returns '; did you mean X?' for the choice nearest to a mistyped value, or "" if none is near."""
    near = nearest(value, choices, usual)
    return f"; did you mean {near}?" if near else ""


def nearest(value: str, choices: Iterable[str], usual: Mapping[str, str] | None = None) -> str | None:
    """Returns the choice nearest to a mistyped value, or the only one that begins with it; None if there is none.

    Ignores case.

    Args:
      usual: other name of a choice -> the choice.
    """
    choice_of = {name.lower(): choice for name, choice in {**(usual or {}), **{each: each for each in choices}}.items()}
    names = difflib.get_close_matches(value.lower(), choice_of, n=1)
    names = names or [name for name in choice_of if value and name.startswith(value.lower())]
    return choice_of[names[0]] if len(names) == 1 else None
