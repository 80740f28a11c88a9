"""Tables on the terminal."""

import json
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mnist_ray.results.evaluated_data import trained_elsewhere
from mnist_ray.text.escape import printable


def console() -> Console:
    """Returns a console on stdout; into a pipe or file it doesn't cut lines at 80 columns."""
    found = Console()
    return found if found.is_terminal else Console(width=200)


def print_rows(rows: Sequence[dict[str, Any]], *, as_json: bool, empty: str) -> None:
    """Prints one line a row, or JSON."""
    if as_json:
        print(json.dumps(list(rows), indent=1))
    elif not rows:
        print(empty)
    else:
        names = list(dict.fromkeys(name for row in rows for name in row))
        print_table(names, [[cell(row.get(name)) for name in names] for row in rows])


def print_table(names: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> None:
    """Prints a table; columns of numbers are aligned to the right, and no text is markup or a command to the terminal.

    One that is half as wide again as the terminal is printed as a list of names and values for each row.
    """
    shown = console()
    names, rows = list(map(printable, names)), [list(map(printable, row)) for row in rows]
    widths = [max(map(len, [name, *(row[position] for row in rows)])) for position, name in enumerate(names)]
    if sum(widths) + 2 * len(widths) > 1.5 * shown.width:
        _print_records(shown, names, rows, title)
        return
    shown_title = None if title is None else Text(printable(title), style="bold")
    table = Table(box=SIMPLE_HEAD, title=shown_title, title_justify="left", title_style="", pad_edge=False)
    for position, name in enumerate(names):
        numeric = all(_is_number(row[position]) for row in rows)
        table.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        # Not as they are: in a plain text rich looks for markup, and fails at what is none.
        table.add_row(*map(Text, row))
    shown.print(table)


def _print_records(shown: Console, names: Sequence[str], rows: Sequence[Sequence[str]], title: str | None) -> None:
    if title:
        shown.print(printable(title), style="bold", markup=False, emoji=False, highlight=False, soft_wrap=True)
    indent = max(map(len, names))
    for row in rows:
        lines = (f"{name:<{indent}}  {value}" for name, value in zip(names, row, strict=True))
        shown.print("\n".join(lines) + "\n", markup=False, emoji=False, highlight=False, soft_wrap=True)


def print_metrics(metrics: Sequence[dict[str, Any]]) -> None:
    """Prints accuracy with its interval, log loss and calibration error of each run."""
    rows = [
        [
            row["run"],
            f"{row['accuracy']:.4f}",
            f"{row['accuracy_low']:.4f}-{row['accuracy_high']:.4f}",
            f"{row['log_loss']:.4f}",
            f"{row['ece']:.4f}",
            f"{row['f1_macro']:.4f}",
            str(row["num_examples"]),
        ]
        for row in metrics
    ]
    names = ["run", "accuracy", "95 % interval", "log loss", "ECE", "macro F1", "examples"]
    print_table(names, rows, title=metrics_title(metrics))


def metrics_title(metrics: Sequence[dict[str, Any]]) -> str:
    """Returns what the rows of a metrics table were measured on."""
    first = metrics[0]
    elsewhere = trained_elsewhere([row["train_dataset"] for row in metrics], first["dataset"])
    measured = f"Evaluated on {first['num_examples']:,} {first['split']} examples of {first['dataset']}"
    return f"{measured}; {elsewhere}" if elsewhere else measured


def cell(value: object) -> str:
    """Returns a value as a short text; None as a dash."""
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text == "-"
    return True
