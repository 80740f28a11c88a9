"""Escapes text from files, tables and other people's jobs, so that a terminal shows it and doesn't obey it."""

import os
import re
import sys
from typing import TextIO

from mnist_ray.text.meanwhile import meanwhile
from mnist_ray.text.wrapping import wrapped

# Control characters, some of which are terminal commands; direction marks, which make text read as something else; and
# surrogates and non-characters, which UTF-8 or XML can't encode.
_SPECIAL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_COLOR = re.compile(r"(\x1b\[[0-9;]*m)")


def printable(text: str, *, keep: str = "") -> str:
    r"""Escapes characters that a terminal would obey as in a Python string: \x1b, \n, \u202e.

    Args:
      text: any text.
      keep: characters to leave unescaped.
    """
    return _SPECIAL.sub(lambda match: match[0] if match[0] in keep else _escaped(match[0]), text)


def printable_log(text: str) -> str:
    """Escapes a program's output for a terminal, except line breaks, tabs, carriage returns and colours."""
    parts = _COLOR.split(text)
    return "".join(part if place % 2 else printable(part, keep="\n\t\r") for place, part in enumerate(parts))


def say_line(line: str) -> None:
    """Says one escaped line in a single call, see `meanwhile`: print's separate newlines interleave between threads.

    A terminal gets it broken between words.
    """
    stream, text = meanwhile(), printable(line)
    stream.write(f"{fitting(text, stream) if stream.isatty() else text}\n")
    stream.flush()


def fitting(text: str, terminal: TextIO) -> str:
    """Returns a text whose lines are broken between words where a terminal would break them anywhere."""
    width = _columns(terminal)
    lines = (wrapped(line, width) if len(line) > width else [line] for line in text.split("\n"))
    return "\n".join(part for parts in lines for part in parts)


def _columns(terminal: TextIO) -> int:
    """Returns the width of a terminal; of one that doesn't know its own, no limit."""
    try:
        return os.get_terminal_size(terminal.fileno()).columns or sys.maxsize
    except (OSError, ValueError):
        return sys.maxsize


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
