"""Finds what a storage can do without: checkpoints of finished runs, and what killed or deleted writers left."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from mnist_ray.errors import CheckpointError, DataError
from mnist_ray.results.kinds import EVALUATION, GRID, PREDICTION, RUN, Kind, existing
from mnist_ray.results.paths import run_path
from mnist_ray.results.run_documents import DamagedCheckpoint, read_checkpoint_document
from mnist_ray.results.run_progress import read_history, read_history_table
from mnist_ray.storage.manifest import MANIFEST, REQUESTS_AT_ONCE, SUCCESS, FileEntry, files_of
from mnist_ray.storage.storage import MissingError, Storage
from mnist_ray.text.escape import say_line

CHECKPOINTS = "checkpoints of finished runs, but the best"
STAGED = "files of killed writers"
UPLOADS = "unfinished uploads"
REMAINS = "results half deleted, half copied or never committed"
UNNAMED = "files in evaluations and predictions that no manifest names"
# Everything but the first is waste only at some age: a job may still be writing it.
WASTE = (CHECKPOINTS, STAGED, UPLOADS, REMAINS, UNNAMED)

# How PendingFolder.write names files on S3.
_HASHED = r"([^/]+/)?[^/]+-[0-9a-f]{12}(\.[^/]*)?"
# What goes from a folder without its mark. Anything else there may be a person's, and best/checkpoint.json that of a
# trained network whose config.json is lost; rm deletes both first, and cp writes them last.
_LEFT_BEHIND = {
    RUN: r"history\.parquet|status\.json|best/model\.safetensors|checkpoints/epoch-\d+/[^/]+",
    GRID: r"runs\.parquet|asha\.json|looks\.json",
    EVALUATION: _HASHED,
    PREDICTION: _HASHED,
}


@dataclass(frozen=True)
class Waste:
    """Something to remove: which of WASTE, its bytes, and how."""

    what: str
    size: int
    remove: Callable[[], None]


def find_waste(storage: Storage, *, older_than_s: float) -> list[Waste]:
    """Returns what a storage can do without; says what stays although it may look like waste.

    Args:
      older_than_s: least age of everything but the checkpoints of finished runs.

    Raises:
      StorageError: the storage can't be read.
    """
    found = [
        Waste(STAGED if isinstance(each.what, str) else UPLOADS, each.size, partial(storage.remove, each))
        for each in storage.leftovers(older_than_s=older_than_s)
    ]
    kinds = [kind for kind in (RUN, GRID, EVALUATION, PREDICTION) if storage.list_folders(kind.folder)]
    if not kinds:
        return found
    there = {kind: existing(storage, kind) for kind in kinds}
    before = storage.now() - older_than_s
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        parts = [pool.map(partial(_checkpoints, storage), there.get(RUN, []))]
        for kind in kinds:
            names = sorted({*storage.list_folders(kind.folder)} - {*there[kind]})
            parts.append(pool.map(partial(_remains, storage, kind, before), names))
            if kind in (EVALUATION, PREDICTION):
                parts.append(pool.map(partial(_unnamed, storage, kind, before), there[kind]))
        return [*found, *(waste for part in parts for each in part for waste in each)]


def _checkpoints(storage: Storage, run: str) -> list[Waste]:
    by_epoch: dict[str, list[FileEntry]] = defaultdict(list)
    folder = run_path(run, "checkpoints")
    for entry in storage.iter_files(folder):
        by_epoch[entry.path.removeprefix(f"{folder}/").partition("/")[0]].append(entry)
    if not by_epoch or not storage.exists(run_path(run, "best", "checkpoint.json")):
        return []
    try:
        _check_best(storage, run)
    except (CheckpointError, DataError, MissingError) as error:
        say_line(f"{error}; the run's checkpoints stay")
        return []
    # A killed removal leaves no checkpoint.json without its tensors.
    delete = partial(storage.delete_folder, first=("checkpoint.json",))
    return [
        Waste(CHECKPOINTS, _size(entries), partial(delete, f"{folder}/{epoch}"))
        for epoch, entries in sorted(by_epoch.items())
    ]


def _check_best(storage: Storage, run: str) -> None:
    """Checks that nothing of a finished run would have to be mended from its other checkpoints.

    Raises:
      CheckpointError, DataError, MissingError: the best checkpoint or the history is damaged or missing.
    """
    document = read_checkpoint_document(storage, run, "best")
    weights = storage.read_bytes(run_path(run, "best", "model.safetensors"))
    if hashlib.sha256(weights).hexdigest() != document["files"]["model.safetensors"]:
        raise DamagedCheckpoint(f"run {run!r}: best/model.safetensors: SHA-256 differs from checkpoint.json")
    # An older version kept only the epochs up to the best there.
    if "status" not in document and read_history_table(storage, run) != read_history(storage, run):
        raise DamagedCheckpoint(f"run {run!r}: history.parquet lacks epochs")


def _remains(storage: Storage, kind: Kind, before: float, name: str) -> list[Waste]:
    entries = storage.list_files(kind.path(name))
    if not entries or max(entry.written_at for entry in entries) > before:
        return []
    for entry in entries:
        file = entry.path.removeprefix(kind.path(name, ""))
        if not re.fullmatch(_LEFT_BEHIND[kind], file):
            say_line(
                f"{kind.name} {name!r}: has no {kind.mark}, but {file}; it stays, until you remove it with "
                f"`mnist-ray rm {kind.name} {name}`"
            )
            return []
    return [Waste(REMAINS, _size(entries), partial(storage.delete_folder, kind.path(name)))]


def _unnamed(storage: Storage, kind: Kind, before: float, name: str) -> list[Waste]:
    try:
        manifest = storage.read_manifest(kind.path(name))
    except DataError as error:
        say_line(f"{error}; what it may have named stays")
        return []
    if manifest is None:
        return []
    named = {kind.path(name, stored) for stored in (MANIFEST, SUCCESS, *(f.stored_name for f in files_of(manifest)))}
    return [
        Waste(UNNAMED, entry.size, partial(storage.delete, entry.path))
        for entry in storage.iter_files(kind.path(name))
        if entry.path not in named
        and re.fullmatch(_HASHED, entry.path.removeprefix(kind.path(name, "")))
        and entry.written_at <= before
    ]


def _size(entries: Sequence[FileEntry]) -> int:
    return sum(entry.size for entry in entries)
