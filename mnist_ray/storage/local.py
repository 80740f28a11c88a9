"""Stored files on a disk."""

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from mnist_ray.errors import StorageError
from mnist_ray.storage.failures import NotAnObjectError
from mnist_ray.storage.manifest import MANIFEST, STAGING, SUCCESS, FileEntry, LeftOut, StoredFile

if TYPE_CHECKING:
    import pyarrow


_PUT_ATTEMPTS = 3
# What is being deleted has a name of this kind in the staging area.
_DELETED = "deleted-"


class LocalBackend:
    """Objects are files below a root folder."""

    def __init__(self, root: str) -> None:
        self.root = Path(root)
        self._was_there = False

    def place(self) -> dict[str, str | None]:
        return {"kind": "local folder"}

    def exists(self, path: str) -> bool:
        return (self.root / path).is_file()

    def entry(self, path: str) -> FileEntry:
        return _entry(path, self._regular(path).stat())

    def read(self, path: str) -> bytes:
        return self._regular(path).read_bytes()

    def open(self, path: str) -> "pyarrow.NativeFile":
        import pyarrow

        # Not a memory map: truncating a mapped file would end the process with SIGBUS.
        return pyarrow.OSFile(str(self._regular(path)))

    def _regular(self, path: str) -> Path:
        """Returns the path of a regular file or folder; reading anything else, for instance a pipe, might never end."""
        target = self.root / path
        mode = target.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise NotAnObjectError(f"{target}: a pipe, socket or device, not an object")
        return target

    def files(
        self, path: str, left_out: LeftOut, *, above: frozenset[tuple[int, int]] = frozenset()
    ) -> Iterator[FileEntry]:
        """Yields the regular files below a folder sorted by path, following links.

        Reports other kinds of files, and links to a folder above, to left_out, and never opens them.
        """
        try:
            status = os.stat(self.root / path)
            if (status.st_dev, status.st_ino) in above:
                left_out(path, "link to a folder that it lies in")
                return
            above |= {(status.st_dev, status.st_ino)}
            entries = [entry for entry in os.scandir(self.root / path) if not entry.name.startswith(".")]
        except FileNotFoundError:
            return
        statuses = ((entry.name, _status_or_kind(entry)) for entry in entries)
        # With a trailing slash, a folder's name sorts like the paths in it: 'a.png' comes before 'a/b.png'.
        named = ((f"{name}/" if _is_folder(status) else name, status) for name, status in statuses)
        ordered = sorted(named, key=itemgetter(0))
        for name, status_or_kind in ordered:
            below = f"{path}/{name}" if path else name
            if isinstance(status_or_kind, str):
                left_out(below, status_or_kind)
            elif name.endswith("/"):
                yield from self.files(below.rstrip("/"), left_out, above=above)
            elif status_or_kind is not None:
                yield _entry(below, status_or_kind)

    def folders(self, path: str) -> list[str]:
        folder = self.root / path
        return [entry.name for entry in os.scandir(folder) if entry.is_dir()] if folder.exists() else []

    def _inside(self, path: str) -> Path:
        """Returns the path to write or delete, if no link on the way leads out of the root.

        Otherwise a link in a shared storage could make another user delete files elsewhere.
        """
        # Never recreate a vanished root: that would hide the loss, and runs would go on in an empty folder.
        if self.root.is_dir():
            self._was_there = True
        elif self._was_there:
            raise StorageError(
                f"storage={str(self.root)!r}: the folder is gone: deleted, or no longer mounted; "
                "bring it back, and go on with the same command"
            )
        target = self.root / path
        if not target.parent.resolve().is_relative_to(self.root.resolve()):
            raise StorageError(f"{target}: a link on the way leads out of the storage; remove the link")
        return target

    def write(self, path: str, data: bytes) -> None:
        target = self._inside(path)
        with self._temporary(data) as temporary:
            _into_folder(target.parent, lambda: os.replace(temporary, target))
        _fsync_if_there(target.parent)

    def create(self, path: str, data: bytes) -> bool:
        target = self._inside(path)
        with self._temporary(data) as temporary:
            try:
                _into_folder(target.parent, lambda: os.link(temporary, target))
            except FileExistsError:
                # NFS retries a request whose answer is lost; then the existing file is this one.
                if temporary.stat().st_nlink == 1:
                    return False
        _fsync_if_there(target.parent)
        return True

    @contextlib.contextmanager
    def _temporary(self, data: bytes) -> Iterator[Path]:
        """Yields a durable file with the content to rename or link, and removes what is left of it afterwards."""
        temporary = self._inside(f"{STAGING}/object-{secrets.token_hex(8)}")
        _make_folder(temporary.parent)
        self._was_there = True
        try:
            _write_durably(temporary, data)
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def delete(self, path: str) -> None:
        self._inside(path).unlink(missing_ok=True)

    def delete_folder(self, path: str, first: Sequence[str]) -> None:
        del first  # all vanish at once
        target, doomed = self._inside(path), self._inside(f"{STAGING}/{_DELETED}{secrets.token_hex(8)}")
        if not os.path.lexists(target):
            return
        _make_folder(doomed.parent)
        # Another process may delete the folder at the same time.
        with contextlib.suppress(FileNotFoundError):
            # One atomic rename hides the whole folder before the first file is deleted.
            os.rename(target, doomed)
            # Delete a link itself, not its target.
            if doomed.is_symlink() or not doomed.is_dir():
                doomed.unlink()
        while doomed.is_dir():
            # Another process may finish this deletion, which it takes for a killed one's.
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(doomed)

    def staged(self) -> dict[str, tuple[float, int]]:
        """Returns name -> (time of the last write in seconds since the epoch, bytes) for the work in progress.

        Nobody needs what was being deleted, so its time is 0.
        """
        staging = self.root / STAGING
        found = {}
        for entry in list(staging.iterdir()) if staging.exists() else []:
            # An entry vanishes when its writer finishes.
            with contextlib.suppress(FileNotFoundError):
                inside = list(entry.rglob("*")) if entry.is_dir() and not entry.is_symlink() else []
                statuses = [file.lstat() for file in [entry, *inside]]
                newest = max(status.st_mtime for status in statuses)
                size = sum(status.st_size for status in statuses if stat.S_ISREG(status.st_mode))
                found[entry.name] = (0.0 if entry.name.startswith(_DELETED) else newest, size)
        return found

    def now(self) -> float:
        """Returns the time of the disk's own clock, from a file just written there; a mounted disk's may differ."""
        with self._temporary(b"") as temporary:
            return temporary.stat().st_mtime

    def commit(self, path: str, staging: str, files: Sequence[StoredFile], manifest: bytes) -> bool:
        """Renames the staged folder to its final name; returns False if that name exists."""
        source, target = self._inside(f"{staging}/{MANIFEST}").parent, self._inside(path)
        _make_folder(source)
        for file in files:
            staged = source / file.stored_name
            if not staged.is_file() or staged.stat().st_size != file.size:
                raise StorageError(
                    f"{staged}: written by a worker, but missing here; several machines need a shared folder, "
                    "or s3://bucket/prefix"
                )
        kept = {source / file.stored_name for file in files}
        for stray in [path for path in source.rglob("*") if path.is_file() and path not in kept]:
            stray.unlink()
        for folder in {path.parent for path in kept} - {source}:
            _fsync_folder(folder)
        _write_durably(source / MANIFEST, manifest)
        _write_durably(source / SUCCESS, b"")
        _fsync_folder(source)
        _make_folder(target.parent)
        try:
            os.rename(source, target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise
        _fsync_folder(target.parent)
        return True


def _status_or_kind(entry: os.DirEntry[str]) -> os.stat_result | str | None:
    """Returns the status of a folder or regular file, the kind of anything else in words, None if it has vanished."""
    try:
        status = entry.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "link that leads back to itself"
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise
        return "link that leads nowhere" if entry.is_symlink() else None
    kinds = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
    return kinds.get(stat.S_IFMT(status.st_mode), status)


def _entry(path: str, status: os.stat_result) -> FileEntry:
    return FileEntry(path, status.st_size, str(status.st_mtime_ns), status.st_mtime)


def _is_folder(status: os.stat_result | str | None) -> bool:
    return isinstance(status, os.stat_result) and stat.S_ISDIR(status.st_mode)


def _write_durably(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _make_folder(folder: Path) -> None:
    """Creates a folder and its missing parents durably."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _fsync_folder(folder.parent)


def _into_folder(folder: Path, put: Callable[[], None]) -> None:
    """Puts a file into a folder, retrying if another writer deletes the folder meanwhile."""
    for attempt in range(_PUT_ATTEMPTS):
        try:
            _make_folder(folder)
            put()
            return
        except FileNotFoundError:
            if attempt == _PUT_ATTEMPTS - 1:
                raise


def _fsync_if_there(folder: Path) -> None:
    """Makes the names in a folder durable, unless another writer has deleted it with what was just put there."""
    with contextlib.suppress(FileNotFoundError):
        _fsync_folder(folder)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
