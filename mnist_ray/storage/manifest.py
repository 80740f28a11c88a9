"""The contents of a storage: objects in a listing, and the files of a committed folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# Files of a storage that one process reads or writes at once.
REQUESTS_AT_ONCE = 16
MANIFEST = "_manifest.json"
SUCCESS = "_SUCCESS"
STAGING = ".staging"

# Called with the path and the kind, in words, of each entry that isn't a readable file.
LeftOut = Callable[[str, str], None]


@dataclass(frozen=True)
class FileEntry:
    """An object in a listing.

    Attributes:
      path: relative to the storage.
      size: in bytes.
      stamp: changes whenever the object is written: the time in nanoseconds on a disk, the ETag on S3.
      written_at: time of the last write by the storage's clock, in seconds since the epoch.
    """

    path: str
    size: int
    stamp: str = field(default="", compare=False)
    written_at: float = field(default=0.0, compare=False)


@dataclass(frozen=True)
class StoredFile:
    """A file of a committed folder, with the name for readers and the name it is stored under."""

    name: str
    stored_name: str
    size: int
    sha256: str


def files_of(manifest: Mapping[str, Any]) -> list[StoredFile]:
    """Returns the files in a committed folder's manifest."""
    return [StoredFile(**file) for file in manifest["files"]]
