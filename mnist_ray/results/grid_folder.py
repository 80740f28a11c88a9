"""The folder of a grid in a storage: its settings, and one row per run.

<storage>/grids/<grid>/grid.json      the settings, and the names of all runs
                       runs.parquet   one row per run, replaced as a whole
                       asha.json      the decisions of --scheduler asha, in the order in which the runs arrived
                       looks.json     the decisions of --until-settled and --budget
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mnist_ray.config.settings import GridConfig, make_config
from mnist_ray.errors import CheckpointError, ConflictError
from mnist_ray.grids.asha import Decision
from mnist_ray.grids.grid import GridRun
from mnist_ray.grids.search import Search
from mnist_ray.results import parquet
from mnist_ray.results.checkpoint_document import GridDocument, LooksDocument, broken_rule
from mnist_ray.results.code_version import code_version
from mnist_ray.results.columns import config_columns, settings_row
from mnist_ray.results.kinds import GRID, remains
from mnist_ray.results.paths import grid_path, run_path
from mnist_ray.results.run_documents import code_change, config_in, read_run_document
from mnist_ray.results.run_progress import RunProgress
from mnist_ray.results.setting_words import setting_words
from mnist_ray.storage.storage import MissingError, Storage


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
            raise CheckpointError(
                f"grid {self.name!r}: not in {self.storage.uri}; `mnist-ray grids` lists what is"
            ) from None
        return document

    def claim(
        self,
        grid: GridConfig,
        runs: Sequence[GridRun],
        *,
        search: Search | None = None,
        samples: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Claims the grid's name, or extends the existing grid, whose runs must all be among the new ones.

        Args:
          grid: the settings.
          runs: all runs, old and new; for a search, the runs known so far.
          search: how samples are chosen; its kind and seed must not change.
          samples: the settings that a search has chosen so far.

        Raises:
          ConflictError: the name belongs to a grid with other runs.
        """
        names = [run.run for run in runs]
        how = {"kind": search.kind, "seed": search.seed} if search else None
        existing = self.document()
        if existing is None and (left := remains(self.storage, GRID, self.name)):
            raise ConflictError(left)
        if existing is not None:
            missing = set(existing["runs"]) - set(names)
            if change := self._code_change(sorted(missing), runs):
                raise ConflictError(f"grid {self.name!r}: {change}; choose another --name to go on with the new code")
            if missing or existing["search"] != how:
                counted = f"{len(missing)} of its {len(existing['runs'])} runs are not in this one"
                raise ConflictError(
                    f"grid {self.name!r}: exists with other settings ({counted if missing else 'another search'}); a "
                    "grid can only grow, by levels or seeds: give all the old ones too, or choose another --name"
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
        """Returns the rows of runs.parquet; empty before it is written.

        Raises:
          CheckpointError: no such grid, or damaged.
        """
        self._needed_document()
        try:
            content = self.storage.read_bytes(self.path("runs.parquet"))
        except MissingError:
            return []
        rows: list[dict[str, Any]] = parquet.read_parquet(content, source=self.path("runs.parquet")).to_pylist()
        return rows

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
