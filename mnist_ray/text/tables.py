"""Tables on the terminal."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mnist_ray.text.escape import printable

# Columns of what is read as text: the lines of compare and report, wherever they are printed.
READING_WIDTH = 100


def print_text(text: str) -> None:
    """Prints text in lines of at most READING_WIDTH columns, broken between words; escapes terminal commands.

    A longer word, such as a URI, stays whole.
    """
    print("\n".join(_lines(printable(text), READING_WIDTH)))


def _lines(text: str, width: int, *, name: str = "", indent: int = 0) -> list[str]:
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


def console() -> Console:
    """Returns a console on stdout, 200 columns wide for a pipe or file instead of 80."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=200)


def print_rows(rows: Sequence[dict[str, Any]], *, as_json: bool, empty: str) -> None:
    """Prints one line per row, or JSON."""
    if as_json:
        print(json.dumps(list(rows), indent=1))
    elif not rows:
        print(empty)
    else:
        names = list(dict.fromkeys(name for row in rows for name in row))
        print_table(names, [[cell(row.get(name)) for name in names] for row in rows])


def print_table(
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str | None = None,
    width: int | None = None,
    keeps_words: bool = False,
) -> None:
    """Prints a table with columns of numbers aligned to the right; escapes markup and terminal commands.

    A table that is too wide has its names in several lines and its columns close together, and then its texts folded.
    A table of which the numbers don't fit, or more than 1.5 times as wide as the terminal, is printed as a list of
    names and values for each row.

    Args:
      width: most columns, if the terminal has more.
      keeps_words: whether texts may be folded only between words, so that a name can be copied.
    """
    out = console()
    if width is not None and width < out.width:
        out.width = width
    names, rows = list(map(printable, names)), [list(map(printable, row)) for row in rows]
    columns = [[row[position] for row in rows] for position in range(len(names))]
    is_wide = _width(names, columns) > out.width
    if is_wide:
        names = [name.replace(" ", "\n") for name in names]
    # A number must not be folded.
    is_whole = [not any(map(str.isalpha, "".join(cells))) for cells in columns]
    parts = [[part for cell in cells for part in cell.split()] if keeps_words else [] for cells in columns]
    numbers = [cells if whole else part for cells, part, whole in zip(columns, parts, is_whole, strict=True)]
    if _width(names, numbers, gap=1) > out.width or _width(names, columns, gap=2) > 1.5 * out.width:
        _print_records(out, [name.replace("\n", " ") for name in names], rows, title)
        return
    table = _empty_table(title, gap=0 if is_wide else 1)
    for name, cells, part, whole in zip(names, columns, parts, is_whole, strict=True):
        numeric = all(map(_is_number, cells))
        table.add_column(
            Text(name),
            justify="right" if numeric else "left",
            overflow="fold",
            no_wrap=whole or part == cells,
            min_width=max(map(len, part), default=None),
        )
    for row in rows:
        # rich would parse a plain str as markup, and fail on brackets that aren't.
        table.add_row(*map(Text, row))
    out.print(table)


def _empty_table(title: str | None, *, gap: int) -> Table:
    text = None if title is None else Text(printable(title), style="bold")
    return Table(
        box=SIMPLE_HEAD, title=text, title_justify="left", title_style="", pad_edge=False, padding=(0, gap)
    )  # fmt: skip


def _width(names: Sequence[str], columns: Sequence[Sequence[str]], *, gap: int = 3) -> int:
    """Returns the width of columns with these names, of one line or more, and texts."""
    each = ([*name.split("\n"), *cells] for name, cells in zip(names, columns, strict=True))
    return sum(max(map(len, texts)) + gap for texts in each)


def print_fields(fields: Mapping[str, str | None]) -> None:
    """Prints names and their texts in lines of at most READING_WIDTH columns, leaving out those without a text."""
    given = {name: text for name, text in fields.items() if text}
    out = console()
    out.width = min(out.width, READING_WIDTH)
    _print_records(out, list(given), [[printable(text) for text in given.values()]], None)


def _print_records(out: Console, names: Sequence[str], rows: Sequence[Sequence[str]], title: str | None) -> None:
    if title:
        title = "\n".join(_lines(printable(title), out.width))
        out.print(title, style="bold", markup=False, emoji=False, highlight=False, soft_wrap=True)
    indent = max(map(len, names)) + 2
    for row in rows:
        pairs = zip(names, row, strict=True)
        lines = [line for name, value in pairs for line in _lines(value, out.width, name=name, indent=indent)]
        out.print("\n".join(lines) + "\n", markup=False, emoji=False, highlight=False, soft_wrap=True)


def cell(value: object) -> str:
    """Returns a value as short text; None becomes a dash."""
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text == "-"
    return True
