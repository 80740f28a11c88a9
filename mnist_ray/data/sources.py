"""Listing the user's own files, local or on S3."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_ray.errors import DataError, StorageError
from mnist_ray.storage.manifest import REQUESTS_AT_ONCE
from mnist_ray.storage.storage import is_path
from mnist_ray.text.escape import printable

if TYPE_CHECKING:
    from mnist_ray.storage.storage import FileEntry, Storage

# What file managers and archivers leave beside images; the storage leaves out names that begin with '.'.
JUNK_NAMES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx"}
FILES_AHEAD = 64
MAX_NAMES_SAID = 3
_PLURALS = {
    "link that leads nowhere": "links that lead nowhere",
    "link that leads back to itself": "links that lead back to themselves",
    "link to a folder that it lies in": "links to folders that they lie in",
}


@dataclass(frozen=True)
class Listing:
    """The files of a folder.

    Attributes:
      paths: of the regular files, sorted.
      left_out: what else is there, one clause a kind, such as '1 FIFO (a/x.png)'.
    """

    paths: list[str]
    left_out: tuple[str, ...] = ()


@dataclass
class LeftOutFiles:
    """Counts what a walk over a folder finds that is no regular file; called with each one's path and kind."""

    counts: Counter[str] = field(default_factory=Counter)
    _first: dict[str, list[str]] = field(default_factory=dict)
    _folders: set[str] = field(default_factory=set)

    def __call__(self, path: str, kind: str) -> None:
        """Counts one; see stored_files.LeftOut."""
        self.counts[kind] += 1
        self._folders.add(path.rpartition("/")[0])
        first = self._first.setdefault(kind, [])
        if len(first) < MAX_NAMES_SAID:
            first.append(printable(path))

    def clauses(self) -> tuple[str, ...]:
        """Returns one clause a kind, such as '1 FIFO (a/x.png)'."""
        return tuple(
            f"{_counted(n, kind)} ({words_of(self._first[kind], n)})" for kind, n in sorted(self.counts.items())
        )

    def folders_without(self, paths: Iterable[str]) -> list[str]:
        """Returns the folders that have something left out and, of some paths, none below them."""
        filled = {parent for path in paths for parent in _parents(path)}
        return sorted(self._folders - filled)


def list_files(storage: "Storage", source: str, *, max_bytes: int | None = None) -> Listing:
    """Lists all regular files in a storage, without hidden files and junk; the rest is counted.

    Args:
      storage: the place.
      source: the data set that a message names.
      max_bytes: size of the largest file that may be there; None for any.

    Raises:
      DataError: there is no such folder, nothing in it, or one in it that has nothing but what is left out; a file
        that is too large, or one whose name can't be used.
      StorageError: it can't be listed.
    """
    left_out = LeftOutFiles()
    entries = sorted(iter_entries(storage, source, left_out=left_out), key=lambda entry: entry.path)
    if lost := left_out.folders_without(entry.path for entry in entries):
        raise DataError(
            f"{source}: {printable(storage.uri_of('') if lost == [''] else list_words(lost))} has no files that can be "
            f"read; left out are {', '.join(left_out.clauses())}; fetch or remove them"
        )
    if not entries:
        raise DataError(f"{source}: there are no files in {storage.uri}; check the path")
    if unusable := [printable(entry.path) for entry in entries if not is_path(entry.path)]:
        is_one = len(unusable) == 1
        names, it = ("its name holds", "it") if is_one else ("their names hold", "them")
        raise DataError(f"{source}: {_counted(len(unusable), 'file')} can't be read, as {names} control characters, "
                        f"empty parts or what is no Unicode: {list_words(unusable)}; rename {it}")  # fmt: skip
    largest = max(entries, key=lambda entry: entry.size)
    if max_bytes is not None and largest.size > max_bytes:
        raise DataError(f"{source}: {largest.path} has {largest.size} bytes, more than {max_bytes}; move or remove it")
    return Listing([entry.path for entry in entries], left_out.clauses())


def iter_entries(storage: "Storage", source: str, *, left_out: LeftOutFiles | None = None) -> Iterator["FileEntry"]:
    """Yields all regular files in a storage, sorted by path, without hidden files and junk, and without holding them.

    Args:
      storage: the place.
      source: the data set that a message names.
      left_out: counts what else is there.

    Raises:
      DataError: there is no such folder, or one in it may not be read.
      StorageError: it can't be listed.
    """
    if storage.is_local and not Path(storage.uri).is_dir():
        place = Path(storage.uri)
        what = "neither a folder nor a regular file" if place.exists() and not place.is_file() else "not a folder"
        raise DataError(f"{source}: {storage.uri} is {what}; check the path")
    counted = left_out or LeftOutFiles()
    try:
        for entry in storage.iter_files(left_out=lambda path, kind: None if _is_junk(path) else counted(path, kind)):
            if not _is_junk(entry.path):
                yield entry
    except StorageError as error:
        if not isinstance(error.__cause__, PermissionError):
            raise
        # What lies in it is unknown: it may be a whole class.
        raise DataError(
            f"{source}: the folder {printable(str(error.__cause__.filename))} may not be read; change its permissions "
            "or move it away"
        ) from None


def _parents(path: str) -> Iterator[str]:
    while path:
        path = path.rpartition("/")[0]
        yield path


def _counted(count: int, kind: str) -> str:
    """'1 FIFO', '3 links that lead nowhere'."""
    if count == 1:
        return f"1 {kind}"
    return f"{count} {_PLURALS.get(kind, f'{kind}s')}"


def _is_junk(path: str) -> bool:
    return any(part.lower() in JUNK_NAMES for part in path.split("/"))


def read_files(storage: "Storage", paths: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Yields path and content of each file in order, several read at once, at most FILES_AHEAD in memory."""
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        for start in range(0, len(paths), FILES_AHEAD):
            ahead = paths[start : start + FILES_AHEAD]
            yield from zip(ahead, pool.map(storage.read_bytes, ahead), strict=True)


def list_words(names: Sequence[str], limit: int = MAX_NAMES_SAID) -> str:
    """'a, b, c and 4 more'."""
    return words_of(names, len(names), limit)


def words_of(first: Sequence[str], count: int, limit: int = MAX_NAMES_SAID) -> str:
    """Returns what list_words does, from the first names alone and how many there are."""
    shown = first[:limit]
    return ", ".join(shown) + (f" and {count - len(shown)} more" if count > len(shown) else "")
