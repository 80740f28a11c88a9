"""Removes results from a storage, in an order in which a killed removal leaves nothing half there.

A disk hides a whole folder at once. S3 deletes one object at a time, the one without which there is no such result
first; the same removal again deletes the rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mnist_ray.errors import CheckpointError, DataError
from mnist_ray.results.evaluation_folder import evaluation_name
from mnist_ray.results.grid_folder import GridFolder
from mnist_ray.results.inventory import grid_documents
from mnist_ray.results.kinds import EVALUATION, GRID, PREDICTION, REPORT, RUN, Kind, not_there
from mnist_ray.results.paths import LAKE
from mnist_ray.results.run_progress import read_status
from mnist_ray.storage.storage import Storage
from mnist_ray.text.escape import say_line

_NAMES_SAID = 4


@dataclass(frozen=True)
class Doomed:
    """A result to remove.

    Attributes:
      kind: its kind.
      name: its whole name.
      size: its bytes.
      notes: what depends on it, in words.
    """

    kind: Kind
    name: str
    size: int
    notes: tuple[str, ...]


def find_doomed(storage: Storage, kind: Kind, wanted: Sequence[str], *, with_runs: bool = False) -> list[Doomed]:
    """Returns what a removal of some results removes, in order; says which names are not there.

    Args:
      wanted: names; of an evaluation or its report also a beginning that no other has, or "latest".
      with_runs: whether the runs of a grid go too.

    Raises:
      CheckpointError: none of them is there, or a grid whose runs should go is damaged.
      ConfigError: several evaluations begin with a name.
      StorageError: the storage can't be read.
    """
    folders = storage.list_folders(kind.folder)
    names: dict[str, None] = {}
    unknown = []
    for text in wanted:
        if (name := _name(storage, kind, text, folders)) is None:
            unknown.append(not_there(storage, kind, text))
        else:
            names[name] = None
    if not names:
        raise CheckpointError("; ".join(unknown))
    for line in unknown:
        say_line(line)
    doomed = [each for name in names for each in _with_its_own(storage, kind, name, with_runs=with_runs)]
    known = _Dependents(storage)
    return [
        Doomed(kind, name, _size(storage, kind, name), tuple(known.notes(kind, name, doomed))) for kind, name in doomed
    ]


def remove(storage: Storage, doomed: Doomed) -> None:
    """Removes a result; again after a kill, what is left of it.

    Raises:
      StorageError: the storage can't be written.
    """
    # The best checkpoint comes second: without it, no reader takes the rest of a run for a trained one.
    first = (doomed.kind.mark, "best/checkpoint.json")
    storage.delete_folder(doomed.kind.path(doomed.name), first=first)


def _name(storage: Storage, kind: Kind, wanted: str, folders: Sequence[str]) -> str | None:
    if kind not in (EVALUATION, REPORT):
        return wanted if wanted in folders else None
    return evaluation_name(storage, wanted, folders)


def _with_its_own(storage: Storage, kind: Kind, name: str, *, with_runs: bool) -> list[tuple[Kind, str]]:
    """Returns a result after those that go with it: killed in between, what refers to others is still there."""
    if kind is EVALUATION and name in storage.list_folders(REPORT.folder):
        return [(REPORT, name), (kind, name)]
    if kind is GRID and with_runs:
        document, there = GridFolder(storage, name).document(), storage.list_folders(RUN.folder)
        runs = {*document["runs"]} if document else set()
        return [*((RUN, run) for run in there if run in runs), (kind, name)]
    return [(kind, name)]


def _size(storage: Storage, kind: Kind, name: str) -> int:
    return sum(entry.size for entry in storage.iter_files(kind.path(name)))


@dataclass(frozen=True)
class _Dependents:
    """Who refers to what in a storage; what is damaged refers to nothing."""

    storage: Storage

    @cached_property
    def grids(self) -> dict[str, dict[str, Any]]:
        return grid_documents(self.storage)[0]

    @cached_property
    def evaluations(self) -> dict[str, Mapping[str, Any]]:
        return self._manifests(EVALUATION)

    @cached_property
    def predictions(self) -> dict[str, Mapping[str, Any]]:
        return self._manifests(PREDICTION)

    def _manifests(self, kind: Kind) -> dict[str, Mapping[str, Any]]:
        found: dict[str, Mapping[str, Any]] = {}
        for name in self.storage.list_folders(kind.folder):
            try:
                manifest = self.storage.read_manifest(kind.path(name))
            except DataError:
                continue
            if manifest is not None:
                found[name] = manifest
        return found

    def notes(self, kind: Kind, name: str, doomed: Sequence[tuple[Kind, str]]) -> list[str]:
        """Returns what depends on a result and stays, in words."""
        notes = []
        if kind is RUN:
            grids = [grid for grid, document in self.grids.items() if name in document["runs"]]
            evaluated = [each for each, manifest in self.evaluations.items() if name in manifest["runs"]]
            predicted = [each for each, manifest in self.predictions.items() if manifest.get("run") == name]
            notes = [*_note("listed by", GRID, [grid for grid in grids if (GRID, grid) not in doomed])]
            notes += [*_note("evaluated by", EVALUATION, evaluated), *_note("used by", PREDICTION, predicted)]
            if not _is_done(self.storage, name):
                notes.append("not finished: a job that trains it would fail")
        elif kind is GRID:
            evaluated = [each for each, manifest in self.evaluations.items() if manifest["config"].get("grid") == name]
            notes = _note("evaluated by", EVALUATION, evaluated)
            runs = self.grids.get(name, {}).get("runs", ())
            if runs and not any(kind is RUN for kind, _ in doomed):
                notes.append("its runs stay")
        elif kind is EVALUATION and (lakes := self.storage.list_folders(LAKE)):
            notes.append(f"in the lake's tables ({', '.join(lakes)}) until `mnist-ray publish` runs again")
        return notes


def _note(how: str, kind: Kind, names: Sequence[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _NAMES_SAID} more" if len(names) > _NAMES_SAID else ""
    return [f"{how} {kind.name} {', '.join(names[:_NAMES_SAID])}{more}"]


def _is_done(storage: Storage, run: str) -> bool:
    try:
        return read_status(storage, run).is_done
    except CheckpointError:
        return True
