"""The CPUs and GPUs of a cluster: waits for those that a job needs, and gives it up once too many are gone."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from mnist_ray.cluster.background import beside
from mnist_ray.config.placement import Placement, not_shared
from mnist_ray.errors import ClusterError, RunFailedError, StorageError
from mnist_ray.interruption import give_up
from mnist_ray.storage.storage import Storage
from mnist_ray.text.escape import say_line

_POLL_S = 1.0


@dataclass(frozen=True)
class Needs:
    """What a job can't do without.

    Attributes:
      what: the job, for messages, such as "run 'a'".
      storage: where its workers read and write.
      num_workers: workers that must fit at its start, each on one CPU or one GPU.
      least: workers that must fit for it to go on.
      option: the option that asked for the workers.
    """

    what: str
    storage: Storage
    num_workers: int
    least: int = 1
    option: str = "num-workers"


def await_workers(needs: Needs, placement: Placement, *, may_grow: bool) -> bool:
    """Waits until a job's workers fit.

    Args:
      needs: of the job.
      placement: on what, and for how long.
      may_grow: whether to wait at all.

    Returns:
      Whether the workers get a GPU each.

    Raises:
      ClusterError: they don't fit in time.
    """
    kind = _fitting_kind(needs, placement)
    if kind is None and may_grow and placement.resource_timeout_s:
        wanted = _wanted(placement)
        say_line(
            f"waiting up to {placement.resource_timeout_s:g} s for {needs.num_workers} {wanted}: "
            f"the cluster has {_there(wanted):g}"
        )
        deadline = time.monotonic() + placement.resource_timeout_s
        with _demand(needs.num_workers, wanted):
            while kind is None and time.monotonic() < deadline:
                time.sleep(_POLL_S)
                kind = _fitting_kind(needs, placement)
    if kind is None:
        raise ClusterError(_lack(needs, placement, where="the cluster" if may_grow else "this machine"))
    return kind == "GPU"


@contextmanager
def _demand(count: int, kind: str) -> Iterator[None]:
    """Shows the autoscaler, if there is one, what is missing; Ray's request_resources would replace a person's own."""
    group = placement_group([{kind: 1}] * count)
    try:
        yield
    finally:
        remove_placement_group(group)


def _fitting_kind(needs: Needs, placement: Placement) -> str | None:
    kinds = {None: ("GPU", "CPU"), True: ("GPU",), False: ("CPU",)}[placement.use_gpu]
    return next((kind for kind in kinds if _there(kind) >= needs.num_workers), None)


def _wanted(placement: Placement) -> str:
    return "GPU" if placement.use_gpu else "CPU"


def _there(kind: str) -> float:
    return float(ray.cluster_resources().get(kind, 0))


def _lack(needs: Needs, placement: Placement, *, where: str) -> str:
    kind = _wanted(placement)
    there = _there(kind)
    less = f"use --{needs.option} {int(there)} or less" if there >= 1 else f"add nodes with a {kind}"
    if not there and placement.use_gpu:
        less = "leave out --use-gpu, or add nodes with a GPU"
    return (
        f"{needs.option.replace('-', '_')}={needs.num_workers}: needs a {kind} for each, {where} has {there:g}; {less}"
    )


def check_storage(needs: Needs, placement: Placement) -> None:
    """Makes sure that all nodes see the same storage.

    Raises:
      StorageError: it is a folder of one machine, and the cluster has several.
    """
    num_nodes = sum(node["Alive"] for node in ray.nodes())
    if needs.storage.is_local and num_nodes > 1 and not placement.shared_storage:
        raise StorageError(not_shared(needs.storage.uri, num_nodes))


@contextmanager
def watched(needs: Needs, placement: Placement, kind: str) -> Iterator[None]:
    """Gives the job up when the cluster has lost too many nodes for longer than the deadline: Ray waits for ever.

    Args:
      needs: of the job.
      placement: says how long.
      kind: "CPU" or "GPU", what each worker takes.
    """
    if threading.current_thread() is not threading.main_thread():
        # Python's signals reach no other thread.
        yield
        return
    with beside(partial(_watch, needs, placement, kind)):
        yield


def _watch(needs: Needs, placement: Placement, kind: str, ended: threading.Event) -> None:
    enough_at = time.monotonic()
    while not ended.wait(_POLL_S):
        there = _there(kind)
        if there >= needs.least:
            enough_at = time.monotonic()
        elif time.monotonic() - enough_at > placement.resource_timeout_s:
            give_up(
                RunFailedError.exit_code,
                f"{needs.what}: needs {needs.least} {kind} and the cluster has {there:g}, since "
                f"{placement.resource_timeout_s:g} s (--resource-timeout): a node is gone and no other came; the same "
                "command, train with --resume, goes on once there are enough",
            )
            return
