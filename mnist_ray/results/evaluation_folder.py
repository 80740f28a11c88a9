"""A committed evaluation in a storage; imports neither torch nor ray.

<storage>/evaluations/<evaluation>/   a folder for each table, _manifest.json, _SUCCESS: appears whole or not at all
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import compress
from typing import Any

import pyarrow as pa

from mnist_ray.config.names import check_evaluation_name
from mnist_ray.errors import CheckpointError, ConfigError, DataError
from mnist_ray.results import parquet
from mnist_ray.results.kinds import EVALUATION, not_there
from mnist_ray.results.paths import EVALUATIONS, LATEST, evaluation_path, part_path, report_path
from mnist_ray.storage.manifest import REQUESTS_AT_ONCE
from mnist_ray.storage.storage import MissingError, Storage
from mnist_ray.text.escape import say_line

# Those of schema version 2 have no folder: metrics.parquet, predictions-00000.parquet.
_PART = re.compile(r"(?P<table>[a-z_]+?)(/part-\d+|-\d+)?\.parquet")
_NAMES_SAID = 10
_UNKNOWN = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class EvaluationFolder:
    """The folder of one evaluation; reads only the files that its manifest names.

    Attributes:
      storage: where it is.
      name: its name.
      manifest: content of _manifest.json.
    """

    storage: Storage
    name: str
    manifest: Mapping[str, Any]

    @property
    def path(self) -> str:
        """The folder, relative to the storage."""
        return evaluation_path(self.name)

    @property
    def uri(self) -> str:
        """The folder's URI."""
        return self.storage.uri_of(self.path)

    @property
    def grid(self) -> str | None:
        """Name of the evaluated grid; None if no grid was evaluated."""
        grid: str | None = self.manifest["config"].get("grid")
        return grid

    @property
    def dataset(self) -> str:
        """Data set that the runs were evaluated on."""
        return str(self.manifest["config"]["dataset"])

    @property
    def split(self) -> str:
        """Split of the data set."""
        return str(self.manifest["config"]["split"])

    @property
    def num_examples(self) -> int:
        """Number of evaluated examples."""
        return int(self.manifest["num_examples"])

    @property
    def class_names(self) -> list[str]:
        """One name per class, in the order of label."""
        return list(self.manifest["class_names"])

    @property
    def runs(self) -> list[str]:
        """Names of the evaluated runs."""
        return list(self.manifest["runs"])

    @property
    def schema_version(self) -> int:
        """Schema version of the tables."""
        return int(self.manifest["schema_version"])

    @property
    def dataset_id(self) -> str:
        """Fingerprint of the evaluated split, in hexadecimal."""
        return str(self.manifest["data_sha256"])

    @property
    def evaluated_at(self) -> datetime | None:
        """When the evaluation began, in UTC; None if an older version made it."""
        text = self.manifest["volatile"].get("evaluated_at")
        return (text and datetime.fromisoformat(text)) or None

    @property
    def facts(self) -> dict[str, str]:
        """The columns that have one value in all tables of the evaluation and its report."""
        return {
            "evaluation": self.name,
            "dataset": self.dataset,
            "split": self.split,
            "dataset_id": self.dataset_id,
        }

    @property
    def earlier_evaluations(self) -> list[str]:
        """Names of the storage's evaluations that read the same split before this one was committed."""
        return list(self.manifest["volatile"].get("earlier_evaluations", []))

    def files(self) -> dict[str, list[str]]:
        """Returns table -> names of its files, with parts in order."""
        return table_files(self.manifest)

    def stored_paths(self, table: str) -> list[str]:
        """Returns the paths of a table's parts, relative to the storage, in order."""
        stored = {file["name"]: file["stored_name"] for file in self.manifest["files"]}
        return [f"{self.path}/{stored[name]}" for name in self.files()[table]]

    def parts(self, table: str, *, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yields the parts of a table in order, each checked against its SHA-256.

        Raises:
          DataError: a part differs from what was committed.
          StorageError: a part can't be read.
        """
        for name in self.files()[table]:
            data = self.storage.read_committed(self.path, name)
            yield parquet.read_parquet(data, source=name, columns=columns, facts=self.facts)

    def batches(self, table: str, *, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yields some columns of a table in batches of rows; see `parts`."""
        for name in self.files()[table]:
            data = self.storage.read_committed(self.path, name)
            yield from parquet.read_batches(data, source=name, columns=columns, facts=self.facts)

    def table(self, table: str, *, columns: Sequence[str] | None = None) -> pa.Table:
        """Returns a whole table; see `parts`."""
        return pa.concat_tables(self.parts(table, columns=columns))

    def reported(self, table: str) -> pa.Table | None:
        """Returns a table of the evaluation's report; None if it has none.

        Raises:
          DataError: damaged, or by an older version (OtherVersionError).
          StorageError: it can't be read.
        """
        # Reports by an older version are files without a folder.
        for path in (report_path(self.name, part_path(table)), report_path(self.name, f"{table}.parquet")):
            with suppress(MissingError):
                return parquet.read_parquet(self.storage.read_bytes(path), source=path, facts=self.facts)
        return None

    def rows(self, table: str) -> list[dict[str, Any]]:
        """Returns the rows of a table as column name -> value; see `parts`."""
        return list(self.table(table).to_pylist())


def table_files(manifest: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns table -> names of its files, with parts in order, of a committed folder's manifest."""
    by_table: dict[str, list[str]] = {}
    for file in manifest["files"]:
        if part := _PART.fullmatch(file["name"]):
            by_table.setdefault(part["table"], []).append(file["name"])
    return {table: sorted(names) for table, names in by_table.items()}


def open_evaluation(storage: Storage, evaluation: str) -> EvaluationFolder:
    """Opens a committed evaluation.

    Args:
      evaluation: its name.

    Raises:
      ConfigError: not a valid evaluation name.
      CheckpointError: no such evaluation, or it was never committed.
      DataError: it is damaged, or its tables have another schema version.
      StorageError: the storage can't be read.
    """
    manifest = storage.read_manifest(evaluation_path(check_evaluation_name(evaluation)))
    if manifest is None:
        raise CheckpointError(not_there(storage, EVALUATION, evaluation))
    version = manifest.get("schema_version")
    if version not in parquet.READ_VERSIONS:
        raise DataError(
            f"evaluation {evaluation!r}: its tables have schema version {version}, this version of mnist-ray reads "
            f"{parquet.READS}: read it with the version that wrote it, or evaluate again"
        )
    return EvaluationFolder(storage, evaluation, manifest)


def evaluations_of_split(storage: Storage, data_sha256: str) -> list[str]:
    """Returns the names of all committed evaluations of the same examples, sorted.

    Each further look at a test split makes it less like unseen data, so an evaluation records the earlier looks.

    Args:
      storage: where the evaluations are.
      data_sha256: fingerprint of the split.

    Raises:
      StorageError: the storage can't be read.
    """
    names = sorted(storage.list_folders(EVALUATIONS))
    return _with_manifest(storage, names, lambda manifest: manifest.get("data_sha256") == data_sha256)


def _with_manifest(storage: Storage, names: Sequence[str], fits: Callable[[Mapping[str, Any]], bool]) -> list[str]:
    """Returns the evaluations whose manifest fits, and those whose manifest is damaged: one too many does less harm."""

    def may_fit(name: str) -> bool:
        try:
            manifest = storage.read_manifest(evaluation_path(name))
        except DataError:
            return True
        return manifest is not None and fits(manifest)

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return list(compress(names, pool.map(may_fit, names)))


def committed_evaluations(storage: Storage) -> list[EvaluationFolder]:
    """Returns all committed evaluations that this version can read, the oldest first; says which it can't.

    Raises:
      StorageError: the storage can't be read.
    """
    names = sorted(storage.list_folders(EVALUATIONS))

    def opened(name: str) -> EvaluationFolder | str | None:
        try:
            return open_evaluation(storage, name)
        except CheckpointError:
            # Not committed.
            return None
        except DataError as error:
            return f"without {error}"

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        folders = list(pool.map(opened, names))
    for line in folders:
        if isinstance(line, str):
            say_line(line)
    readable = [folder for folder in folders if isinstance(folder, EvaluationFolder)]
    return sorted(readable, key=lambda folder: (folder.evaluated_at or _UNKNOWN, folder.name))


def find_evaluation(storage: Storage, wanted: str) -> EvaluationFolder:
    """Opens the evaluation of a name, of a prefix that no other has, or the latest one.

    Raises:
      ConfigError: not a valid name, or a prefix of several.
      CheckpointError, DataError, StorageError: see open_evaluation.
    """
    check_evaluation_name(wanted)
    name = evaluation_name(storage, wanted, sorted(storage.list_folders(EVALUATIONS)), is_committed=True)
    return open_evaluation(storage, name or wanted)


def evaluation_name(storage: Storage, wanted: str, names: Sequence[str], *, is_committed: bool = False) -> str | None:
    """Returns the name of the evaluation that a command asks for; None if there is none.

    Args:
      wanted: name, prefix that no other has, or "latest" for the one that began last.
      names: of folders, among which it is.
      is_committed: whether a prefix or "latest" only means committed evaluations.

    Raises:
      ConfigError: a prefix of several.
      StorageError: the storage can't be read.
    """
    if wanted in names:
        return wanted
    if wanted == LATEST:
        return next((folder.name for folder in committed_evaluations(storage)[-1:] if folder.name in names), None)
    found = [name for name in names if name.startswith(wanted)] if wanted else []
    if is_committed:
        found = _with_manifest(storage, found, lambda _manifest: True)
    if len(found) > 1:
        more = f" and {len(found) - _NAMES_SAID} more" if len(found) > _NAMES_SAID else ""
        raise ConfigError(
            f"evaluation {wanted!r}: {len(found)} names begin with it: {', '.join(found[:_NAMES_SAID])}{more}; "
            "give more of the name"
        )
    return found[0] if found else None
