"""Lists the user's own files, local or on S3."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_ray.errors import DataError, StorageError
from mnist_ray.storage.manifest import REQUESTS_AT_ONCE
from mnist_ray.storage.storage import open_storage
from mnist_ray.storage.uri import is_path
from mnist_ray.text.doing import counted
from mnist_ray.text.escape import printable

if TYPE_CHECKING:
    from mnist_ray.storage.storage import FileEntry, Storage

# Junk of file managers and archivers; the storage leaves out names that begin with '.'.
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
      paths: sorted paths of the regular files.
      left_out: one clause for each kind of other entries, like '1 FIFO (a/x.png)'.
    """

    paths: list[str]
    left_out: tuple[str, ...] = ()


@dataclass
class LeftOutFiles:
    """Counts the entries of a folder that aren't regular files; called with each entry's path and kind."""

    counts: Counter[str] = field(default_factory=Counter)
    _first: dict[str, list[str]] = field(default_factory=dict)
    _folders: set[str] = field(default_factory=set)

    def __call__(self, path: str, kind: str) -> None:
        """Counts an entry; see storage.manifest.LeftOut."""
        self.counts[kind] += 1
        self._folders.add(path.rpartition("/")[0])
        first = self._first.setdefault(kind, [])
        if len(first) < MAX_NAMES_SAID:
            first.append(printable(path))

    def clauses(self) -> tuple[str, ...]:
        """Returns one clause per kind, like '1 FIFO (a/x.png)'."""
        return tuple(
            f"{_counted(n, kind)} ({words_of(self._first[kind], n)})" for kind, n in sorted(self.counts.items())
        )

    def folders_without(self, paths: Iterable[str]) -> list[str]:
        """Returns the folders with entries left out and none of the given paths below them."""
        filled = {parent for path in paths for parent in _parents(path)}
        return sorted(self._folders - filled)


def file_at(uri: str) -> tuple["Storage", str] | None:
    """Returns the folder and the name of the file at a URI in its normal form, None if there is no file."""
    parent, _, name = uri.rpartition("/")
    if parent == "s3:/" or not name:
        return None
    folder = open_storage(parent or "/")
    return (folder, name) if folder.exists(name) else None


def list_files(storage: "Storage", source: str, *, max_bytes: int | None = None) -> Listing:
    """Lists all regular files in a storage, without hidden files and junk, and counts all other entries.

    Raises:
      DataError: the folder is missing or empty, a folder in it has only entries left out, or a file is too large or has
        an unusable name.
      StorageError: the storage can't be listed.
    """
    left_out = LeftOutFiles()
    entries = sorted(iter_entries(storage, source, left_out=left_out), key=lambda entry: entry.path)
    if lost := left_out.folders_without(entry.path for entry in entries):
        raise DataError(
            f"{source}: {printable(storage.uri_of('') if lost == [''] else list_words(lost))} has no readable files; "
            f"left out: {', '.join(left_out.clauses())}; fetch or remove them"
        )
    if not entries:
        raise DataError(f"{source}: there are no files in {storage.uri}; check the path")
    if unusable := [printable(entry.path) for entry in entries if not is_path(entry.path)]:
        is_one = len(unusable) == 1
        names, it = ("its name holds", "it") if is_one else ("their names hold", "them")
        raise DataError(f"{source}: {_counted(len(unusable), 'file')} can't be read, as {names} control characters, "
                        f"empty parts or invalid Unicode: {list_words(unusable)}; rename {it}")  # fmt: skip
    largest = max(entries, key=lambda entry: entry.size)
    if max_bytes is not None and largest.size > max_bytes:
        raise DataError(f"{source}: {largest.path} has {largest.size} bytes, more than {max_bytes}; move or remove it")
    return Listing([entry.path for entry in entries], left_out.clauses())


def iter_entries(storage: "Storage", source: str, *, left_out: LeftOutFiles | None = None) -> Iterator["FileEntry"]:
    """Streams all regular files in a storage by path, without hidden files and junk; left_out counts all other entries.

    Raises:
      DataError: the folder is missing, or a folder in it is not readable.
      StorageError: the storage can't be listed.
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
        # The contents are unknown and may be a whole class, so don't skip the folder.
        raise DataError(
            f"{source}: the folder {printable(str(error.__cause__.filename))} is not readable; change its permissions "
            "or move it away"
        ) from None


def _parents(path: str) -> Iterator[str]:
    while path:
        path = path.rpartition("/")[0]
        yield path


def _counted(count: int, kind: str) -> str:
    """Returns '1 FIFO' or '3 links that lead nowhere'."""
    if count == 1:
        return f"1 {kind}"
    return f"{count} {_PLURALS.get(kind, f'{kind}s')}"


def _is_junk(path: str) -> bool:
    return any(part.lower() in JUNK_NAMES for part in path.split("/"))


def read_files(storage: "Storage", paths: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Yields path and content of each file in order; reads several at once, with at most FILES_AHEAD in memory."""
    yield from counted(_read_ahead(storage, paths), "files read", total=len(paths))


def _read_ahead(storage: "Storage", paths: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        for start in range(0, len(paths), FILES_AHEAD):
            ahead = paths[start : start + FILES_AHEAD]
            yield from zip(ahead, pool.map(storage.read_bytes, ahead), strict=True)


def list_words(names: Sequence[str], limit: int = MAX_NAMES_SAID) -> str:
    """Returns 'a, b, c and 4 more'."""
    return words_of(names, len(names), limit)


def words_of(first: Sequence[str], count: int, limit: int = MAX_NAMES_SAID) -> str:
    """Returns the words of list_words from only the first names and the number of all."""
    listed = first[:limit]
    return ", ".join(listed) + (f" and {count - len(listed)} more" if count > len(listed) else "")
