"""Rows of the lists of runs and evaluations, and which of them a user wants; imports neither torch nor ray."""

import json
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mnist_ray.config.names import dataset_name
from mnist_ray.config.settings import TrainConfig
from mnist_ray.errors import CheckpointError, ConfigError, DataError, MnistRayError
from mnist_ray.results.columns import column_of, with_own_settings
from mnist_ray.results.evaluation_folder import open_evaluation
from mnist_ray.results.inventory import folder_sizes, read_inventory
from mnist_ray.results.kinds import EVALUATION
from mnist_ray.results.paths import evaluation_path, run_path
from mnist_ray.results.setting_words import exact_text, setting_text
from mnist_ray.setting import usual_names
from mnist_ray.storage.manifest import MANIFEST, REQUESTS_AT_ONCE
from mnist_ray.storage.storage import MissingError, Storage
from mnist_ray.text.suggestions import did_you_mean

Row = dict[str, Any]
# Errors from reading an evaluation of which a file is missing, truncated or malformed.
_DAMAGED = (MissingError, DataError, ConfigError, ValueError, KeyError, TypeError)


def run_rows(storage: Storage) -> list[Row]:
    """Returns all runs as rows of the table runs, each with date, size and URI.

    Raises:
      StorageError: the storage can't be read.
    """
    found = read_inventory(storage)
    rows = [{**row, "date": row["trained_at"] or row["begun_at"]} for row in with_own_settings(found.runs)]
    rows += [damaged_row("run", name, reason) for name, reason in found.damaged_runs.items()]
    return [stored(row, "run", found.run_bytes[row["run"]], storage.uri_of(run_path(row["run"]))) for row in rows]


def stored(row: Row, kind: str, num_bytes: int, uri: str) -> Row:
    """Returns a row of a list with its size and place; what identifies it comes first."""
    return {kind: row[kind], "status": row["status"], "date": row["date"], "bytes": num_bytes, "uri": uri, **row}


def damaged_row(kind: str, name: str, reason: str) -> Row:
    """Returns the row of a run, grid or evaluation that can't be read."""
    return {kind: name, "status": "damaged", "reason": reason, "date": None}


def evaluation_rows(storage: Storage) -> list[Row]:
    """Returns the evaluations that are committed or damaged.

    Raises:
      StorageError: the storage can't be read.
    """
    sizes = folder_sizes(storage, EVALUATION)
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        rows = list(pool.map(lambda name: _evaluation_row(storage, name), sizes))
    return [
        stored(row, "evaluation", sizes[name], storage.uri_of(evaluation_path(name)))
        for name, row in zip(sizes, rows, strict=True)
        if row is not None
    ]


def _evaluation_row(storage: Storage, name: str) -> Row | None:
    try:
        folder = open_evaluation(storage, name)
        accuracies = folder.table("metrics", columns=["accuracy"])["accuracy"].to_pylist()
        return {
            **folder.facts,
            "status": "committed",
            "grid": folder.grid or "",
            "runs": folder.runs,
            "num_runs": len(folder.runs),
            "num_examples": folder.num_examples,
            "accuracy_min": min(accuracies),
            "accuracy_max": max(accuracies),
            "schema_version": folder.schema_version,
            "evaluated_at": folder.evaluated_at,
            "date": folder.evaluated_at,
        }
    except CheckpointError:
        # Not committed.
        return None
    except _DAMAGED as error:
        is_said = isinstance(error, MnistRayError)
        return damaged_row("evaluation", name, str(error) if is_said else f"{MANIFEST} lacks what it should have")


@dataclass(frozen=True)
class Selection:
    """Which rows of a list to show, and in which order.

    Attributes:
      where: column or setting, and its value as text; a row must have all of them.
      since: the earliest date.
      sort: column or setting; rows without it come first.
      reverse: whether the largest comes first.
      last: number of rows to keep, from the end.
    """

    where: tuple[tuple[str, str], ...] = ()
    since: datetime | None = None
    sort: str = "date"
    reverse: bool = False
    last: int | None = None

    def of(self, rows: Sequence[Row], *, aliases: Mapping[str, str], known: Collection[str] = ()) -> list[Row]:
        """Returns the rows that are wanted.

        Args:
          rows: of one list.
          aliases: heading in the printed table -> column.
          known: columns that rows may have, for a list without any.

        Raises:
          ConfigError: no row can have a column of that name.
        """
        columns = {*known, *(name for row in rows for name in row)}
        wanted = [(_column(name, columns, aliases, "--where"), text) for name, text in self.where]
        sort = _column(self.sort, columns, aliases, "--sort") if rows else self.sort
        kept = [row for row in rows if all(_has(name, row.get(name), text) for name, text in wanted)]
        if self.since is not None:
            kept = [row for row in kept if row["date"] and row["date"] >= self.since]
        kept.sort(key=lambda row: _order(row.get(sort)), reverse=self.reverse)
        return kept if self.last is None else kept[-self.last :]


def _column(name: str, columns: Collection[str], aliases: Mapping[str, str], option: str) -> str:
    if name in columns:
        return name
    column = aliases.get(name) or (column_of(name) if name in TrainConfig.model_fields else name)
    if column not in columns:
        choices = sorted({*columns, *aliases})
        usual = {other: column_of(setting) for other, setting in usual_names(TrainConfig).items()}
        known = {other: each for other, each in usual.items() if each in columns}
        hint = did_you_mean(name, choices, known) or f"; choose one of {', '.join(choices)}"
        raise ConfigError(f"{option} {name!r}: not in this list{hint}")
    return column


def _has(column: str, value: Any, text: str) -> bool:
    """Tells whether a text is one of the ways to write a value; a data set may be written as the lists show it."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(text) == value
        except ValueError:
            return False
    if isinstance(value, str) and column in ("train_dataset", "dataset") and text == dataset_name(value):
        return True
    return text in (str(value), json.dumps(value, default=str), setting_text(value), exact_text(value))


def _order(value: Any) -> tuple[bool, Any]:
    """Returns the key of a value, which only needs to compare with values of its column."""
    is_comparable = isinstance(value, int | float | str | datetime)
    return value is not None, value if is_comparable else json.dumps(value, default=str)
