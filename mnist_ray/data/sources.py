"""Listing the user's own files, local or on S3."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_ray.errors import DataError

if TYPE_CHECKING:
    from mnist_ray.storage import FileEntry, Storage

# What file managers and archivers leave beside images; the storage leaves out names that begin with '.'.
JUNK_NAMES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx"}
FILES_AT_ONCE = 16
FILES_AHEAD = 64


def list_paths(storage: "Storage", source: str, *, max_bytes: int | None = None) -> list[str]:
    """Sorted paths of all files in a storage, without hidden files and junk.

    Args:
      storage: the place.
      source: the data set that a message names.
      max_bytes: size of the largest file that may be there; None for any.

    Raises:
      DataError: there is no such folder, nothing in it, or a file that is too large.
      StorageError: it can't be listed.
    """
    if storage.is_local and not Path(storage.uri).is_dir():
        raise DataError(f"{source}: {storage.uri} is not a folder; check the path")
    entries = [entry for entry in storage.list_files() if not _is_junk(entry.path)]
    if not entries:
        raise DataError(f"{source}: there are no files in {storage.uri}; check the path")
    largest = max(entries, key=lambda entry: entry.size)
    if max_bytes is not None and largest.size > max_bytes:
        raise DataError(f"{source}: {largest.path} has {largest.size} bytes, more than {max_bytes}; move or remove it")
    return [entry.path for entry in entries]


def iter_entries(storage: "Storage", source: str) -> Iterator["FileEntry"]:
    """Yields all files in a storage, sorted by path, without hidden files and junk, and without holding them all.

    Raises:
      DataError: there is no such folder.
      StorageError: it can't be listed.
    """
    if storage.is_local and not Path(storage.uri).is_dir():
        raise DataError(f"{source}: {storage.uri} is not a folder; check the path")
    for entry in storage.iter_files():
        if not _is_junk(entry.path):
            yield entry


def _is_junk(path: str) -> bool:
    return any(part.lower() in JUNK_NAMES for part in path.split("/"))


def read_files(storage: "Storage", paths: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Yields path and content of each file in order, several read at once, at most FILES_AHEAD in memory."""
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        for start in range(0, len(paths), FILES_AHEAD):
            ahead = paths[start : start + FILES_AHEAD]
            yield from zip(ahead, pool.map(storage.read_bytes, ahead), strict=True)


def list_words(names: Sequence[str], limit: int = 3) -> str:
    """'a, b, c and 4 more'."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
