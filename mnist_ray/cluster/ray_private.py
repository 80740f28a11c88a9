"""All uses of Ray's private names, with their reasons; a test fails when one vanishes."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ray._common.constants import HEAD_NODE_RESOURCE_NAME
from ray._private import ray_constants

# A tiny amount of the driver's node: a trial that only waits needs no CPU, and Tune rejects empty resources.
ON_HEAD_NODE: Mapping[str, float] = {"CPU": 0, HEAD_NODE_RESOURCE_NAME: 0.001}


def session_folder(folder: str) -> dict[str, Any]:
    """Returns ray.init's argument for the folder of sockets and logs; the default in /tmp is readable by everyone."""
    return {"_temp_dir": folder}


@contextmanager
def on_loopback() -> Iterator[None]:
    """Makes a Ray that is started inside the block listen on loopback only.

    This is Ray's own switch, the default on macOS and Windows. _node_ip_address can't replace it: Ray turns 127.0.0.1
    there into the machine's network address, which other machines can reach.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def add_job_metadata(gcs_address: str, job_id: str, metadata: Mapping[str, str]) -> None:
    """Adds metadata to a running job's record; Ray's job API takes it only when the job is submitted.

    Ray itself next changes the record when the job ends.

    Raises:
      RuntimeError: the cluster doesn't know the job.
      RayError: it can't be asked.
    """
    # A second's import, which only jobs need.
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.dashboard.modules.job.common import JobInfoStorageClient

    async def add() -> None:
        records = JobInfoStorageClient(GcsClient(address=gcs_address))
        record = await records.get_info(job_id)
        if record is None:
            raise RuntimeError(f"job {job_id!r} has no record")
        await records.put_info(job_id, replace(record, metadata={**(record.metadata or {}), **metadata}))

    asyncio.run(add())
