"""Copies results from one storage to another, each verified by SHA-256; the same copy again goes on where it was.

A reader of the target never sees a half copied result: evaluations and predictions are committed there, and a run, grid
or report gets the object without which there is none at last. What is equal already is only verified.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

from mnist_ray.errors import CheckpointError, ConflictError, StorageError
from mnist_ray.results.bytes_at_once import BytesAtOnce
from mnist_ray.results.evaluation_folder import find_evaluation
from mnist_ray.results.grid_folder import GridFolder
from mnist_ray.results.kinds import EVALUATION, GRID, PREDICTION, REPORT, RUN, Kind, existing, not_there
from mnist_ray.results.paths import LOGGED
from mnist_ray.results.run_documents import DamagedCheckpoint, read_checkpoint_document
from mnist_ray.storage.manifest import REQUESTS_AT_ONCE, FileEntry, StoredFile, files_of
from mnist_ray.storage.storage import MissingError, PendingFolder, Storage

# Contents in memory at once; each is read from both storages. A larger file is copied alone.
_MOST_BYTES = 512 << 20
# Files that training writes again; a finished run's readers take their content from best/checkpoint.json.
_REWRITTEN = {"history.parquet", "status.json"}


@dataclass(frozen=True)
class Copied:
    """A result that is in the target, or would be: how many of its files, and bytes, had to be sent."""

    kind: Kind
    name: str
    num_files: int
    num_bytes: int


@dataclass(frozen=True)
class Selection:
    """Names of what to copy; everything if there are none. Evaluations may be beginnings of names, or "latest"."""

    runs: Sequence[str] = ()
    grids: Sequence[str] = ()
    evaluations: Sequence[str] = ()
    predictions: Sequence[str] = ()


def select(source: Storage, wanted: Selection) -> list[tuple[Kind, str]]:
    """Returns the results to copy, in order: a grid takes its runs along, an evaluation its report.

    Raises:
      CheckpointError: one is not there, or there is nothing.
      ConfigError, DataError: see find_evaluation.
      StorageError: the storage can't be read.
    """
    if wanted == Selection():
        names = {kind: existing(source, kind) for kind in (RUN, GRID, EVALUATION, PREDICTION)}
        if not any(names.values()):
            raise CheckpointError(f"storage={source.uri!r}: has no results to copy")
    else:
        evaluations = sorted({find_evaluation(source, name).name for name in wanted.evaluations})
        names = {RUN: _there(source, RUN, wanted.runs), GRID: _there(source, GRID, wanted.grids)}
        names |= {EVALUATION: evaluations, PREDICTION: _there(source, PREDICTION, wanted.predictions)}
        of_grids = {run for grid in names[GRID] for run in GridFolder(source, grid).run_names()}
        names[RUN] = sorted({*names[RUN], *existing(source, RUN, sorted(of_grids))})
    reports = [name for name in source.list_folders(REPORT.folder) if name in names[EVALUATION]]
    return [(kind, name) for kind, several in {**names, REPORT: reports}.items() for name in several]


def _there(source: Storage, kind: Kind, names: Sequence[str]) -> list[str]:
    there = existing(source, kind, sorted({*names}))
    for name in names:
        if name not in there:
            raise CheckpointError(not_there(source, kind, name))
    return there


def copy_results(
    source: Storage, target: Storage, results: Sequence[tuple[Kind, str]], *, dry_run: bool = False
) -> Iterator[Copied]:
    """Copies results, and yields each when it is whole in the target.

    Args:
      source, target: the storages.
      results: what to copy; see select.
      dry_run: only compare the two storages, without a change.

    Raises:
      ConflictError: some exist there with other content, and stay as they are; raised when the others are copied.
      CheckpointError, DataError: one is damaged.
      StorageError: a storage can't be read or written, or returns other content than was written.
    """
    copier, conflicts = _Copier(source, target, dry_run), []
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        for kind, of_kind in groupby(results, key=lambda result: result[0]):
            names = [name for _, name in of_kind]
            is_committed = kind in (EVALUATION, PREDICTION)
            # Of runs several are copied at once, of evaluations the files of one.
            copy = partial(copier.copy_committed, pool.map, kind) if is_committed else partial(copier.copy_plain, kind)
            for done in (map if is_committed else pool.map)(partial(_or_conflict, copy), names):
                if isinstance(done, Copied):
                    yield done
                else:
                    conflicts.append(done)
    if conflicts:
        more = f"; and {len(conflicts) - 1} more" if len(conflicts) > 1 else ""
        raise ConflictError(f"{conflicts[0]}{more}")


def _or_conflict(copy: Callable[[str], Copied], name: str) -> Copied | ConflictError:
    try:
        return copy(name)
    except ConflictError as error:
        return error


@dataclass(frozen=True)
class _Copier:
    source: Storage
    target: Storage
    dry_run: bool
    memory: BytesAtOnce = field(default_factory=lambda: BytesAtOnce(_MOST_BYTES))

    def copy_plain(self, kind: Kind, name: str) -> Copied:
        """Copies a run, grid or report file by file."""
        try:
            wanted = self._files(kind, name)
            missing = self._missing(kind, name, wanted)
            in_turn = sorted(missing, key=partial(_turn, kind))
            for file in () if self.dry_run else in_turn:
                once = kind is RUN and file == kind.mark
                self._send(kind.path(name, file), missing[file], wanted[file].size, once=once)
        except MissingError as error:
            raise StorageError(
                f"{kind.name} {name!r}: changed while it was copied ({error}); the same command goes on"
            ) from None
        return Copied(kind, name, len(missing), sum(wanted[file].size for file in missing))

    def _files(self, kind: Kind, name: str) -> dict[str, FileEntry]:
        """Returns path in the result's folder -> file, without checkpoints that are still being written.

        Where a run or grid is logged to is left out: trackers know the original.
        """
        folder = kind.path(name)
        files = {entry.path.removeprefix(f"{folder}/"): entry for entry in self.source.list_files(folder)}
        return {
            file: entry
            for file, entry in files.items()
            if not file.startswith(f"{LOGGED}/")
            and (not file.startswith("checkpoints/") or f"{file.rpartition('/')[0]}/checkpoint.json" in files)
        }

    def _missing(self, kind: Kind, name: str, wanted: Mapping[str, FileEntry]) -> dict[str, str]:
        """Returns file -> SHA-256 of what the target lacks.

        Raises:
          ConflictError: it has other content that a copy may not replace.
        """
        sha256s = self._known_hashes(name, wanted) if kind is RUN else {}
        there = {entry.path: entry.size for entry in self.target.iter_files(kind.path(name))}
        replaces = _REWRITTEN if kind is RUN else set(wanted) if kind is GRID and self._has_grown(name) else set()
        missing = {}
        # The mark, which tells two results apart, comes first.
        for file in sorted(wanted, key=partial(_turn, kind), reverse=True):
            path = kind.path(name, file)
            with self.memory.of(wanted[file].size):
                sha256 = sha256s.get(file) or _sha256(self.source.read_bytes(path))
                is_there = there.get(path) == wanted[file].size and _sha256(self.target.read_bytes(path)) == sha256
            if is_there:
                continue
            if path in there and file not in replaces:
                raise _conflict(self.target, kind, name, file)
            missing[file] = sha256
        return missing

    def _known_hashes(self, run: str, files: Mapping[str, FileEntry]) -> dict[str, str]:
        """Returns file -> SHA-256 of the tensors that a checkpoint.json names."""
        folders = [file.removesuffix("/checkpoint.json") for file in files if file.endswith("/checkpoint.json")]
        documents = {folder: read_checkpoint_document(self.source, run, folder) for folder in folders}
        return {
            f"{folder}/{file}": sha256
            for folder, document in documents.items()
            for file, sha256 in document["files"].items()
        }

    def _has_grown(self, grid: str) -> bool:
        """Tells whether the source's grid has all runs of the target's, as a grid that has grown since."""
        here, there = (GridFolder(storage, grid).document() for storage in (self.source, self.target))
        return bool(here and there and here["search"] == there["search"] and {*there["runs"]} <= {*here["runs"]})

    def _send(self, path: str, sha256: str, size: int, *, once: bool) -> None:
        with self.memory.of(2 * size):
            content = self.source.read_bytes(path)
            if _sha256(content) != sha256:
                raise DamagedCheckpoint(
                    f"{self.source.uri_of(path)}: SHA-256 differs from what was noted: the file was changed or damaged"
                )
            if not once:
                self.target.write_bytes(path, content)
            elif not self.target.create_bytes(path, content):
                raise ConflictError(f"{self.target.uri_of(path)}: begun by another process; choose another storage")
            self._check_written(path, sha256)

    def _check_written(self, path: str, sha256: str) -> None:
        if _sha256(self.target.read_bytes(path)) != sha256:
            raise StorageError(f"{self.target.uri_of(path)}: has other content than was written; use another storage")

    def copy_committed(self, at_once: Callable[..., Iterator[Any]], kind: Kind, name: str) -> Copied:
        """Copies an evaluation or prediction, and commits it in the target.

        Args:
          at_once: like map, with several calls at once.
        """
        path = kind.path(name)
        manifest, there = (storage.read_manifest(path) for storage in (self.source, self.target))
        if manifest is None:
            raise StorageError(f"{kind.name} {name!r}: deleted while it was copied")
        files = files_of(manifest)
        if there is not None:
            if _content(there) != _content(manifest):
                raise _conflict(self.target, kind, name, "_manifest.json")
            list(at_once(partial(self._check_committed, path), files))
            if not self.dry_run:
                self.target.complete_commit(path)
            return Copied(kind, name, 0, 0)
        # A name of its own for this content, so that the same command finds what a killed one has sent.
        token = f"copy-{_sha256(json.dumps([path, _content(manifest)], sort_keys=True).encode())[:16]}"
        pending = PendingFolder(self.target, path, token)
        stored = list(at_once(partial(self._stage, path, pending), files))
        if not self.dry_run:
            pending.commit([file for file, _ in stored], {key: manifest[key] for key in manifest if key != "files"})
        sent = [file.size for file, is_new in stored if is_new]
        return Copied(kind, name, len(sent), sum(sent))

    def _check_committed(self, path: str, file: StoredFile) -> None:
        with self.memory.of(file.size):
            self.target.read_committed(path, file.name)

    def _stage(self, path: str, pending: PendingFolder, file: StoredFile) -> tuple[StoredFile, bool]:
        """Returns the file as it is staged in the target, and whether it had to be sent."""
        with self.memory.of(2 * file.size):
            if (kept := pending.staged(file.name, file.sha256)) is not None:
                return kept, False
            if self.dry_run:
                return file, True
            pending.write(file.name, self.source.read_committed(path, file.name))
            if (written := pending.staged(file.name, file.sha256)) is None:
                raise StorageError(
                    f"{pending.storage.uri_of(path)}: {file.name} has other content than was written; use another "
                    "storage"
                )
            return written, True


def _turn(kind: Kind, file: str) -> int:
    """Returns when a file is written: a document after what it names, and the mark last."""
    if file == kind.mark:
        return 3
    return 2 if file == "best/checkpoint.json" else 1 if file.endswith("/checkpoint.json") else 0


def _content(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what makes two committed folders the same, wherever they are stored."""
    files = [[file.name, file.size, file.sha256] for file in files_of(manifest)]
    return {**manifest, "files": files, "volatile": None}


def _conflict(target: Storage, kind: Kind, name: str, file: str) -> ConflictError:
    return ConflictError(
        f"{kind.name} {name!r}: exists in {target.uri} with other content ({file}); remove one with "
        f"`mnist-ray rm {kind.name}`, or choose another storage"
    )


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
