"""Breaks text between words."""

import textwrap


def wrapped(text: str, width: int, *, name: str = "", indent: int = 0) -> list[str]:
    """Returns text in lines of at most `width` columns; a longer word, such as a URI, stays whole.

    Args:
      name: comes first.
      indent: columns that the name takes, and by which the other lines are indented.
    """
    first = f"{name:<{indent}}"
    lines = textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return lines or [first]
