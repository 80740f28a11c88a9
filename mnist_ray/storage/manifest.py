"""What a storage holds: objects in a listing, and the files of a committed folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# Files of a storage that one process reads or writes at once.
REQUESTS_AT_ONCE = 16
MANIFEST = "_manifest.json"
SUCCESS = "_SUCCESS"
STAGING = ".staging"

# Told of the path and, in words, the kind of what is in a folder and is no file that can be read.
LeftOut = Callable[[str, str], None]


@dataclass(frozen=True)
class FileEntry:
    """An object in a listing: its path relative to the storage, and its bytes."""

    path: str
    size: int


@dataclass(frozen=True)
class StoredFile:
    """A file of a committed folder: the name that readers ask for, and the one it is stored under."""

    name: str
    stored_name: str
    size: int
    sha256: str


def files_of(manifest: Mapping[str, Any]) -> list[StoredFile]:
    """Returns the files that a committed folder's manifest names."""
    return [StoredFile(**file) for file in manifest["files"]]
