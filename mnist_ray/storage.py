"""Stored files behind one class: a local folder or s3://bucket/prefix, the only door to either.

Objects appear whole: a reader finds the old content or the new, never a part. A folder of results is committed in
one step (PendingFolder), once, and never changed after that.

Work in progress lives under <storage>/.staging/, out of every listing. What killed writers leave there is removed
after a day.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import stat
import time
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mnist_ray import s3_requests
from mnist_ray.errors import ConfigError, ConflictError, DataError, StorageError

if TYPE_CHECKING:
    import pyarrow

MANIFEST = "_manifest.json"
SUCCESS = "_SUCCESS"
STAGING = ".staging"
STAGING_LIFETIME_S = 24 * 3600
MULTIPART_BYTES = 64 << 20
PART_BYTES = 8 << 20
# How often an S3 object is sent or fetched whose content arrives damaged.
_BODY_ATTEMPTS = 6

Action = Literal["read", "written", "listed", "deleted"]

_CONTROL = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class MissingError(StorageError):
    """There is no object of that name."""


@dataclass(frozen=True)
class FileEntry:
    """An object in a listing: its path relative to the storage, and its bytes."""

    path: str
    size: int


@dataclass(frozen=True)
class Proof:
    """Something that a storage can do, and how that was shown."""

    capability: str
    proof: str


@dataclass(frozen=True)
class StoredFile:
    """A file of a committed folder: the name that readers ask for, and the one it is stored under."""

    name: str
    stored_name: str
    size: int
    sha256: str


def open_storage(uri: str) -> "Storage":
    """Returns the storage at a URI, without touching the disk or the network.

    Args:
      uri: a local path (a relative one is made absolute), file:///folder, or s3://bucket/prefix.

    Raises:
      ConfigError: the URI breaks a rule of check_uri.
    """
    return Storage(check_uri(uri))


def check_uri(uri: str, setting: str = "storage") -> str:
    """Returns a storage URI in its one normal form: an absolute local path, or s3://bucket/prefix.

    Raises:
      ConfigError: empty, another scheme, credentials, a query or fragment, no bucket, '..' in a prefix, or control
        characters. The message never repeats credentials.
    """

    def refuse(rule: str) -> ConfigError:
        return ConfigError(f"{setting}={without_secrets(uri)!r}: {rule}")

    if not uri.strip():
        raise refuse("give a folder, or s3://bucket/prefix")
    if _CONTROL.search(uri):
        raise refuse("remove the control characters")
    scheme = _SCHEME.match(uri)
    if scheme is None:
        return os.path.abspath(os.path.expanduser(uri))
    kind = scheme[1].lower()
    if kind not in ("file", "s3"):
        raise refuse(f"{kind}:// is not supported; use a local path, file:///folder or s3://bucket/prefix")
    authority, slash, path = uri[scheme.end() :].removeprefix("/").partition("/")
    # A secret key may hold a slash, which puts the '@' behind what looks like the authority.
    in_front = "@" in authority or (":" in authority and "@" in path)
    if in_front or re.search(r"(access|secret)_?key|token", uri.partition("?")[2], re.IGNORECASE):
        raise refuse("no credentials in a URI; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if "?" in uri or "#" in uri:
        raise refuse("no query or fragment; endpoint and region come from AWS_ENDPOINT_URL and AWS_REGION")
    if not uri[scheme.end() :].startswith("/"):
        raise refuse(f"write {kind}:// with two slashes before the {'bucket' if kind == 's3' else 'host'}")
    if kind == "file":
        if authority not in ("", "localhost") or not slash:
            raise refuse("a file URI starts with file:/// and an absolute path")
        return check_uri(os.path.abspath("/" + urllib.parse.unquote(path)), setting)
    if not _BUCKET.fullmatch(authority):
        raise refuse("needs a bucket name of letters, digits, '.', '_' or '-': s3://bucket/prefix")
    prefix = path.rstrip("/")
    if prefix and any(segment in ("", ".", "..") for segment in prefix.split("/")):
        raise refuse("no empty, '.' or '..' parts in the prefix")
    return f"s3://{authority}/{prefix}".rstrip("/")


def without_secrets(text: str) -> str:
    """Hides what may be a key: user information (a secret key can hold slashes) and query values."""
    text = re.sub(r"//\S*@", "//***@", text)
    return re.sub(r"([?#]).*", r"\1***", text, flags=re.DOTALL) if _SCHEME.match(text) else text


@dataclass(frozen=True)
class Storage:
    """A folder of objects, local or on S3; made by open_storage, small to pickle, without keys.

    Every path is relative to the storage, its parts separated by '/', and can't leave it. Any failure of the disk,
    the network or the server is a StorageError; reading what isn't there is a MissingError.
    """

    uri: str

    def __reduce__(self) -> tuple[type["Storage"], tuple[str]]:
        return (Storage, (self.uri,))

    @property
    def is_local(self) -> bool:
        """Whether the objects are files of this machine (or of a file system mounted on it)."""
        return not self.uri.startswith("s3://")

    @cached_property
    def _backend(self) -> "_Local | _S3":
        if not self.is_local:
            return _S3(self.uri)
        if os.path.exists(self.uri) and not os.path.isdir(self.uri):
            raise StorageError(f"storage={self.uri!r}: {_OS_REASONS[errno.ENOTDIR]}")
        return _Local(self.uri)

    def uri_of(self, path: str) -> str:
        """Returns what a person or DuckDB would open: a local path or an s3:// URI."""
        return f"{self.uri.rstrip('/')}/{_check_path(path)}" if path else self.uri

    def exists(self, path: str) -> bool:
        """Whether there is an object (not a folder) at the path."""
        with storage_errors(self.uri_of(path), "read"):
            return self._backend.exists(path)

    def read_bytes(self, path: str) -> bytes:
        """Returns an object's content."""
        with storage_errors(self.uri_of(path), "read"):
            return self._backend.read(path)

    def open_input(self, path: str) -> "pyarrow.NativeFile":
        """Opens an object for random access; reads of it belong into `with storage_errors(uri):`."""
        with storage_errors(self.uri_of(path), "read"):
            return self._backend.open(path)

    def list_files(self, path: str = "", *, recursive: bool = True) -> list[FileEntry]:
        """Returns the objects below a folder, sorted by path; none if there is no such folder.

        Names beginning with '.', and what is in folders of such names, are left out.
        """
        with storage_errors(self.uri_of(path), "listed"):
            return sorted(self._backend.files(path, recursive=recursive), key=lambda entry: entry.path)

    def iter_files(self, path: str = "") -> Iterator[FileEntry]:
        """Yields what list_files returns, in the same order, but holds one folder's names at a time (S3: one page).

        Locally, what is neither a file nor a link to one is left out: reading a pipe might never end.
        """
        with storage_errors(self.uri_of(path), "listed"):
            yield from self._backend.files_in_order(path)

    def list_folders(self, path: str = "") -> list[str]:
        """Returns the names of a folder's direct subfolders, sorted, but those beginning with '.' or '_'."""
        with storage_errors(self.uri_of(path), "listed"):
            return sorted(name for name in self._backend.folders(path) if name[0] not in "._")

    def write_bytes(self, path: str, data: bytes) -> None:
        """Writes or replaces an object in one step: durable on return, and the old one stands until then."""
        with storage_errors(self.uri_of(path), "written"):
            self._backend.write(_check_path(path), data)

    def create_bytes(self, path: str, data: bytes) -> bool:
        """Writes an object in one step unless there is one already, in which case it returns False.

        Of any number of concurrent callers exactly one gets True, if their contents differ. S3 alone: should
        the client have repeated its request after a lost answer, an equal object counts as its own.
        """
        with storage_errors(self.uri_of(path), "written"):
            return self._backend.create(_check_path(path), data)

    def delete_folder(self, path: str) -> None:
        """Deletes a folder with all in it; a committed one stops being committed first."""
        with storage_errors(self.uri_of(path), "deleted"):
            self._backend.delete_folder(_check_path(path))

    def check(self) -> None:
        """Makes sure of all that prove proves; makes a missing local folder.

        Raises:
          StorageError: what can't be done, why, and what to do.
        """
        for _ in self.prove():
            pass

    def prove(self) -> Iterator["Proof"]:
        """Proves by doing it that objects can be written, only once if so asked, read, listed and deleted.

        Raises:
          StorageError: what can't be done, why, and what to do.
        """
        folder = f"{STAGING}/check-{secrets.token_hex(8)}"
        path, content = f"{folder}/object", folder.encode()
        if not self.create_bytes(path, content):
            raise self._disproved(folder, "says of a new name that it is taken")
        yield Proof("write", f"an object of {len(content)} bytes was created")
        if self.create_bytes(path, b"another"):
            raise self._disproved(
                folder, "no conditional writes (If-None-Match is ignored), so two commits could overwrite each other"
            )
        yield Proof("conditional write", "a second object of its name was refused")
        if self.read_bytes(path) != content:
            raise self._disproved(folder, "gives back other content than was written")
        yield Proof("read", "it has the content that was written")
        if self.list_files(folder) != [FileEntry(path, len(content))]:
            raise self._disproved(folder, "lists other objects than were written")
        yield Proof("list", "it is listed with its size")
        self.delete_folder(folder)
        if self.exists(path):
            raise StorageError(f"storage={self.uri!r}: keeps what was deleted; use another storage")
        yield Proof("delete", "it is gone")

    def _disproved(self, folder: str, what: str) -> StorageError:
        self.delete_folder(folder)
        return StorageError(f"storage={self.uri!r}: {what}; use another storage")

    def place(self) -> dict[str, str | None]:
        """Returns where the storage is: its URI and, of S3, endpoint, region and where the credentials come from.

        Raises:
          StorageError: the server can't be reached, or there are no credentials.
        """
        with storage_errors(self.uri, "read"):
            return {"storage": self.uri, **self._backend.place()}

    def pending_folder(self, path: str) -> "PendingFolder":
        """Begins a folder that appears with all its files at once, when it is committed."""
        self.remove_leftovers()
        return PendingFolder(self, _check_path(path), secrets.token_hex(8))

    def remove_leftovers(self, *, older_than_s: float = STAGING_LIFETIME_S) -> None:
        """Removes what killed writers left in the staging area, by the age of the newest file of each.

        On S3 also the parts of uploads that were begun as long ago and never ended, anywhere in the storage.
        """
        before = time.time() - older_than_s
        with storage_errors(self.uri_of(STAGING), "listed"):
            staged = self._backend.staged()
        for name, modified in staged.items():
            if modified < before:
                self.delete_folder(f"{STAGING}/{name}")
        if isinstance(self._backend, _S3):
            with storage_errors(self.uri, "deleted"):
                self._backend.abort_uploads(before)

    def read_manifest(self, path: str) -> dict[str, Any] | None:
        """Returns the manifest of a committed folder, None if the folder isn't committed.

        Raises:
          DataError: the manifest is damaged.
        """
        try:
            manifest = json.loads(self.read_bytes(f"{path}/{MANIFEST}"))
            _files_of(manifest)
        except MissingError:
            return None
        except (ValueError, TypeError, KeyError, RecursionError):
            raise DataError(f"{self.uri_of(path)}/{MANIFEST}: damaged; delete the folder and make it again") from None
        return dict(manifest)

    def read_committed(self, path: str, name: str) -> bytes:
        """Returns a file of a committed folder, its size and SHA-256 checked.

        Raises:
          DataError: the content isn't what was committed.
          MissingError: the folder isn't committed, or has no such file.
        """
        for file in self._committed(path):
            if file.name == name:
                data = self.read_bytes(f"{path}/{file.stored_name}")
                if len(data) != file.size or hashlib.sha256(data).hexdigest() != file.sha256:
                    uri = self.uri_of(f"{path}/{file.stored_name}")
                    raise DataError(f"{uri}: not the content that was committed; delete the folder and make it again")
                return data
        raise MissingError(f"{self.uri_of(path)}: has no file {name!r}")

    def committed_files(self, path: str, name_prefix: str = "") -> list[str]:
        """Returns the URIs of a committed folder's files whose names begin with the prefix, sorted by name.

        Raises:
          MissingError: the folder isn't committed.
        """
        files = [file for file in self._committed(path) if file.name.startswith(name_prefix)]
        return [self.uri_of(f"{path}/{file.stored_name}") for file in files]

    def complete_commit(self, path: str) -> None:
        """Adds the _SUCCESS marker that a writer, killed between the manifest and it, left out."""
        if self.read_manifest(path) is not None and not self.exists(f"{path}/{SUCCESS}"):
            self.write_bytes(f"{path}/{SUCCESS}", b"")

    def _committed(self, path: str) -> list[StoredFile]:
        manifest = self.read_manifest(path)
        if manifest is None:
            raise MissingError(f"{self.uri_of(path)}: not there, or not committed")
        return _files_of(manifest)


@dataclass(frozen=True)
class PendingFolder:
    """A folder in the making, to be committed once; any process may write its files."""

    storage: Storage
    path: str
    token: str

    @property
    def _staging(self) -> str:
        return f"{STAGING}/{self.token}"

    def write(self, name: str, data: bytes) -> StoredFile:
        """Stores one file out of the readers' sight; the same name again replaces it.

        Args:
          name: letters, digits, '.', '_' and '-', the first a letter or digit.
          data: the content.
        """
        if not _FILE_NAME.fullmatch(name):
            raise ValueError(f"file name {name!r}: use letters, digits, '.', '_' and '-' after a letter or digit")
        sha256 = hashlib.sha256(data).hexdigest()
        stored_name = name
        if not self.storage.is_local:
            # S3 can't rename a folder, so parts lie in the final one before the manifest: a name that tells the
            # content keeps two writers from overwriting each other's.
            stem, dot, suffix = name.partition(".")
            stored_name = f"{stem}-{sha256[:12]}{dot}{suffix}"
        self.storage.write_bytes(f"{self._staging}/{stored_name}", data)
        return StoredFile(name, stored_name, len(data), sha256)

    def commit(self, files: Sequence[StoredFile], manifest: Mapping[str, Any]) -> bool:
        """Makes the folder visible, with these files and no others.

        Args:
          files: what write returned, in any order.
          manifest: JSON values; 'files' is added. What is under the key 'volatile' (times, hosts) doesn't count as
            content.

        Returns:
          True if this call committed the folder, False if the same content had been committed before.

        Raises:
          ConflictError: the folder exists with other content, which is left as it is.
        """
        ordered = sorted(files, key=lambda file: file.name)
        # The token tells two writers of the same content apart, so that exactly one of them has committed it.
        volatile = {**manifest.get("volatile", {}), "commit_token": self.token}
        document = {**manifest, "files": [asdict(file) for file in ordered], "volatile": volatile}
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
        uri = self.storage.uri_of(self.path)
        with storage_errors(uri, "written"):
            committed = self.storage._backend.commit(self.path, self._staging, ordered, text)
        self.abort()
        if committed:
            return True
        found = self.storage.read_manifest(self.path)
        if found is None or _content(found) != _content(json.loads(text)):
            raise ConflictError(f"{uri}: exists with other content; choose another name or move it away")
        self.storage.complete_commit(self.path)
        return False

    def abort(self) -> None:
        """Removes what was written and not committed; after a commit there is nothing left to remove."""
        self.storage.delete_folder(self._staging)


def _content(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in manifest.items() if key != "volatile"}


def _files_of(manifest: Mapping[str, Any]) -> list[StoredFile]:
    return [StoredFile(**file) for file in manifest["files"]]


def _check_path(path: str) -> str:
    if _CONTROL.search(path) or any(segment in ("", ".", "..") for segment in path.split("/")):
        raise StorageError(f"path={path!r}: must lie inside the storage, parts separated by single slashes")
    return path


class _Local:
    """Objects are files below a root folder."""

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def place(self) -> dict[str, str | None]:
        return {"kind": "local folder"}

    def exists(self, path: str) -> bool:
        return (self.root / path).is_file()

    def read(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def open(self, path: str) -> "pyarrow.NativeFile":
        import pyarrow

        # Not a memory map: a file cut short under one ends the process with SIGBUS.
        return pyarrow.OSFile(str(self.root / path))

    def files(self, path: str, *, recursive: bool) -> Iterator[FileEntry]:
        # Links are followed, as class folders of images often are links; a loop of them ends with ELOOP.
        for folder, subfolders, names in os.walk(self.root / path, onerror=_raise_unless_missing, followlinks=True):
            subfolders[:] = [name for name in subfolders if recursive and not name.startswith(".")]
            for name in names:
                # A file may vanish between the listing and its turn: then it is not listed.
                with contextlib.suppress(FileNotFoundError):
                    if not name.startswith("."):
                        file = Path(folder, name)
                        yield FileEntry(file.relative_to(self.root).as_posix(), file.stat().st_size)

    def files_in_order(self, path: str, *, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[FileEntry]:
        """Yields the files below a folder sorted by path; links are followed, but not to a folder that they lie in."""
        try:
            status = os.stat(self.root / path)
            if (status.st_dev, status.st_ino) in above:
                return
            above |= {(status.st_dev, status.st_ino)}
            entries = [entry for entry in os.scandir(self.root / path) if not entry.name.startswith(".")]
        except FileNotFoundError:
            return
        # With its slash a folder's name sorts as the paths in it do: 'a.png' comes before 'a/b.png'.
        ordered = sorted((f"{entry.name}/" if entry.is_dir() else entry.name, entry) for entry in entries)
        for name, entry in ordered:
            below = f"{path}/{name}" if path else name
            if name.endswith("/"):
                yield from self.files_in_order(below.rstrip("/"), above=above)
                continue
            with contextlib.suppress(FileNotFoundError):
                status = entry.stat()
                if stat.S_ISREG(status.st_mode):
                    yield FileEntry(below, status.st_size)

    def folders(self, path: str) -> list[str]:
        folder = self.root / path
        return [entry.name for entry in os.scandir(folder) if entry.is_dir()] if folder.exists() else []

    def _inside(self, path: str) -> Path:
        """Returns the place of a path that is to be written or deleted, if no link on the way leads out of the root.

        Whoever may put a link into a storage that several people write to could have others' files deleted otherwise.
        """
        target = self.root / path
        if not target.parent.resolve().is_relative_to(self.root.resolve()):
            raise StorageError(f"{target}: a link on the way leads out of the storage; remove the link")
        return target

    def write(self, path: str, data: bytes) -> None:
        target = self._inside(path)
        with self._temporary(data) as temporary:
            _make_folder(target.parent)
            os.replace(temporary, target)
        _fsync_folder(target.parent)

    def create(self, path: str, data: bytes) -> bool:
        target = self._inside(path)
        with self._temporary(data) as temporary:
            _make_folder(target.parent)
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
        _fsync_folder(target.parent)
        return True

    @contextlib.contextmanager
    def _temporary(self, data: bytes) -> Iterator[Path]:
        """Gives a durable file with the content, to be renamed or linked; removes it otherwise."""
        temporary = self._inside(f"{STAGING}/object-{secrets.token_hex(8)}")
        _make_folder(temporary.parent)
        try:
            _write_durably(temporary, data)
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)

    def delete_folder(self, path: str) -> None:
        found, doomed = self._inside(path), self._inside(f"{STAGING}/deleted-{secrets.token_hex(8)}")
        if not os.path.lexists(found):
            return
        _make_folder(doomed.parent)
        # What somebody else deletes at the same time need not be deleted twice.
        with contextlib.suppress(FileNotFoundError):
            # One rename takes the whole folder out of sight, before the first of its files goes.
            os.rename(found, doomed)
            # Of a link the link goes, not what it leads to.
            if doomed.is_dir() and not doomed.is_symlink():
                shutil.rmtree(doomed)
            else:
                doomed.unlink()

    def staged(self) -> dict[str, float]:
        """Name -> when it was written to last, in seconds since the epoch, of the work in progress."""
        staging = self.root / STAGING
        newest = {}
        for entry in list(staging.iterdir()) if staging.exists() else []:
            # What its writer finishes meanwhile is gone.
            with contextlib.suppress(FileNotFoundError):
                inside = list(entry.iterdir()) if entry.is_dir() else []
                newest[entry.name] = max(file.stat().st_mtime for file in [entry, *inside])
        return newest

    def commit(self, path: str, staging: str, files: Sequence[StoredFile], manifest: bytes) -> bool:
        """Renames the staged folder to its final name; False if there is something of that name."""
        source, target = self._inside(f"{staging}/{MANIFEST}").parent, self._inside(path)
        _make_folder(source)
        for file in files:
            staged = source / file.stored_name
            if not staged.is_file() or staged.stat().st_size != file.size:
                raise StorageError(
                    f"{staged}: written by a worker, and not here; several machines need a folder that they share, "
                    "or s3://bucket/prefix"
                )
        for stray in {entry.name for entry in source.iterdir()} - {file.stored_name for file in files}:
            (source / stray).unlink()
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


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _write_durably(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _make_folder(folder: Path) -> None:
    """Creates a folder and its missing parents, each made durable in the one above it."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _fsync_folder(folder.parent)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _S3:
    """Objects of one bucket, their keys below a prefix."""

    def __init__(self, uri: str) -> None:
        self.bucket, _, self.prefix = uri.removeprefix("s3://").partition("/")
        self._arrow: tuple[Any, Any] | None = None

    def key(self, path: str) -> str:
        return "/".join(part for part in (self.prefix, path) if part)

    def uri(self, path: str) -> str:
        return f"s3://{self.bucket}/{self.key(path)}"

    def folder_key(self, path: str) -> str:
        return f"{self.key(path)}/" if self.key(path) else ""

    @cached_property
    def session(self) -> Any:
        import boto3

        return boto3.Session()

    def place(self) -> dict[str, str | None]:
        found = self.session.get_credentials()
        source = None if found is None else _CREDENTIALS_FROM.get(found.method, found.method)
        meta = self.client.meta
        return {"kind": "S3", "endpoint": meta.endpoint_url, "region": meta.region_name, "credentials": source}

    @cached_property
    def client(self) -> Any:
        """The boto3 client. Credentials, region, profile and endpoint come from AWS's standard places."""
        from botocore.exceptions import ClientError

        probe = s3_requests.make_client(self.session, attempts=6, read_timeout_s=5)
        # Ten patient attempts ride out a server's bad half minute, and are too many for an endpoint that isn't there.
        # So the first contact is impatient; any answer, even a refusal, shows that somebody is there.
        with contextlib.suppress(ClientError):
            probe.head_bucket(Bucket=self.bucket)
        probe.close()
        return s3_requests.make_client(self.session)

    def filesystem(self) -> Any:
        """pyarrow's S3, for random access without Python in the way.

        Its keys are boto3's: left alone it knows no role of a profile, and asks as nobody. A role's keys change.
        """
        self.client  # noqa: B018  (says in seconds that nobody is there, or that there are no keys)
        keys = self.session.get_credentials().get_frozen_credentials()
        if self._arrow is None or self._arrow[0] != keys:
            self._arrow = keys, self._make_filesystem(keys)
        return self._arrow[1]

    def _make_filesystem(self, keys: Any) -> Any:
        from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

        endpoint = urllib.parse.urlsplit(self.client.meta.endpoint_url)
        on_aws = endpoint.netloc.endswith((".amazonaws.com", ".amazonaws.com.cn"))
        region = self.client.meta.region_name
        return S3FileSystem(
            endpoint_override=None if on_aws else endpoint.netloc + endpoint.path.rstrip("/"),
            scheme=endpoint.scheme,
            region=None if region == "aws-global" else region,
            access_key=keys.access_key,
            secret_key=keys.secret_key,
            session_token=keys.token,
            retry_strategy=AwsStandardS3RetryStrategy(max_attempts=s3_requests.ATTEMPTS),
            connect_timeout=s3_requests.CONNECT_TIMEOUT_S,
            # Arrow tries as often after a timeout as after any other failure; it only reads, which begins at once.
            request_timeout=10,
        )

    @cached_property
    def has_bucket(self) -> bool:
        """True; a missing bucket raises, which the 404 of an object does not tell from a missing object."""
        self.client.list_objects_v2(Bucket=self.bucket, Prefix=self.folder_key(""), MaxKeys=1)
        return True

    def exists(self, path: str) -> bool:
        from botocore.exceptions import ClientError

        # Not by a listing, which has no checksum: with one flipped bit there is no such object.
        try:
            self.client.head_object(Bucket=self.bucket, Key=self.key(path))
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                raise
            return not self.has_bucket
        return True

    def read(self, path: str, *, attempts: int = _BODY_ATTEMPTS) -> bytes:
        from botocore.exceptions import (
            FlexibleChecksumError,
            IncompleteReadError,
            ReadTimeoutError,
            ResponseStreamingError,
        )

        for attempt in range(1, attempts + 1):
            body = self.client.get_object(Bucket=self.bucket, Key=self.key(path))["Body"]
            try:
                with contextlib.closing(body):
                    return bytes(body.read())
            except (FlexibleChecksumError, IncompleteReadError, ReadTimeoutError, ResponseStreamingError):
                # The client repeats requests, but not one whose body breaks off or arrives damaged.
                if attempt == attempts:
                    raise
                time.sleep(s3_requests.pause_s(attempt))
        raise AssertionError("the last attempt returns or raises")

    def open(self, path: str) -> "pyarrow.NativeFile":
        return self.filesystem().open_input_file(f"{self.bucket}/{self.key(path)}")

    def pages(self, path: str, **options: str) -> Iterator[Any]:
        paginator = self.client.get_paginator("list_objects_v2")
        yield from paginator.paginate(Bucket=self.bucket, Prefix=self.folder_key(path), **options)

    def objects(self, path: str, **options: str) -> Iterator[tuple[str, Any]]:
        """Yields (path relative to the folder, S3's entry) of every object below a folder."""
        for page in self.pages(path, **options):
            for entry in page.get("Contents", []):
                yield entry["Key"].removeprefix(self.folder_key(path)), entry

    def files(self, path: str, *, recursive: bool) -> Iterator[FileEntry]:
        options = {} if recursive else {"Delimiter": "/"}
        for name, entry in self.objects(path, **options):
            # A key that ends with a slash is a console's picture of a folder.
            if not name.endswith("/") and name and not any(part.startswith(".") for part in name.split("/")):
                yield FileEntry(f"{path}/{name}" if path else name, int(entry["Size"]))

    def files_in_order(self, path: str) -> Iterator[FileEntry]:
        """Yields the objects below a folder as S3 lists them: by the bytes of their keys, which is the paths' order."""
        return self.files(path, recursive=True)

    def folders(self, path: str) -> list[str]:
        prefixes = [
            entry["Prefix"] for page in self.pages(path, Delimiter="/") for entry in page.get("CommonPrefixes", [])
        ]
        return [name for prefix in prefixes if (name := prefix.removeprefix(self.folder_key(path)).rstrip("/"))]

    def write(self, path: str, data: bytes) -> None:
        for _ in range(_BODY_ATTEMPTS):
            if len(data) <= MULTIPART_BYTES:
                answer = self.client.put_object(Bucket=self.bucket, Key=self.key(path), Body=data)
            else:
                self._upload_in_parts(path, data)
                answer = self.client.head_object(Bucket=self.bucket, Key=self.key(path))
            if self._arrived(path, data, answer):
                return
        raise StorageError(f"storage={self.uri(path)!r}: can't be written: {_DAMAGED}")

    def _upload_in_parts(self, path: str, data: bytes) -> None:
        from boto3.s3.transfer import TransferConfig

        config = TransferConfig(multipart_chunksize=PART_BYTES)
        self.client.upload_fileobj(io.BytesIO(data), self.bucket, self.key(path), Config=config)

    def _arrived(self, path: str, data: bytes, answer: Mapping[str, Any]) -> bool:
        """Whether the server stored what was sent: one that checks no checksums keeps what was damaged on its way."""
        from botocore.exceptions import FlexibleChecksumError

        # With a key service's encryption the tag is another hash; servers that have it check the checksums.
        if "kms" in answer.get("ServerSideEncryption", "") or answer.get("ETag", "").strip('"') == _tag(data):
            return True
        # Not every server's tag is this hash.
        with contextlib.suppress(FlexibleChecksumError):
            return self.read(path, attempts=2) == data
        return False

    def create(self, path: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        repeated = False
        for delay_s in (0.1, 0.2, 0.4, 0.8, 1.6, None):
            try:
                answer = self.client.put_object(Bucket=self.bucket, Key=self.key(path), Body=data, IfNoneMatch="*")
            except ClientError as error:
                metadata = error.response["ResponseMetadata"]
                repeated = repeated or metadata.get("RetryAttempts", 0) > 0
                if metadata["HTTPStatusCode"] == 412:
                    # After a repeated request the object in the way may be this call's.
                    return repeated and self.read(path) == data
                if metadata["HTTPStatusCode"] != 409 or delay_s is None:
                    raise
                # 409: another writer's request is still running. It may yet fail, so ask again.
                time.sleep(delay_s)
            else:
                if not self._arrived(path, data, answer):
                    # The name is this call's by now.
                    self.write(path, data)
                return True
        raise AssertionError("the last attempt returns or raises")

    def delete_folder(self, path: str) -> None:
        names = [name for name, _ in self.objects(path)]
        # A committed folder first stops being one.
        names.sort(key=lambda name: (name != SUCCESS, name != MANIFEST, name))
        for name in names:
            self.client.delete_object(Bucket=self.bucket, Key=self.folder_key(path) + name)

    def staged(self) -> dict[str, float]:
        """Name -> when it was written to last, in seconds since the epoch, of the work in progress."""
        newest: dict[str, float] = {}
        for path, entry in self.objects(STAGING):
            name = path.partition("/")[0]
            newest[name] = max(newest.get(name, 0.0), entry["LastModified"].timestamp())
        return newest

    def abort_uploads(self, before: float) -> None:
        """Aborts uploads in parts that were begun before a time: unseen, their parts cost as objects do."""
        from botocore.exceptions import ClientError

        paginator = self.client.get_paginator("list_multipart_uploads")
        try:
            for page in paginator.paginate(Bucket=self.bucket, Prefix=self.folder_key("")):
                for upload in page.get("Uploads", []):
                    if upload["Initiated"].timestamp() < before:
                        self._abort_upload(upload["Key"], upload["UploadId"])
        except ClientError as error:
            # Not every server has the function, nor every role the right, and no job's work depends on it.
            if error.response["ResponseMetadata"]["HTTPStatusCode"] not in (403, 405, 501):
                raise

    def _abort_upload(self, key: str, upload: str) -> None:
        # Somebody else may just have aborted it.
        with contextlib.suppress(self.client.exceptions.NoSuchUpload):
            self.client.abort_multipart_upload(Bucket=self.bucket, Key=key, UploadId=upload)

    def commit(self, path: str, staging: str, files: Sequence[StoredFile], manifest: bytes) -> bool:
        """Copies the staged files, then creates the manifest, the commit itself; False if there is one."""
        if self.exists(f"{path}/{MANIFEST}"):
            return False

        def copy(file: StoredFile) -> None:
            source = {"Bucket": self.bucket, "Key": self.key(f"{staging}/{file.stored_name}")}
            self.client.copy_object(Bucket=self.bucket, Key=self.key(f"{path}/{file.stored_name}"), CopySource=source)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(copy, files))
        if not self.create(f"{path}/{MANIFEST}", manifest):
            self._delete_unkept(path, files)
            return False
        self.write(f"{path}/{SUCCESS}", b"")
        return True

    def _delete_unkept(self, path: str, files: Sequence[StoredFile]) -> None:
        """Deletes those of the files that the manifest, which is somebody else's, doesn't name."""
        try:
            kept = {file.stored_name for file in _files_of(json.loads(self.read(f"{path}/{MANIFEST}")))}
        except (ValueError, TypeError, KeyError):
            # Whoever commits reads it next, and tells that it is damaged.
            return
        for file in files:
            if file.stored_name not in kept:
                self.client.delete_object(Bucket=self.bucket, Key=self.key(f"{path}/{file.stored_name}"))


# What botocore calls its sources of credentials -> what a person does.
_CREDENTIALS_FROM = {
    "env": "from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "shared-credentials-file": "from the shared credentials file",
    "config-file": "from AWS's config file",
    "assume-role": "from an assumed role",
    "assume-role-with-web-identity": "from a web identity's role",
    "sso": "from single sign-on",
    "custom-process": "from the profile's credential_process",
    "container-role": "from the container's role",
    "iam-role": "from the instance's role",
}


def _tag(data: bytes) -> str:
    """Returns the tag that S3 gives an object: its MD5, or that of its parts' MD5s and their number."""
    if len(data) <= MULTIPART_BYTES:
        return hashlib.md5(data, usedforsecurity=False).hexdigest()
    parts = [data[start : start + PART_BYTES] for start in range(0, len(data), PART_BYTES)]
    digests = [hashlib.md5(part, usedforsecurity=False).digest() for part in parts]
    return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(parts)}"


@contextlib.contextmanager
def storage_errors(uri: str, action: Action = "read") -> Iterator[None]:
    """Turns failures of the disk, the network or the S3 server inside the block into StorageErrors.

    Raises:
      MissingError: there is no such object (only when reading).
      StorageError: any other failure, in one line with its reason and what to do.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and not _is_from_aws(error):
            raise
        reason = _reason(error)
        if action == "read" and (isinstance(error, FileNotFoundError) or reason is _NO_OBJECT):
            raise MissingError(f"{uri}: {_NO_OBJECT}") from error
        if action == "read" and isinstance(error, IsADirectoryError):
            raise MissingError(f"{uri}: a folder, not an object") from error
        raise StorageError(f"storage={uri!r}: can't be {action}: {reason}") from error


_NO_OBJECT = "no such object"
_CHECK_KEYS = "check AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_UNREACHABLE = "the server can't be reached; check the network and AWS_ENDPOINT_URL"
_OVERLOADED = "the server is overloaded or out of service; try again later"
_DAMAGED = "what arrives is not what was sent; check the network, and whatever stands between here and the server"
_LACKING = "the server lacks a function that is needed, maybe conditional writes (If-None-Match); use another storage"

_OS_REASONS = {
    errno.ENOENT: "a folder is missing and can't be made; choose another storage",
    errno.ENOSPC: "the disk is full; free some space or choose another storage",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another storage",
    errno.EROFS: "the file system is read-only; choose another storage",
    errno.EACCES: "permission denied; choose a storage that you may write and read",
    errno.EPERM: "permission denied; choose a storage that you may write and read",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another storage",
    errno.EEXIST: "a file stands where a folder is needed; choose another storage",
}

# Codes of boto3 (NoSuchBucket, and bare HTTP numbers) and of pyarrow (NO_SUCH_BUCKET), made alike.
_AWS_REASONS = {
    "nosuchkey": _NO_OBJECT,
    "404": _NO_OBJECT,
    "nosuchbucket": "the bucket does not exist; create it or correct the name",
    "invalidbucketname": "not a bucket name; correct it",
    "accessdenied": "access denied; ask for the right to read, write, list and delete here",
    "403": "access denied; ask for the right to read, write, list and delete here",
    "invalidaccesskeyid": f"the credentials are refused; {_CHECK_KEYS}",
    "signaturedoesnotmatch": f"the credentials are refused; {_CHECK_KEYS}",
    "expiredtoken": "the credentials have expired; get new ones",
    "nocredentialserror": f"there are no credentials; {_CHECK_KEYS}",
    "partialcredentialserror": f"the credentials are incomplete; {_CHECK_KEYS}",
    "endpointconnectionerror": _UNREACHABLE,
    "connecttimeouterror": _UNREACHABLE,
    "readtimeouterror": _UNREACHABLE,
    "connectionclosederror": _UNREACHABLE,
    "networkconnection": _UNREACHABLE,
    "slowdown": _OVERLOADED,
    "serviceunavailable": _OVERLOADED,
    "503": _OVERLOADED,
    "internalerror": _OVERLOADED,
    "500": _OVERLOADED,
    "toomanyrequests": _OVERLOADED,
    "429": _OVERLOADED,
    "flexiblechecksumerror": _DAMAGED,
    "incompletereaderror": _DAMAGED,
    "responsestreamingerror": _DAMAGED,
    "baddigest": _DAMAGED,
    "xamzcontentsha256mismatch": _DAMAGED,
    "xamzcontentchecksummismatch": _DAMAGED,
    "notimplemented": _LACKING,
}


def _is_from_aws(error: Exception) -> bool:
    # By name, so that a local storage never pays for importing boto3.
    return type(error).__module__.partition(".")[0] in ("boto3", "botocore", "s3transfer")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return _OS_REASONS.get(error.errno, os.strerror(error.errno))
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):
        code = str(answer.get("Error", {}).get("Code"))
    else:
        named = re.search(r"AWS Error (\w+)", str(error))
        code = named[1] if named else type(error).__name__
    return _AWS_REASONS.get(code.replace("_", "").lower()) or _one_line(error)


def _one_line(error: Exception) -> str:
    # boto3 believes that it repeats requests itself, and would say so of a plain refusal.
    return without_secrets(" ".join(str(error).replace(" (reached max retries: 0)", "").split()))
