"""What killed writers leave in a storage."""

from dataclasses import dataclass

from mnist_ray.storage.failures import storage_errors
from mnist_ray.storage.local import LocalBackend
from mnist_ray.storage.manifest import STAGING
from mnist_ray.storage.s3 import S3Backend, Upload


@dataclass(frozen=True)
class Leftover:
    """What a killed writer left: a path in the staging area, or an unfinished upload; and its size in bytes."""

    what: str | Upload
    size: int


def find_leftovers(backend: LocalBackend | S3Backend, uri: str, *, older_than_s: float) -> list[Leftover]:
    """Returns the leftovers of an age; see Storage.leftovers.

    Args:
      uri: of the staging area, for messages.
    """
    with storage_errors(uri, "listed"):
        staged = backend.staged()
        uploads = backend.uploads() if isinstance(backend, S3Backend) else []
    if not staged and not uploads:
        return []
    # Use the storage's own clock: this machine's may be days ahead.
    with storage_errors(uri, "written"):
        before = backend.now() - older_than_s
    found = [Leftover(f"{STAGING}/{name}", size) for name, (written_at, size) in staged.items() if written_at <= before]
    if isinstance(backend, S3Backend):
        with storage_errors(uri, "listed"):
            found += [Leftover(upload, backend.size(upload)) for upload in uploads if upload.begun <= before]
    return found
