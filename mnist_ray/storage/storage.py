"""The only access to stored files, in a local folder or at s3://bucket/prefix.

Objects are written atomically: a reader finds the old content or the new, never a part. A folder of results is
committed once, in one step (PendingFolder), and never changed afterwards.

Work in progress lives under <storage>/.staging/, hidden from every listing. Leftovers of killed writers are removed
after a day.
"""

import errno
import hashlib
import json
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from mnist_ray.errors import ConflictError, DataError, StorageError
from mnist_ray.storage.failures import OS_REASONS, MissingError, storage_errors
from mnist_ray.storage.leftovers import Leftover, find_leftovers
from mnist_ray.storage.local import LocalBackend
from mnist_ray.storage.manifest import MANIFEST, STAGING, SUCCESS, FileEntry, LeftOut, StoredFile, files_of
from mnist_ray.storage.s3 import S3Backend
from mnist_ray.storage.uri import check_uri, is_path, without_secrets

if TYPE_CHECKING:
    import pyarrow

__all__ = [
    "FileEntry",
    "Leftover",
    "MissingError",
    "PendingFolder",
    "Proof",
    "Storage",
    "StoredFile",
    "check_uri",
    "open_storage",
    "storage_errors",
    "without_secrets",
]

STAGING_LIFETIME_S = 24 * 3600

_FILE_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,199}/)?[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


@dataclass(frozen=True)
class Proof:
    """A capability of a storage and its proof."""

    capability: str
    proof: str


def open_storage(uri: str) -> "Storage":
    """Returns the storage at a URI, without access to the disk or the network.

    Args:
      uri: a local path (a relative path is made absolute), file:///folder, or s3://bucket/prefix.

    Raises:
      ConfigError: the URI breaks a rule of check_uri.
    """
    return Storage(check_uri(uri))


@lru_cache(maxsize=8)
def _unpickled(uri: str) -> "Storage":
    """Returns the same storage for all tasks of a worker, since S3's client takes a while to make."""
    return Storage(uri)


@dataclass(frozen=True)
class Storage:
    """A folder of objects, local or on S3; made by open_storage, small to pickle, without credentials.

    Every path is relative to the storage, with parts separated by '/', and can't leave it. Any failure of the disk,
    the network or the server raises StorageError; reading a missing object raises MissingError.
    """

    uri: str

    def __reduce__(self) -> "tuple[Callable[[str], Storage], tuple[str]]":
        return (_unpickled, (self.uri,))

    @property
    def is_local(self) -> bool:
        """Whether the objects are files of this machine (or of a file system mounted on it)."""
        return not self.uri.startswith("s3://")

    @cached_property
    def _backend(self) -> LocalBackend | S3Backend:
        if not self.is_local:
            return S3Backend(self.uri)
        if os.path.exists(self.uri) and not os.path.isdir(self.uri):
            raise StorageError(f"storage={self.uri!r}: {OS_REASONS[errno.ENOTDIR]}")
        return LocalBackend(self.uri)

    def uri_of(self, path: str) -> str:
        """Returns the local path or s3:// URI of a path, for users and DuckDB."""
        return f"{self.uri.rstrip('/')}/{_check_path(path)}" if path else self.uri

    def exists(self, path: str) -> bool:
        """Tells whether there is an object (not a folder) at the path."""
        with storage_errors(self.uri_of(path), "read"):
            return self._backend.exists(path)

    def read_bytes(self, path: str) -> bytes:
        """Returns an object's content."""
        with storage_errors(self.uri_of(path), "read"):
            return self._backend.read(path)

    def open_input(self, path: str) -> "pyarrow.NativeFile":
        """Opens an object for random access; read it inside `with storage_errors(uri):`."""
        with storage_errors(self.uri_of(path), "read"):
            return self._backend.open(path)

    def entry(self, path: str) -> FileEntry:
        """Returns an object as a listing of its folder does."""
        with storage_errors(self.uri_of(path), "read"):
            return self._backend.entry(path)

    def list_files(self, path: str = "") -> list[FileEntry]:
        """Returns the objects of iter_files as a list."""
        return sorted(self.iter_files(path), key=lambda entry: entry.path)

    def iter_files(self, path: str = "", *, left_out: LeftOut | None = None) -> Iterator[FileEntry]:
        """Yields the objects below a folder, sorted by path; none if there is no folder.

        Holds one folder's names at a time (S3: one page). Leaves out names beginning with '.', and everything in
        folders with these names; locally, also everything but regular files and links to them, as reading a pipe might
        never end.

        Args:
          left_out: called with the path and the kind, for instance "FIFO", of each entry that is no regular file.
        """
        with storage_errors(self.uri_of(path), "listed"):
            yield from self._backend.files(path, left_out or (lambda _path, _kind: None))

    def list_folders(self, path: str = "") -> list[str]:
        """Returns the sorted names of a folder's direct subfolders, except names beginning with '.' or '_'."""
        with storage_errors(self.uri_of(path), "listed"):
            return sorted(name for name in self._backend.folders(path) if name[0] not in "._")

    def write_bytes(self, path: str, data: bytes) -> None:
        """Writes or replaces an object atomically; it is durable on return."""
        with storage_errors(self.uri_of(path), "written"):
            self._backend.write(_check_path(path), data)

    def create_bytes(self, path: str, data: bytes) -> bool:
        """Writes an object atomically, or returns False if there is one already.

        Exactly one of any number of concurrent callers gets True, even if the client or a proxy retries its request.
        """
        with storage_errors(self.uri_of(path), "written"):
            return self._backend.create(_check_path(path), data)

    def delete(self, path: str) -> None:
        """Deletes an object, if it is there."""
        with storage_errors(self.uri_of(path), "deleted"):
            self._backend.delete(_check_path(path))

    def delete_folder(self, path: str, *, first: Sequence[str] = ()) -> None:
        """Deletes a folder with its contents; a committed folder stops being committed first.

        Args:
          first: names of objects in it that S3, which deletes one at a time, deletes first; a disk hides all at once.
        """
        with storage_errors(self.uri_of(path), "deleted"):
            self._backend.delete_folder(_check_path(path), first)

    def check(self) -> None:
        """Checks all capabilities that prove shows, making a missing local folder; raises as it does."""
        for _ in self.prove():
            pass

    def prove(self) -> Iterator["Proof"]:
        """Proves by trying that objects can be written, also conditionally, read, listed and deleted.

        Raises:
          StorageError: a capability is missing; the message names it, the reason and the remedy.
        """
        folder = f"{STAGING}/check-{secrets.token_hex(8)}"
        path, content = f"{folder}/object", folder.encode()
        if not self.create_bytes(path, content):
            raise self._disproved(folder, "reports that a new name is taken")
        yield Proof("write", f"an object of {len(content)} bytes was created")
        if self.create_bytes(path, b"another"):
            raise self._disproved(
                folder, "no conditional writes (If-None-Match is ignored), so two commits could overwrite each other"
            )
        yield Proof("conditional write", "a second object of its name was refused")
        if isinstance(self._backend, S3Backend):
            with storage_errors(self.uri, "written"):
                refuses_damage = self._backend.refuses_damage(f"{folder}/damaged")
            if not refuses_damage:
                raise self._disproved(folder, "accepts content damaged in transit, without verifying its checksum")
            yield Proof("checksum", "content damaged in transit is refused")
        if self.read_bytes(path) != content:
            raise self._disproved(folder, "returns other content than was written")
        yield Proof("read", "it has the content that was written")
        if self.list_files(folder) != [FileEntry(path, len(content))]:
            raise self._disproved(folder, "lists other objects than were written")
        yield Proof("list", "it is listed with its size")
        self.delete_folder(folder)
        if self.exists(path):
            raise StorageError(f"storage={self.uri!r}: keeps deleted objects; use another storage")
        yield Proof("delete", "it is gone")

    def _disproved(self, folder: str, what: str) -> StorageError:
        self.delete_folder(folder)
        return StorageError(f"storage={self.uri!r}: {what}; use another storage")

    def place(self) -> dict[str, str | None]:
        """Returns the storage's URI and, for S3, the endpoint, the region and the source of the credentials.

        Raises:
          StorageError: the server can't be reached, or there are no credentials.
        """
        with storage_errors(self.uri, "read"):
            return {"storage": self.uri, **self._backend.place()}

    def pending_folder(self, path: str) -> "PendingFolder":
        """Begins a folder that appears with all its files at once when committed."""
        self.remove_leftovers()
        return PendingFolder(self, _check_path(path), secrets.token_hex(8))

    def now(self) -> float:
        """Returns the time of the storage's own clock, in seconds since the epoch: this machine's may be days ahead."""
        with storage_errors(self.uri_of(STAGING), "written"):
            return self._backend.now()

    def leftovers(self, *, older_than_s: float = STAGING_LIFETIME_S) -> list[Leftover]:
        """Returns leftovers of killed writers in the staging area, by the age of each writer's newest file.

        Includes deletions that a killed process began, of any age, and on S3 unfinished multipart uploads anywhere in
        the storage.
        """
        return find_leftovers(self._backend, self.uri_of(STAGING), older_than_s=older_than_s)

    def remove(self, leftover: Leftover) -> None:
        """Removes a leftover."""
        if isinstance(leftover.what, str):
            self.delete_folder(leftover.what)
        elif isinstance(self._backend, S3Backend):
            with storage_errors(self.uri, "deleted"):
                self._backend.abort(leftover.what)

    def remove_leftovers(self, *, older_than_s: float = STAGING_LIFETIME_S) -> None:
        """Removes leftovers of killed writers; see `leftovers`."""
        for leftover in self.leftovers(older_than_s=older_than_s):
            self.remove(leftover)

    def read_manifest(self, path: str) -> dict[str, Any] | None:
        """Returns the manifest of a committed folder, None if the folder isn't committed.

        Raises:
          DataError: the manifest is damaged.
        """
        try:
            manifest = json.loads(self.read_bytes(f"{path}/{MANIFEST}"))
            files_of(manifest)
        except MissingError:
            return None
        except (ValueError, TypeError, KeyError, RecursionError):
            raise DataError(f"{self.uri_of(path)}/{MANIFEST}: damaged; delete the folder and make it again") from None
        return dict(manifest)

    def read_committed(self, path: str, name: str) -> bytes:
        """Returns a file of a committed folder, its size and SHA-256 checked.

        Raises:
          DataError: the content differs from the committed content.
          MissingError: the folder isn't committed, or doesn't have the file.
        """
        manifest = self.read_manifest(path)
        if manifest is None:
            raise MissingError(f"{self.uri_of(path)}: not there, or not committed")
        for file in files_of(manifest):
            if file.name == name:
                data = self.read_bytes(f"{path}/{file.stored_name}")
                if len(data) != file.size or hashlib.sha256(data).hexdigest() != file.sha256:
                    uri = self.uri_of(f"{path}/{file.stored_name}")
                    raise DataError(f"{uri}: not the content that was committed; delete the folder and make it again")
                return data
        raise MissingError(f"{self.uri_of(path)}: has no file {name!r}")

    def complete_commit(self, path: str) -> None:
        """Adds the _SUCCESS marker if the writer was killed after writing the manifest."""
        if self.read_manifest(path) is not None and not self.exists(f"{path}/{SUCCESS}"):
            self.write_bytes(f"{path}/{SUCCESS}", b"")


@dataclass(frozen=True)
class PendingFolder:
    """A folder to be committed once; any process may write its files."""

    storage: Storage
    path: str
    token: str

    @property
    def _staging(self) -> str:
        return f"{STAGING}/{self.token}"

    @property
    def _claim(self) -> str:
        # Hashed, because a name may be longer than a file's may be with a prefix.
        return f"{STAGING}/begun-{hashlib.sha256(self.path.encode()).hexdigest()[:16]}"

    def begun_at(self) -> datetime:
        """Returns when the folder was begun, in UTC: one time for all who write it at once, until one has committed.

        Several writers of the same content can thus put the time into it. A killed writer's time holds for a day.
        """
        while True:
            self.storage.create_bytes(f"{self._claim}/time", datetime.now(UTC).isoformat().encode())
            # Another writer deletes it on committing.
            with suppress(MissingError):
                return datetime.fromisoformat(self.storage.read_bytes(f"{self._claim}/time").decode())

    def write(self, name: str, data: bytes) -> StoredFile:
        """Stores one file, hidden from readers; writing the same name again replaces it.

        Args:
          name: letters, digits, '.', '_' and '-', the first a letter or digit; may lie in one subfolder.
        """
        if not _FILE_NAME.fullmatch(name):
            raise ValueError(f"file name {name!r}: use letters, digits, '.', '_' and '-' after a letter or digit")
        sha256 = hashlib.sha256(data).hexdigest()
        stored_name = self._stored_name(name, sha256)
        self.storage.write_bytes(f"{self._staging}/{stored_name}", data)
        return StoredFile(name, stored_name, len(data), sha256)

    def _stored_name(self, name: str, sha256: str) -> str:
        if self.storage.is_local:
            return name
        # S3 can't rename a folder, so files are copied to the final folder before the manifest: a hash in the name
        # keeps two writers from overwriting each other's files.
        folder, slash, file = name.rpartition("/")
        stem, dot, suffix = file.partition(".")
        return f"{folder}{slash}{stem}-{sha256[:12]}{dot}{suffix}"

    def staged(self, name: str, sha256: str) -> StoredFile | None:
        """Returns a file that write has stored, read again; None if it is missing or its content is another."""
        stored_name = self._stored_name(name, sha256)
        try:
            data = self.storage.read_bytes(f"{self._staging}/{stored_name}")
        except MissingError:
            return None
        is_same = hashlib.sha256(data).hexdigest() == sha256
        return StoredFile(name, stored_name, len(data), sha256) if is_same else None

    def commit(self, files: Sequence[StoredFile], manifest: Mapping[str, Any]) -> bool:
        """Makes the folder visible, with exactly these files.

        Args:
          files: the results of write, in any order.
          manifest: JSON values; 'files' is added. Values under the key 'volatile' (times, hosts) don't count as
            content.

        Returns:
          True if this call committed the folder, False if the same content had been committed before.

        Raises:
          ConflictError: the folder exists with other content, which stays unchanged.
        """
        ordered = sorted(files, key=lambda file: file.name)
        # The token distinguishes two writers of the same content, so that exactly one has committed it.
        volatile = {**manifest.get("volatile", {}), "commit_token": self.token}
        document = {**manifest, "files": [asdict(file) for file in ordered], "volatile": volatile}
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
        uri = self.storage.uri_of(self.path)
        with storage_errors(uri, "written"):
            committed = self.storage._backend.commit(self.path, self._staging, ordered, text)
        self.abort()
        if committed:
            return True
        existing = self.storage.read_manifest(self.path)
        if existing is None or {**existing, "volatile": None} != {**json.loads(text), "volatile": None}:
            raise ConflictError(f"{uri}: exists with other content; choose another name or move it away")
        self.storage.complete_commit(self.path)
        return False

    def abort(self) -> None:
        """Removes what isn't committed."""
        self.storage.delete_folder(self._staging)
        self.storage.delete_folder(self._claim)


def _check_path(path: str) -> str:
    if not is_path(path):
        raise StorageError(f"path={path!r}: must lie inside the storage, parts separated by single slashes")
    return path
