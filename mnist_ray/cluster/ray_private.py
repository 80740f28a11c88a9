"""All that mnist_ray uses of Ray's private names, and why; a test fails when one vanishes."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ray._common.constants import HEAD_NODE_RESOURCE_NAME
from ray._private import ray_constants

# A sliver of the driver's node: a trial that only waits takes no CPU, and Tune refuses one that takes nothing at all.
ON_HEAD_NODE: Mapping[str, float] = {"CPU": 0, HEAD_NODE_RESOURCE_NAME: 0.001}


def session_folder(folder: str) -> dict[str, Any]:
    """Returns the argument of ray.init for the folder of its sockets and logs, which every user could read in /tmp."""
    return {"_temp_dir": folder}


@contextmanager
def on_loopback() -> Iterator[None]:
    """Has a Ray that is started inside the block listen on this machine's loopback alone.

    Ray does so by itself on macOS and Windows, by this switch. _node_ip_address is of no use: Ray replaces 127.0.0.1
    there by the machine's address in its network, where anybody could knock.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
