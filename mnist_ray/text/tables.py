"""Tables on the terminal."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mnist_ray.text.escape import printable
from mnist_ray.text.wrapping import wrapped

# Columns of what is read as text: the lines of compare and report, wherever they are printed.
READING_WIDTH = 100
_LEAST_TEXT = 12
# Of a value on a line of its own.
_INDENT = 2
# Name and texts.
_Column = tuple[str, Sequence[str]]


def print_text(text: str, *, name: str = "") -> None:
    """Prints text in lines of READING_WIDTH columns, or a narrower terminal's; escapes terminal commands.

    Lines are broken between words. A longer word, such as a URI, stays whole.

    Args:
      name: comes first; the other lines are indented by as much.
    """
    print("\n".join(wrapped(printable(text), min(READING_WIDTH, console().width), name=name, indent=len(name))))


def console() -> Console:
    """Returns a console on stdout, READING_WIDTH columns wide for a pipe or file instead of 80."""
    terminal = Console()
    return terminal if terminal.is_terminal else Console(width=READING_WIDTH)


def print_rows(rows: Sequence[dict[str, Any]], *, as_json: bool, empty: str, optional: Sequence[str] = ()) -> None:
    """Prints one line per row, or JSON; see print_table."""
    if as_json:
        print(json.dumps(list(rows), indent=1))
    elif not rows:
        print(empty)
    else:
        names = list(dict.fromkeys(name for row in rows for name in row))
        print_table(names, [[cell(row.get(name)) for name in names] for row in rows], optional=optional)


def print_table(
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str | None = None,
    width: int | None = None,
    optional: Sequence[str] = (),
    cut: str | None = None,
) -> None:
    """Prints a table with every value on one line; escapes markup and terminal commands.

    Columns of numbers are aligned to the right. A table that is too wide has its names in several lines and its columns
    close together. If that isn't enough, optional columns are left out, which a line below says. A table of which the
    other columns don't fit is printed as a list of names and values for each row; only there, a value longer than a
    line is broken, between words.

    Args:
      names: of the columns.
      width: most columns, if the terminal has more.
      optional: names of columns that may be left out, the most important first: each is there if those before leave it
        room.
      cut: an optional column whose texts are cut to the room that there is, if that is _LEAST_TEXT columns or more.
    """
    out = console()
    if width is not None and width < out.width:
        out.width = width
    names, rows = list(map(printable, names)), [list(map(printable, row)) for row in rows]
    columns = [(name, [row[place] for row in rows]) for place, name in enumerate(names)]
    layout = _layout(columns, [*map(printable, optional)], cut, out.width)
    if title:
        _print_title(out, title)
    if layout is None:
        _print_records(out, names, rows)
        return
    gap, kept = layout
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, gap // 2, 0, (gap - 1) // 2))
    for name, cells in kept:
        table.add_column(Text(name), justify="right" if all(map(_is_number, cells)) else "left", no_wrap=True)
    for row in zip(*(cells for _, cells in kept), strict=True):
        # rich would parse a plain str as markup, and fail on brackets that aren't.
        table.add_row(*map(Text, row))
    out.print(table)
    there = {name.replace("\n", " ") for name, _ in kept}
    if lost := [name for name in names if name not in there]:
        print_text(f"without {', '.join(lost)}, for which there is no room")


def _layout(
    columns: Sequence[_Column], optional: Sequence[str], cut: str | None, width: int
) -> tuple[int, list[_Column]] | None:
    """Returns the spaces between columns, and the columns for which there is room; None if it is not enough."""
    if _width(columns, gap=3) <= width:
        return 3, [*columns]
    columns = [(_broken(name), cells) for name, cells in columns]
    optional = list(map(_broken, optional))

    def of(names: Collection[str]) -> list[_Column]:
        return [column for column in columns if column[0] in names]

    kept = {name for name, _ in columns if name not in optional}
    if _width(of(kept), gap=1) > width:
        return None
    for name in optional:
        room = width - _width(of(kept), gap=1) - 1
        if name == cut and room >= _LEAST_TEXT:
            columns = [
                (each, [_cut(text, room) for text in cells] if each == cut else cells) for each, cells in columns
            ]
        kept |= {name} if _width(of({*kept, name}), gap=1) <= width else set()
    return 1 if _width(of(kept), gap=2) > width else 2, of(kept)


def _broken(name: str) -> str:
    """Returns the name of a column in a line for each word, but not one that begins with 95 without its %."""
    return re.sub(" (?!%)", "\n", name)


def _cut(text: str, width: int) -> str:
    return text if cell_len(text) <= width else f"{set_cell_size(text, width - 1).rstrip()}…"


def _width(columns: Sequence[_Column], *, gap: int) -> int:
    """Returns the width of a table, with a space on either side."""
    each = (max(map(cell_len, [*name.split("\n"), *cells])) for name, cells in columns)
    return sum(each) + gap * (len(columns) - 1) + 2


def print_fields(fields: Mapping[str, str | None]) -> None:
    """Prints names and their texts in lines of at most READING_WIDTH columns, leaving out those without a text."""
    given = {name: text for name, text in fields.items() if text}
    out = console()
    out.width = min(out.width, READING_WIDTH)
    _print_records(out, list(given), [[printable(text) for text in given.values()]])


def _print_records(out: Console, names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    indent = max(map(len, names)) + 2
    for row in rows:
        pairs = zip(names, row, strict=True)
        lines = [line for name, value in pairs for line in _record_lines(name, value, out.width, indent=indent)]
        out.print("\n".join(lines) + "\n", markup=False, emoji=False, highlight=False, soft_wrap=True)


def _record_lines(name: str, value: str, width: int, *, indent: int) -> list[str]:
    if _INDENT + len(value) <= width < indent + len(value):
        return [name, f"{'':{_INDENT}}{value}"]
    return wrapped(value, width, name=name, indent=indent)


def _print_title(out: Console, title: str) -> None:
    text = "\n".join(wrapped(printable(title), out.width))
    out.print(text, style="bold", markup=False, emoji=False, highlight=False, soft_wrap=True)


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
