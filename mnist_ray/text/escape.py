"""Text from elsewhere (files, tables, other people's jobs) in a form that a terminal shows and doesn't obey."""

import re
import sys

# Control characters, of which a terminal takes some for commands; marks that turn the direction of what follows them,
# so that it reads as something else; and halves of characters and non-characters, which UTF-8 or XML can't have.
_SPECIAL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_COLOR = re.compile(r"(\x1b\[[0-9;]*m)")


def printable(text: str, *, keep: str = "") -> str:
    r"""Returns a text with what a terminal would obey written as in a Python string: \x1b, \n, \u202e.

    Args:
      text: any.
      keep: characters that stay as they are.
    """
    return _SPECIAL.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), text)


def printable_log(text: str) -> str:
    """Returns a program's output for a terminal: lines, tabs, progress lines and colours stay, other commands don't."""
    parts = _COLOR.split(text)
    return "".join(part if place % 2 else printable(part, keep="\n\t\r") for place, part in enumerate(parts))


def say_line(line: str) -> None:
    """Writes a line on stderr, one whatever it quotes, in one piece: print writes the end apart, and threads mix."""
    sys.stderr.write(f"{printable(line)}\n")
    sys.stderr.flush()


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
