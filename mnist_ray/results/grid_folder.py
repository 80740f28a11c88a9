"""The folder of a grid in a storage: its settings, and one row per run.

<storage>/grids/<grid>/grid.json      the settings, and the names of all runs
                       runs.parquet   one row per run, replaced as a whole
                       asha.json      the decisions of --scheduler asha, in the order in which the runs arrived
                       looks.json     the decisions of --until-settled and --budget
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from mnist_ray.config.settings import GridConfig, Range, make_config
from mnist_ray.errors import CheckpointError, ConflictError
from mnist_ray.grids.asha import Decision
from mnist_ray.grids.grid import GridRun, expand
from mnist_ray.grids.search import Search, runs_of_samples
from mnist_ray.results import parquet
from mnist_ray.results.checkpoint_document import GridDocument, LooksDocument, broken_rule
from mnist_ray.results.code_version import code_version
from mnist_ray.results.columns import config_columns, settings_row
from mnist_ray.results.kinds import GRID, not_there, remains
from mnist_ray.results.paths import grid_path, run_path
from mnist_ray.results.run_documents import code_change, config_in, read_run_document
from mnist_ray.results.run_progress import RunProgress
from mnist_ray.results.schemas import TABLES
from mnist_ray.results.setting_words import exact_text, setting_words
from mnist_ray.storage.storage import MissingError, Storage

_NAMED_DIFFERENCES = 3


@dataclass(frozen=True)
class GridFolder:
    """The folder of one grid; owns every path in it."""

    storage: Storage
    name: str

    def path(self, *parts: str) -> str:
        """Returns a path in the grid's folder, relative to the storage."""
        return grid_path(self.name, *parts)

    def document(self) -> dict[str, Any] | None:
        """Returns grid.json, None if there is no such grid.

        Raises:
          CheckpointError: damaged.
        """
        return self._document("grid.json", GridDocument)

    def _document(self, name: str, kind: type[GridDocument | LooksDocument]) -> dict[str, Any] | None:
        try:
            document: dict[str, Any] = json.loads(self.storage.read_bytes(self.path(name)))
        except MissingError:
            return None
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"grid {self.name!r}: {name} is damaged ({error})") from None
        if (rule := broken_rule(kind, document)) is not None:
            raise CheckpointError(f"grid {self.name!r}: {name} was not written by mnist-ray ({rule})")
        return document

    def settings(self) -> GridConfig:
        """Returns the settings that were requested.

        Raises:
          CheckpointError: no such grid, or damaged.
        """
        return make_config(GridConfig, self._needed_document()["settings"], f"grid {self.name!r}: grid.json")

    def run_names(self) -> list[str]:
        """Returns the names of all runs, in the grid's order.

        Raises:
          CheckpointError: no such grid, or damaged.
        """
        return list(self._needed_document()["runs"])

    def _needed_document(self) -> dict[str, Any]:
        document = self.document()
        if document is None:
            raise CheckpointError(not_there(self.storage, GRID, self.name)) from None
        return document

    def claim(
        self,
        grid: GridConfig,
        runs: Sequence[GridRun],
        *,
        search: Search | None = None,
        samples: Sequence[Mapping[str, Any]] | None = None,
        shorter: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Claims the grid's name, or extends the existing grid, whose runs must all be among the new ones.

        Args:
          grid: the settings.
          runs: all runs, old and new; for a search, the runs known so far.
          search: how samples are chosen; its kind and seed must not change.
          samples: the settings that a search has chosen so far.
          shorter: see shorter_runs; these old runs leave the grid.

        Raises:
          ConflictError: the name belongs to a grid with other runs.
        """
        names = [run.run for run in runs]
        how = {"kind": search.kind, "seed": search.seed} if search else None
        existing = self.document()
        if existing is None and (left := remains(self.storage, GRID, self.name)):
            raise ConflictError(left)
        if existing is not None:
            missing = set(existing["runs"]) - set(names) - set(shorter.values())
            if change := self._code_change(sorted(missing), runs):
                raise ConflictError(f"grid {self.name!r}: {change}; choose another --name to go on with the new code")
            if missing or existing["search"] != how:
                differs = _differences(self.settings(), grid) if missing else "another search"
                raise ConflictError(
                    f"grid {self.name!r}: exists with other settings ({differs}); a grid can only grow, by levels, "
                    f"seeds or epochs{self._why_no_epochs(runs)}: give all the old ones too, or choose another --name"
                )
        document = {
            "grid": self.name,
            "settings": grid.model_dump(mode="json"),
            "search": how,
            "samples": [dict(sample) for sample in samples or ()],
            "runs": names,
        }
        if document != existing:
            self._write_json("grid.json", document)

    def _why_no_epochs(self, runs: Sequence[GridRun]) -> str:
        """Returns in words why the grid can't get more epochs, in parentheses after a space; empty if it can."""
        document = self._needed_document()
        if (search := document["search"]) and search["kind"] != "random":
            return f" (not with --search {search['kind']})"
        if self.storage.exists(self.path("asha.json")):
            return " (not with --scheduler asha)"
        if self.storage.exists(self.path("looks.json")):
            return " (not with --until-settled and --budget)"
        lengths = sorted({run.config.schedule for run in runs if run.config.has_schedule_of_length})
        return f" (not with schedule={lengths[0]}, which ends with the last epoch)" if lengths else ""

    def shorter_runs(self, runs: Sequence[GridRun]) -> dict[str, str]:
        """Returns which runs of this grid a grid of more epochs goes on with: the name of a new run -> of its old one.

        Empty if the grid does not exist or has other runs, or if its ends, seeds or suggestions follow from its runs'
        last epochs.

        Args:
          runs: the runs of the grid with more epochs.

        Raises:
          CheckpointError: the grid is damaged.
        """
        document = self.document()
        if document is None or self._why_no_epochs(runs):
            return {}
        grid = self.settings()
        if document["search"]:
            old = runs_of_samples(self.samples(), grid, name=self.name)
        else:
            old = expand(grid, name=self.name, max_runs=len(document["runs"]))
        new = {run.config.model_copy(update={"epochs": 0}): run for run in runs}
        pairs = ((new.get(run.config.model_copy(update={"epochs": 0})), run) for run in old)
        shorter = {run.run: old.run for run, old in pairs if run and run.config.continues(old.config)}
        are_all_there = {*document["runs"]} <= {*(run.run for run in runs), *shorter.values()}
        return shorter if are_all_there else {}

    def keep_runs(self, runs: Sequence[GridRun]) -> None:
        """Reduces the grid to some of its runs, which are done; those that a budget has cut off go."""
        self._write_json("grid.json", {**self._needed_document(), "runs": [run.run for run in runs]})

    def _code_change(self, missing: Sequence[str], runs: Sequence[GridRun]) -> str | None:
        """Returns in words that old runs are not among the new ones because their code has changed; None if not so."""
        wanted = {run.config.model_copy(update={"code_sha256": None}): run.config for run in runs}
        for name in missing:
            try:
                existing = config_in(read_run_document(self.storage, name), f"run {name!r}: config.json")
            except CheckpointError:
                # Not started yet.
                continue
            now = wanted.get(existing.model_copy(update={"code_sha256": None}))
            return code_change(existing, now) if now and now.is_own_network else None
        return None

    def samples(self) -> list[dict[str, Any]]:
        """Returns the settings that a search has chosen; empty if the grid does not exist yet."""
        document = self.document()
        samples = document["samples"] if document else []
        # JSON stores tuples, such as levels of hidden_sizes, as lists.
        return [
            {name: tuple(value) if isinstance(value, list) else value for name, value in sample.items()}
            for sample in samples
        ]

    def write_runs(self, runs: Sequence[GridRun], progress: Mapping[str, RunProgress]) -> None:
        """Writes runs.parquet, one row per run in the grid's order."""
        table = parquet.make_table("runs", self.rows(runs, progress), code_version=code_version())
        self.storage.write_bytes(self.path("runs.parquet"), parquet.to_parquet_bytes(table))

    def rows(self, runs: Sequence[GridRun], progress: Mapping[str, RunProgress]) -> dict[str, list[Any]]:
        """Returns the columns of runs.parquet."""
        columns: dict[str, list[Any]] = config_columns([run.config for run in runs])
        columns["grid"] = [self.name] * len(runs)
        in_order = [progress[run.run] for run in runs]
        for name in RunProgress.__dataclass_fields__:
            columns[name] = [getattr(row, name) for row in in_order]
        columns["setting"] = [setting_words(settings_row(run.config)) for run in runs]
        columns["checkpoint"] = [
            run_path(row.run, "best") if row.status in ("finished", "stopped") else None for row in in_order
        ]
        return columns

    def read_runs(self) -> list[dict[str, Any]]:
        """Returns the rows of runs.parquet; see `runs_table`."""
        rows: list[dict[str, Any]] = self.runs_table().to_pylist()
        return rows

    def runs_table(self) -> pa.Table:
        """Returns runs.parquet; no rows before it is written.

        Raises:
          CheckpointError: no such grid, or damaged.
        """
        self._needed_document()
        try:
            content = self.storage.read_bytes(self.path("runs.parquet"))
        except MissingError:
            return TABLES["runs"].schema(code_version=code_version()).empty_table()
        return parquet.read_parquet(content, source=self.path("runs.parquet"))

    def write_decisions(self, decisions: Sequence[Decision]) -> None:
        """Appends to asha.json."""
        exists = self.storage.exists(self.path("asha.json"))
        before = json.loads(self.storage.read_bytes(self.path("asha.json"))) if exists else []
        self._write_json("asha.json", [*before, *map(asdict, decisions)])

    def looks(self) -> dict[str, Any] | None:
        """Returns looks.json, None if no look has been taken.

        Raises:
          CheckpointError: damaged.
        """
        return self._document("looks.json", LooksDocument)

    def write_looks(self, document: Mapping[str, Any]) -> None:
        """Writes looks.json."""
        self._write_json("looks.json", document)

    def _write_json(self, name: str, document: Any) -> None:
        # Not sorted, to keep the user's order of the axes.
        self.storage.write_bytes(self.path(name), (json.dumps(document, indent=1) + "\n").encode())


def _differences(there: GridConfig, here: GridConfig) -> str:
    """Returns in words the settings in which two grids differ, such as 'dropout=0,0.3 there, 0.5 here'."""
    first, second = ({**grid.fixed, **grid.ranges, **grid.axes, "seeds": grid.seeds} for grid in (there, here))
    differ = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    there_and_here = [f"{name}={_words(first.get(name))} there, {_words(second.get(name))} here" for name in differ]
    return "; ".join(there_and_here[:_NAMED_DIFFERENCES])


def _words(value: Any) -> str:
    """Returns a grid's setting in words, such as '0,0.3'."""
    if isinstance(value, Range):
        return f"{value.kind} {value.low:g} to {value.high:g}"
    if isinstance(value, tuple):
        return (" or " if any(isinstance(level, tuple) for level in value) else ",").join(map(_words, value))
    return "the default" if value is None else exact_text(value)
