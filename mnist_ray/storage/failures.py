"""Failures of the disk, the network and S3 servers, each as one line with its reason and remedy."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from typing import Literal

from mnist_ray.errors import StorageError
from mnist_ray.storage.uri import without_secrets

Action = Literal["read", "written", "listed", "deleted"]


class MissingError(StorageError):
    """There is no object with that name."""


class NotAnObjectError(MissingError):
    """A folder, a pipe or a device has that name, not an object."""


@contextlib.contextmanager
def storage_errors(uri: str, action: Action = "read") -> Iterator[None]:
    """Converts failures of the disk, the network or the S3 server inside the block into StorageErrors.

    Raises:
      MissingError: the object does not exist (only when reading).
      StorageError: any other failure, as one line with its reason and remedy.
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
            raise NotAnObjectError(f"{uri}: a folder, not an object") from error
        raise StorageError(f"storage={uri!r}: can't be {action}: {reason}") from error


_NO_OBJECT = "no such object"
_CHECK_KEYS = "check AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_UNREACHABLE = "the server can't be reached; check the network and AWS_ENDPOINT_URL"
_OVERLOADED = "the server is overloaded or out of service; try again later"
DAMAGED = "the content was damaged in transit; check the network, and anything between here and the server"
_LACKING = "the server lacks a required function, maybe conditional writes (If-None-Match); use another storage"

OS_REASONS = {
    errno.ENOENT: "a folder is missing and can't be made; choose another storage",
    errno.ENOSPC: "the disk is full; free some space or choose another storage",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another storage",
    errno.EROFS: "the file system is read-only; choose another storage",
    errno.EACCES: "permission denied; choose a storage that you may write and read",
    errno.EPERM: "permission denied; choose a storage that you may write and read",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another storage",
    errno.EEXIST: "a file stands where a folder is needed; choose another storage",
}

# Codes of boto3 (NoSuchBucket, and bare HTTP numbers) and of pyarrow (NO_SUCH_BUCKET), normalized.
_AWS_REASONS = {
    **dict.fromkeys(("nosuchkey", "404"), _NO_OBJECT),
    "nosuchbucket": "the bucket does not exist; create it or correct the name",
    "invalidbucketname": "not a bucket name; correct it",
    **dict.fromkeys(("accessdenied", "403"), "access denied; ask for the right to read, write, list and delete here"),
    **dict.fromkeys(("invalidaccesskeyid", "signaturedoesnotmatch"), f"the credentials are refused; {_CHECK_KEYS}"),
    "expiredtoken": "the credentials have expired; get new ones",
    "nocredentialserror": f"there are no credentials; {_CHECK_KEYS}",
    "partialcredentialserror": f"the credentials are incomplete; {_CHECK_KEYS}",
    **dict.fromkeys(("endpointconnectionerror", "connectionclosederror", "networkconnection"), _UNREACHABLE),
    **dict.fromkeys(("connecttimeouterror", "readtimeouterror"), _UNREACHABLE),
    **dict.fromkeys(
        ("slowdown", "serviceunavailable", "503", "internalerror", "500", "toomanyrequests", "429"), _OVERLOADED
    ),
    **dict.fromkeys(("flexiblechecksumerror", "incompletereaderror", "responsestreamingerror"), DAMAGED),
    **dict.fromkeys(("baddigest", "xamzcontentsha256mismatch", "xamzcontentchecksummismatch"), DAMAGED),
    "notimplemented": _LACKING,
}


def _is_from_aws(error: Exception) -> bool:
    # Compare by name, so that a local storage never imports boto3.
    return type(error).__module__.partition(".")[0] in ("boto3", "botocore", "s3transfer")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return OS_REASONS.get(error.errno, os.strerror(error.errno))
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):
        code = str(answer.get("Error", {}).get("Code"))
    else:
        named = re.search(r"AWS Error (\w+)", str(error))
        code = named[1] if named else type(error).__name__
    return _AWS_REASONS.get(code.replace("_", "").lower()) or _one_line(error)


def _one_line(error: Exception) -> str:
    # boto3 appends this even to a plain refusal, though its own retries are off.
    return without_secrets(" ".join(str(error).replace(" (reached max retries: 0)", "").split()))
