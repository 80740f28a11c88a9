"""Tables on the terminal."""

import json
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mnist_ray.text.escape import printable


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


def print_table(names: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> None:
    """Prints a table with columns of numbers aligned to the right; escapes markup and terminal commands.

    Prints a table more than 1.5 times as wide as the terminal as a list of names and values for each row.
    """
    out = console()
    names, rows = list(map(printable, names)), [list(map(printable, row)) for row in rows]
    widths = [max(map(len, [name, *(row[position] for row in rows)])) for position, name in enumerate(names)]
    if sum(widths) + 2 * len(widths) > 1.5 * out.width:
        _print_records(out, names, rows, title)
        return
    title_text = None if title is None else Text(printable(title), style="bold")
    table = Table(box=SIMPLE_HEAD, title=title_text, title_justify="left", title_style="", pad_edge=False)
    for position, name in enumerate(names):
        numeric = all(_is_number(row[position]) for row in rows)
        table.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        # rich would parse a plain str as markup, and fail on brackets that aren't.
        table.add_row(*map(Text, row))
    out.print(table)


def _print_records(out: Console, names: Sequence[str], rows: Sequence[Sequence[str]], title: str | None) -> None:
    if title:
        out.print(printable(title), style="bold", markup=False, emoji=False, highlight=False, soft_wrap=True)
    indent = max(map(len, names))
    for row in rows:
        lines = (f"{name:<{indent}}  {value}" for name, value in zip(names, row, strict=True))
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
