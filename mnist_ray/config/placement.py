"""Where a job's workers run and how long it waits for them; this never changes a result."""

import json
import os
from dataclasses import dataclass
from typing import Any, NamedTuple

from mnist_ray.config.requirements import JOB_VARIABLE

# Ray's variable for the entry point of a job: JSON with the job's runtime_env and metadata.
RAY_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


class Workers(NamedTuple):
    """Fewest and most workers that share a run."""

    least: int
    most: int

    def __str__(self) -> str:
        return f"{self.least}:{self.most}"


@dataclass(frozen=True)
class Placement:
    """The user's choices about the machines that a job runs on.

    Attributes:
      use_gpu: whether each worker gets a GPU; None to use GPUs where there are enough.
      resource_timeout_s: how long a job on a cluster waits for missing CPUs or GPUs.
      shared_storage: whether a local storage folder is the same on every node.
    """

    use_gpu: bool | None = None
    resource_timeout_s: float = 600.0
    shared_storage: bool = False


# No preference.
ANYWHERE = Placement()


def not_shared(uri: str, num_nodes: int) -> str:
    """Returns the message that a local folder can't be the storage of a cluster with several nodes."""
    return (
        f"storage={uri!r}: a local folder, and the cluster has {num_nodes} nodes, each with disks of its own; use "
        "s3://bucket/prefix, or --shared-storage if this folder is the same on all of them"
    )


def in_job() -> bool:
    """Tells whether this process is a job on a cluster, by either mark: jobs/*.py's own, or Ray's."""
    return JOB_VARIABLE in os.environ or RAY_JOB_VARIABLE in os.environ


def job_config() -> dict[str, Any]:
    """Returns what Ray tells a job of how it was submitted: runtime_env and metadata; {} outside a job."""
    config: dict[str, Any] = json.loads(os.environ.get(RAY_JOB_VARIABLE, "{}"))
    return config


def on_cluster() -> bool:
    """Tells whether this process is a job on a cluster, where Ray sets RAY_ADDRESS to the cluster's own address.

    A RAY_ADDRESS set by the user, or the address of a job API, doesn't make a local command a job.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    return in_job() and bool(address) and not address.startswith(("http://", "https://"))
