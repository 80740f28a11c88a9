"""Where a job's workers run and how long it waits for them: nothing here changes a result."""

import os
from dataclasses import dataclass

from mnist_ray.config.requirements import JOB_VARIABLE


@dataclass(frozen=True)
class Placement:
    """What a person says of the machines that a job runs on.

    Attributes:
      use_gpu: whether each worker gets a GPU; None for: where there are enough.
      resource_timeout_s: how long a job on a cluster waits for CPUs or GPUs that aren't there yet, or no longer.
      shared_storage: whether a storage that is a local folder is the same one on every node.
    """

    use_gpu: bool | None = None
    resource_timeout_s: float = 600.0
    shared_storage: bool = False


# No preference.
ANYWHERE = Placement()


def not_shared(uri: str, num_nodes: int) -> str:
    """Returns why a local folder is no storage for a cluster of several nodes."""
    return (
        f"storage={uri!r}: a local folder, and the cluster has {num_nodes} nodes, each with disks of its own; use "
        "s3://bucket/prefix, or --shared-storage if this folder is the same on all of them"
    )


def on_cluster() -> bool:
    """Tells whether this process is a job on a cluster: Ray gives each the address of the cluster itself.

    A person's own RAY_ADDRESS, or that of a job API, makes no job of a local command.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    return JOB_VARIABLE in os.environ and bool(address) and not address.startswith(("http://", "https://"))
