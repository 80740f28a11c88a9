"""The command for SQL: query."""

import base64
import csv
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from decimal import Decimal
from itertools import islice
from typing import Any

import click

from mnist_ray.cli.completion import complete_evaluation
from mnist_ray.cli.options import as_json_option, storage_option
from mnist_ray.errors import ConfigError
from mnist_ray.text.doing import at_work_if_slow
from mnist_ray.text.escape import printable

_SHOWN_ROWS = 100
# Limit of a list's elements in a printed table; --csv and --json print all.
_SHOWN_ELEMENTS = 50


@click.command()
@click.argument("statements", metavar="SQL", nargs=-1, required=True)
@click.option(
    "--evaluation",
    metavar="NAME",
    shell_complete=complete_evaluation,
    help="Only this evaluation: its name, the beginning of its name, or latest.  [default: all]",
)
@storage_option
@as_json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV with a header line; as in JSON, bytes are base64.")
def query(statements: Sequence[str], evaluation: str | None, storage: str, as_json: bool, as_csv: bool) -> None:
    """Runs SQL on the tables of all evaluations.

    An example is 'SELECT run, accuracy FROM metrics'.

    The tables of the committed evaluations are predictions, metrics, per_class, confusion, calibration,
    learning_curves, images and lineage, and after `mnist-ray report` or `mnist-ray compare` effects and comparisons;
    a run that was evaluated twice is in them twice, and `evaluation` tells which. runs and grids are all those of the
    storage. docs/queries.md has examples. Needs DuckDB: pip install 'mnist-ray[sql]'.
    """
    if len(statements) > 1:
        raise click.UsageError("give one statement; --evaluation NAME chooses an evaluation")
    if as_json and as_csv:
        raise click.UsageError("--json and --csv don't go together")
    from mnist_ray.report.query import query_evaluations
    from mnist_ray.results.evaluation_folder import committed_evaluations, find_evaluation
    from mnist_ray.storage.storage import open_storage

    place = open_storage(storage)
    with ExitStack() as stack:
        with at_work_if_slow(f"querying {place.uri}"):
            folders = [find_evaluation(place, evaluation)] if evaluation is not None else committed_evaluations(place)
            answer = stack.enter_context(query_evaluations(place, folders, statements[0]))
        if as_json:
            _print_json(answer.columns, answer.rows)
        elif as_csv:
            _print_csv(answer.columns, answer.rows)
        else:
            _print_table(answer.columns, answer.rows)


def _print_table(columns: Sequence[str], rows: Iterator[tuple[Any, ...]]) -> None:
    from mnist_ray.text.tables import print_table

    first = list(islice(rows, _SHOWN_ROWS))
    print_table(columns, [[_cell(value) for value in row] for row in first])
    if next(rows, None) is not None:
        click.echo(f"the first {len(first)} rows; --csv or --json print all")


def _print_json(columns: Sequence[str], rows: Iterator[tuple[Any, ...]]) -> None:
    """Streams a JSON list of objects, one per line."""
    twice = sorted({name for name in columns if columns.count(name) > 1})
    if twice:
        raise ConfigError(f"SQL: the column {twice[0]!r} occurs twice, which JSON doesn't allow; rename it with AS")
    before = "["
    for row in rows:
        click.echo(f"{before}\n{json.dumps(dict(zip(columns, map(_plain, row), strict=True)))}", nl=False)
        before = ","
    click.echo("\n]" if before == "," else "[]")


def _print_csv(columns: Sequence[str], rows: Iterator[tuple[Any, ...]]) -> None:
    # Files get the raw values; for a terminal, control characters are escaped.
    as_text = printable if sys.stdout.isatty() else str
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(map(as_text, columns))
    for row in rows:
        values = (json.dumps(value) if isinstance(value, list | dict) else value for value in map(_plain, row))
        writer.writerow(as_text(value) if isinstance(value, str) else value for value in values)


def _plain(value: Any) -> Any:
    """Converts a value for JSON: NaN and infinity become null, bytes base64, dates and other types text."""
    if isinstance(value, list | tuple):
        return [_plain(element) for element in value]
    if isinstance(value, dict):
        return {str(key): _plain(element) for key, element in value.items()}
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        # SQL literals such as 1.5 are decimals; only values without an exact float become text.
        return float(value) if Decimal(repr(float(value))) == value else str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        more = [f"{len(value) - _SHOWN_ELEMENTS:,} more"] if len(value) > _SHOWN_ELEMENTS else []
        return f"[{', '.join([*map(_cell, value[:_SHOWN_ELEMENTS]), *more])}]"
    return str(value)
