"""Stored files on S3; the only module that calls S3."""

import contextlib
import io
import json
import secrets
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from mnist_ray.storage import retries
from mnist_ray.storage.manifest import (
    MANIFEST,
    REQUESTS_AT_ONCE,
    STAGING,
    SUCCESS,
    FileEntry,
    LeftOut,
    StoredFile,
    files_of,
)

if TYPE_CHECKING:
    import pyarrow

MULTIPART_BYTES = 64 << 20
PART_BYTES = 8 << 20
# Maximum attempts to fetch an object whose content arrives damaged.
_BODY_ATTEMPTS = 6
# Answers about multipart uploads: some servers lack the function, and some roles the permission; no job depends on it.
_NOT_ALLOWED = (403, 405, 501)
# Metadata key of a conditional write: a token that identifies the call.
_CREATOR = "creator"


@dataclass(frozen=True)
class Upload:
    """A multipart upload and its start by the server's clock, in seconds since the epoch."""

    key: str
    upload_id: str
    begun: float


class S3Backend:
    """Objects of one bucket with keys below a prefix."""

    def __init__(self, uri: str) -> None:
        self.bucket, _, self.prefix = uri.removeprefix("s3://").partition("/")
        self._arrow: tuple[Any, Any] | None = None

    def key(self, path: str) -> str:
        return "/".join(part for part in (self.prefix, path) if part)

    def folder_key(self, path: str) -> str:
        return f"{self.key(path)}/" if self.key(path) else ""

    @cached_property
    def session(self) -> Any:
        import boto3

        return boto3.Session()

    def place(self) -> dict[str, str | None]:
        keys = self.session.get_credentials()
        source = None if keys is None else _CREDENTIALS_FROM.get(keys.method, keys.method)
        meta = self.client.meta
        return {"kind": "S3", "endpoint": meta.endpoint_url, "region": meta.region_name, "credentials": source}

    @cached_property
    def client(self) -> Any:
        """The boto3 client; credentials, region, profile and endpoint come from AWS's standard places."""
        probe = retries.make_client(self.session, attempts=6, read_timeout_s=retries.PROBE_TIMEOUT_S)
        # Ten attempts outlast half a minute of server errors but are too slow for a wrong endpoint. So probe first with
        # fewer attempts; any answer, even a refusal, shows that the server exists.
        with contextlib.suppress(probe.exceptions.ClientError):
            probe.head_bucket(Bucket=self.bucket)
        probe.close()
        return retries.make_client(self.session)

    def filesystem(self) -> Any:
        """Returns pyarrow's S3 filesystem, for fast random access, remade when the keys of a role change.

        It gets boto3's keys: by itself it ignores a profile's role and sends anonymous requests.
        """
        self.client  # noqa: B018  (fails within seconds without a server or keys)
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
            retry_strategy=AwsStandardS3RetryStrategy(max_attempts=retries.ATTEMPTS),
            connect_timeout=retries.CONNECT_TIMEOUT_S,
            # Arrow retries timeouts as often as other failures, so keep the timeout short; reads answer at once.
            request_timeout=10,
        )

    @cached_property
    def has_bucket(self) -> bool:
        """True; a missing bucket raises, since an object's 404 may mean a missing object or a missing bucket."""
        self.client.list_objects_v2(Bucket=self.bucket, Prefix=self.folder_key(""), MaxKeys=1)
        return True

    def exists(self, path: str) -> bool:
        # Not by listing: a listing has no checksum, so one flipped bit could hide the object.
        return self._head(path) is not None or not self.has_bucket

    def entry(self, path: str) -> FileEntry:
        head = self.client.head_object(Bucket=self.bucket, Key=self.key(path))
        return FileEntry(path, int(head["ContentLength"]), head["ETag"].strip('"'), head["LastModified"].timestamp())

    def _head(self, path: str) -> dict[str, Any] | None:
        """Returns what the server says about an object, None if it finds none."""
        # Made before the try: an error while it is made would raise once more where the exceptions are looked up.
        client = self.client
        try:
            return dict(client.head_object(Bucket=self.bucket, Key=self.key(path)))
        except client.exceptions.ClientError as error:
            if _status(error) != 404:
                raise
            return None

    def read(self, path: str) -> bytes:
        from botocore.exceptions import (
            FlexibleChecksumError,
            IncompleteReadError,
            ReadTimeoutError,
            ResponseStreamingError,
        )

        for attempt in range(1, _BODY_ATTEMPTS + 1):
            body = self.client.get_object(Bucket=self.bucket, Key=self.key(path))["Body"]
            try:
                with contextlib.closing(body):
                    return bytes(body.read())
            except (FlexibleChecksumError, IncompleteReadError, ReadTimeoutError, ResponseStreamingError):
                # The client retries requests, but not those whose body is truncated or damaged.
                if attempt == _BODY_ATTEMPTS:
                    raise
                time.sleep(retries.pause_s(attempt))
        raise AssertionError("the last attempt returns or raises")

    def open(self, path: str) -> "pyarrow.NativeFile":
        return self.filesystem().open_input_file(f"{self.bucket}/{self.key(path)}")

    def pages(self, path: str, **options: str) -> Iterator[Any]:
        paginator = self.client.get_paginator("list_objects_v2")
        yield from paginator.paginate(Bucket=self.bucket, Prefix=self.folder_key(path), **options)

    def objects(self, path: str) -> Iterator[tuple[str, Any]]:
        """Yields (path relative to the folder, S3's entry) of every object below a folder."""
        for page in self.pages(path):
            for entry in page.get("Contents", []):
                yield entry["Key"].removeprefix(self.folder_key(path)), entry

    def files(self, path: str, left_out: LeftOut) -> Iterator[FileEntry]:
        """Yields the objects below a folder in S3's listing order: by the bytes of their keys, like sorted paths."""
        del left_out  # all objects can be read
        for name, entry in self.objects(path):
            # A key that ends with a slash is a console's placeholder for a folder.
            if not name.endswith("/") and name and not any(part.startswith(".") for part in name.split("/")):
                stamp, written_at = entry.get("ETag", "").strip('"'), entry["LastModified"].timestamp()
                yield FileEntry(f"{path}/{name}" if path else name, int(entry["Size"]), stamp, written_at)

    def folders(self, path: str) -> list[str]:
        prefixes = [
            entry["Prefix"] for page in self.pages(path, Delimiter="/") for entry in page.get("CommonPrefixes", [])
        ]
        return [name for prefix in prefixes if (name := prefix.removeprefix(self.folder_key(path)).rstrip("/"))]

    def write(self, path: str, data: bytes) -> None:
        if len(data) <= MULTIPART_BYTES:
            self.client.put_object(Bucket=self.bucket, Key=self.key(path), Body=data)
            return
        from boto3.s3.transfer import TransferConfig

        config = TransferConfig(multipart_chunksize=PART_BYTES)
        self.client.upload_fileobj(io.BytesIO(data), self.bucket, self.key(path), Config=config)

    def refuses_damage(self, path: str) -> bool:
        """Tells whether the server refuses an object that is damaged after signing; with TLS, the connection does."""

        def damage(request: Any, **_: Any) -> None:
            request.body = b"CONTENT"

        if self.client.meta.endpoint_url.startswith("https:"):
            return True
        client = retries.make_client(self.session, repeats_damaged=False)
        client.meta.events.register("before-send.s3.PutObject", damage)
        try:
            client.put_object(Bucket=self.bucket, Key=self.key(path), Body=b"content")
        except client.exceptions.ClientError as error:
            if error.response["Error"]["Code"] not in retries.DAMAGED_ON_ITS_WAY:
                raise
            return True
        finally:
            client.close()
        return False

    def create(self, path: str, data: bytes) -> bool:
        # Content doesn't identify the writer: two commands may begin a run with the same content.
        client, token = self.client, {_CREATOR: secrets.token_hex(16)}
        for delay_s in (0.1, 0.2, 0.4, 0.8, 1.6, None):
            try:
                client.put_object(Bucket=self.bucket, Key=self.key(path), Body=data, IfNoneMatch="*", Metadata=token)
            except client.exceptions.ClientError as error:
                if _status(error) == 412:
                    # After a lost answer, or behind a proxy that retries, the object may be this call's.
                    head = self._head(path)
                    return head is not None and head["Metadata"] == token
                if _status(error) != 409 or delay_s is None:
                    raise
                # 409: another writer's request is still running and may fail, so retry.
                time.sleep(delay_s)
            else:
                return True
        raise AssertionError("the last attempt returns or raises")

    def delete(self, path: str) -> None:
        self.client.delete_object(Bucket=self.bucket, Key=self.key(path))

    def delete_folder(self, path: str, first: Sequence[str]) -> None:
        names = [name for name, _ in self.objects(path)]
        # Delete the markers of a committed folder first.
        marks = [name for name in (SUCCESS, MANIFEST, *first) if name in names]
        for name in marks:
            self.delete(f"{path}/{name}")
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            list(pool.map(lambda name: self.delete(f"{path}/{name}"), sorted({*names} - {*marks})))

    def staged(self) -> dict[str, tuple[float, int]]:
        """Returns name -> (time of the last write in seconds since the epoch, bytes) for the work in progress."""
        found: dict[str, tuple[float, int]] = {}
        for path, entry in self.objects(STAGING):
            name = path.partition("/")[0]
            newest, size = found.get(name, (0.0, 0))
            found[name] = (max(newest, entry["LastModified"].timestamp()), size + int(entry["Size"]))
        return found

    def now(self) -> float:
        """Returns the server's time, from an object just written."""
        path = f"{STAGING}/clock-{secrets.token_hex(8)}"
        self.write(path, b"")
        try:
            head = self.client.head_object(Bucket=self.bucket, Key=self.key(path))
        finally:
            self.delete(path)
        return float(head["LastModified"].timestamp())

    def uploads(self) -> list[Upload]:
        """Returns the unfinished multipart uploads, whose invisible parts cost as much as objects."""
        paginator = self.client.get_paginator("list_multipart_uploads")
        try:
            return [
                Upload(upload["Key"], upload["UploadId"], upload["Initiated"].timestamp())
                for page in paginator.paginate(Bucket=self.bucket, Prefix=self.folder_key(""))
                for upload in page.get("Uploads", [])
            ]
        except self.client.exceptions.ClientError as error:
            if _status(error) not in _NOT_ALLOWED:
                raise
            return []

    def size(self, upload: Upload) -> int:
        """Returns the bytes that a multipart upload has sent."""
        pages = self.client.get_paginator("list_parts").paginate(
            Bucket=self.bucket, Key=upload.key, UploadId=upload.upload_id
        )
        try:
            return sum(int(part["Size"]) for page in pages for part in page.get("Parts", []))
        except self.client.exceptions.ClientError as error:
            if _status(error) not in (404, *_NOT_ALLOWED):
                raise
            return 0

    def abort(self, upload: Upload) -> None:
        """Aborts a multipart upload."""
        try:
            self.client.abort_multipart_upload(Bucket=self.bucket, Key=upload.key, UploadId=upload.upload_id)
        except self.client.exceptions.ClientError as error:
            # 404: another process has aborted it.
            if _status(error) not in (404, *_NOT_ALLOWED):
                raise

    def commit(self, path: str, staging: str, files: Sequence[StoredFile], manifest: bytes) -> bool:
        """Copies the staged files, then commits by creating the manifest; returns False if there is one already."""
        if self.exists(f"{path}/{MANIFEST}"):
            return False

        def copy(file: StoredFile) -> None:
            source = {"Bucket": self.bucket, "Key": self.key(f"{staging}/{file.stored_name}")}
            self.client.copy_object(Bucket=self.bucket, Key=self.key(f"{path}/{file.stored_name}"), CopySource=source)

        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            list(pool.map(copy, files))
        if not self.create(f"{path}/{MANIFEST}", manifest):
            self._delete_unkept(path, files)
            return False
        self.write(f"{path}/{SUCCESS}", b"")
        return True

    def _delete_unkept(self, path: str, files: Sequence[StoredFile]) -> None:
        """Deletes the files that another writer's manifest doesn't name."""
        try:
            kept = {file.stored_name for file in files_of(json.loads(self.read(f"{path}/{MANIFEST}")))}
        except (ValueError, TypeError, KeyError):
            # The caller reads the manifest next and reports the damage.
            return
        for file in files:
            if file.stored_name not in kept:
                self.delete(f"{path}/{file.stored_name}")


def _status(error: Any) -> int:
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])


# botocore's names for sources of credentials -> names for users.
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
