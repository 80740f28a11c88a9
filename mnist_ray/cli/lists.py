"""The commands that list a storage's contents, runs and evaluations, and what they share with grids."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from mnist_ray.cli.options import as_json_option, storage_option
from mnist_ray.config.names import dataset_name
from mnist_ray.text.doing import at_work_if_slow
from mnist_ray.text.sizes import size_text

if TYPE_CHECKING:
    from mnist_ray.results.listing import Selection

Row = dict[str, Any]
# Heading in the printed table -> column of the rows, and how to write its values.
Columns = Mapping[str, tuple[str, Callable[[Any], object]]]


class _Date(click.DateTime):
    """A day or a time, whose error says how to write one."""

    def __init__(self) -> None:
        super().__init__(("%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S"))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """See click.ParamType."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value!r} is no date; write it as 2026-11-30 or '2026-11-30 14:05'", param, ctx)


_options = (
    click.option(
        "--where",
        multiple=True,
        metavar="NAME=VALUE",
        help="Only those with this value of a setting, such as dropout=0.3, or of another column of --json, such as "
        "status=finished; may be repeated, and then all must hold.",
    ),
    click.option("--since", type=_Date(), metavar="DATE", help="Only those of this day (UTC) or later."),
    click.option(
        "--sort",
        default="date",
        show_default=True,
        metavar="COLUMN",
        help="Sort by a setting or another column, the largest last.",
    ),
    click.option("--reverse", is_flag=True, help="The largest, or newest, first."),
    click.option("--last", type=click.IntRange(min=1), metavar="N", help="Only the last N of the list."),
    as_json_option,
)


def list_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of a list of a storage's contents; the command gets `selection`, as_json and storage."""
    return selection_options(storage_option(command))


def selection_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options of any list; the command gets `selection` and as_json."""

    @wraps(command)
    def selecting(
        where: Sequence[str], since: datetime | None, sort: str, reverse: bool, last: int | None, **rest: Any
    ) -> None:
        from mnist_ray.results.listing import Selection

        pairs = [text.partition("=") for text in where]
        for name, separator, _ in pairs:
            if not (name and separator):
                raise click.UsageError(f"--where {name!r}: write it as NAME=VALUE")
        wanted = tuple((name, value) for name, _, value in pairs)
        command(Selection(wanted, since and since.replace(tzinfo=UTC), sort, reverse, last), **rest)

    for option in reversed(_options):
        selecting = option(selecting)
    return selecting


def print_list(
    rows: Sequence[Row],
    columns: Columns,
    selection: "Selection",
    *,
    as_json: bool,
    empty: str,
    known: Collection[str] = (),
    optional: Sequence[str] = (),
    cut: str | None = None,
    printed: Callable[[Sequence[Row]], tuple[str, Sequence[Row]]] = lambda rows: ("", rows),
) -> None:
    """Prints the selected rows: as JSON with everything, else as a table without columns that would be empty.

    Args:
      rows: of one list.
      columns: of the table.
      empty: what to print if there are no rows.
      known: names of columns that rows may have, even if these have not.
      optional, cut: headings of columns that may give way; see print_table.
      printed: returns the title of the table, and the rows with the texts that depend on all of them.
    """
    from mnist_ray.text.tables import cell, print_table, print_text

    shown = selection.of(rows, aliases={heading: column for heading, (column, _) in columns.items()}, known=known)
    if as_json:
        print(json.dumps(shown, indent=1, default=datetime.isoformat))
    elif not shown:
        print("nothing in this list matches" if rows else empty)
    else:
        title, lines = printed(shown)
        texts = {
            heading: [cell(None if row.get(column) in (None, "") else text(row[column])) for row in lines]
            for heading, (column, text) in columns.items()
        }
        texts = {heading: cells for heading, cells in texts.items() if {*cells} != {"-"}}
        cells = list(zip(*texts.values(), strict=True))
        print_table(list(texts), cells, title=title or None, optional=optional, cut=cut)
        for row in shown:
            if row["status"] == "damaged":
                print_text(row["reason"])


def date_text(date: datetime) -> str:
    """Returns a date and time in UTC."""
    return f"{date.astimezone(UTC):%Y-%m-%d %H:%M}"


def _day(date: datetime) -> str:
    return date_text(date).partition(" ")[0]


def _time(date: datetime) -> str:
    return date_text(date).partition(" ")[2]


# The day stays where the time has no room.
DATE_COLUMNS: Columns = {"date": ("date", _day), "time": ("date", _time)}


def as_is(value: object) -> object:
    """Returns the value of a column whose text is that of any value."""
    return value


def with_short_datasets(rows: Sequence[Row], column: str) -> list[Row]:
    """Returns rows with the short names of their data sets, such as photos, in a column; whole where two are alike."""
    names = {row[column]: dataset_name(row[column]) for row in rows if row.get(column)}
    is_short = {whole: list(names.values()).count(name) == 1 for whole, name in names.items()}
    return [{**row, column: names[row[column]]} if is_short.get(row.get(column)) else row for row in rows]


_RUN_COLUMNS: Columns = {
    "run": ("run", as_is),
    "status": ("status", as_is),
    **DATE_COLUMNS,
    "size": ("bytes", size_text),
    "seed": ("seed", as_is),
    "setting": ("setting", as_is),
    "val accuracy": ("best_val_accuracy", as_is),
}


@click.command()
@list_options
def runs(selection: "Selection", storage: str, as_json: bool) -> None:
    """Lists the runs in a storage, the newest last, with the settings that vary.

    The date (UTC) is when the training ended or, if it hasn't, when it began; the accuracy is that of the best epoch on
    the validation split. The runs of a grid show what varies within it. Where names are long, a long setting is cut,
    and other columns give way; --json has all.
    """
    from mnist_ray.results.listing import run_rows
    from mnist_ray.results.schemas import TABLES
    from mnist_ray.storage.storage import open_storage

    with at_work_if_slow(f"reading the runs in {storage}"):
        rows = run_rows(open_storage(storage))
    what = ("setting", "status") if all(row["status"] == "finished" for row in rows) else ("status", "setting")
    print_list(
        rows,
        _RUN_COLUMNS,
        selection,
        as_json=as_json,
        empty=f"no runs in {storage}",
        known=TABLES["runs"].names,
        optional=(*what, "seed", "time", "size"),
        cut="setting",
        printed=_printed_runs,
    )


def _printed_runs(rows: Sequence[Row]) -> tuple[str, Sequence[Row]]:
    from mnist_ray.results.setting_words import varying_words

    whole = with_short_datasets([row for row in rows if row["status"] != "damaged"], "train_dataset")
    common, _ = varying_words(whole)
    words: dict[str, str] = {}
    for grid in {row["grid"] for row in whole}:
        # A grid's name says what its runs share.
        together = [row for row in whole if not grid or row["grid"] == grid]
        texts = zip(together, varying_words(together)[1], strict=True)
        words |= {row["run"]: text for row, text in texts if row["grid"] == grid}
    has_seeds = len({row["seed"] for row in whole}) > 1
    lines = [
        {
            **row,
            "setting": words.get(row["run"]),
            "seed": row.get("seed") if has_seeds else None,
            "status": f"{row['epochs_done']}/{row['epochs']} epochs"
            if row["status"] == "unfinished"
            else row["status"],
        }
        for row in rows
    ]
    return f"all: {common}" if common else "", lines


_EVALUATION_COLUMNS: Columns = {
    "evaluation": ("evaluation", as_is),
    "status": ("status", as_is),
    **DATE_COLUMNS,
    "size": ("bytes", size_text),
    "dataset": ("dataset", as_is),
    "split": ("split", as_is),
    "runs": ("num_runs", as_is),
    "accuracy": ("accuracy_max", as_is),
}


@click.command()
@list_options
def evaluations(selection: "Selection", storage: str, as_json: bool) -> None:
    """Lists the committed evaluations in a storage, the newest last.

    The date (UTC) is when the evaluation began; of several runs, the lowest and the highest accuracy are shown. Where
    names are long, other columns give way; --json has all.
    """
    from mnist_ray.results.listing import evaluation_rows
    from mnist_ray.storage.storage import open_storage

    with at_work_if_slow(f"reading the evaluations in {storage}"):
        rows = evaluation_rows(open_storage(storage))
    print_list(
        rows,
        _EVALUATION_COLUMNS,
        selection,
        as_json=as_json,
        empty=f"no evaluations in {storage}",
        optional=("status", "runs", "time", "dataset", "split", "size"),
        printed=lambda rows: (
            "",
            with_short_datasets([{**row, "accuracy_max": _range(row)} for row in rows], "dataset"),
        ),
    )


def _range(row: Row) -> str | None:
    from mnist_ray.text.tables import cell

    if row["status"] == "damaged":
        return None
    ends = dict.fromkeys([cell(row["accuracy_min"]), cell(row["accuracy_max"])])
    return " to ".join(ends)
