"""A cluster's CPUs and GPUs: waits until a job's workers fit, and gives the job up after losing too many."""

import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray
from ray.util.placement_group import placement_group, remove_placement_group

from mnist_ray.config.placement import Placement, not_shared
from mnist_ray.errors import ClusterError, RunFailedError, StorageError
from mnist_ray.interruption import give_up
from mnist_ray.storage.proxies import is_direct, keep_off_proxies
from mnist_ray.storage.storage import Storage
from mnist_ray.text.escape import say_line

_POLL_S = 1.0
# Limit in seconds of asking how many jobs run.
_COUNT_S = 5


@dataclass(frozen=True)
class Needs:
    """A job's requirements.

    Attributes:
      what: the job, for messages, such as "run 'a'".
      storage: where its workers read and write.
      num_workers: workers that must fit at the start, each on one CPU or one GPU.
      least: workers that must fit for the job to continue.
      option: the command-line option that sets the number of workers.
    """

    what: str
    storage: Storage
    num_workers: int
    least: int = 1
    option: str = "num-workers"


def await_workers(needs: Needs, placement: Placement, *, may_grow: bool) -> bool:
    """Waits until a job's workers fit.

    Args:
      needs: the job's requirements.
      placement: CPUs or GPUs, and the timeout.
      may_grow: whether to wait at all.

    Returns:
      Whether each worker gets a GPU.

    Raises:
      ClusterError: the workers don't fit in time.
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
    if may_grow:
        _say_queue(needs, kind)
    return kind == "GPU"


def _say_queue(needs: Needs, kind: str) -> None:
    """Says for what the workers wait if other jobs use the CPUs or GPUs; they start as soon as these are free."""
    for _ in range(2):
        free = float(ray.available_resources().get(kind, 0))
        if free >= needs.num_workers:
            return
        # Those of a job that has just ended are counted as used for a moment.
        time.sleep(_POLL_S)
    there = _there(kind)
    say_line(
        f"waiting for {needs.num_workers} {kind}: {_others_use()} {there - free:g} of the cluster's {there:g}; "
        "this one starts when enough are free"
    )


def _others_use() -> str:
    """Returns 'other jobs use', or '2 other jobs use' where a dashboard without a proxy before it counts them."""
    # Takes a tenth of a second to import.
    from ray.util.state import list_jobs
    from ray.util.state.exception import RayStateApiException

    context = ray.get_runtime_context()
    dashboard = f"http://{context.gcs_address}"
    if not is_direct(dashboard) and urllib.request.getproxies():
        return "other jobs use"
    keep_off_proxies(dashboard)
    try:
        running = list_jobs(address=context.gcs_address, filters=[("status", "=", "RUNNING")], timeout=_COUNT_S)
    except RayStateApiException:
        return "other jobs use"
    others = sum(job.job_id not in (None, context.get_job_id()) for job in running)
    return {0: "other jobs use", 1: "1 other job uses"}.get(others, f"{others} other jobs use")


@contextmanager
def _demand(count: int, kind: str) -> Iterator[None]:
    """Signals the demand to an autoscaler; Ray's request_resources would overwrite the user's own request."""
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
        less = "leave out --device gpu, or add nodes with a GPU"
    return (
        f"{needs.option.replace('-', '_')}={needs.num_workers}: needs a {kind} for each, {where} has {there:g}; {less}"
    )


def check_storage(needs: Needs, placement: Placement) -> None:
    """Checks that all nodes see the same storage.

    Raises:
      StorageError: the storage is a local folder, and the cluster has several nodes.
    """
    num_nodes = sum(node["Alive"] for node in ray.nodes())
    if needs.storage.is_local and num_nodes > 1 and not placement.shared_storage:
        raise StorageError(not_shared(needs.storage.uri, num_nodes))


@contextmanager
def watched(needs: Needs, placement: Placement, kind: str) -> Iterator[None]:
    """Gives the job up if too few workers fit for longer than the timeout; Ray itself would wait forever.

    Args:
      needs: the job's requirements.
      placement: sets the timeout.
      kind: "CPU" or "GPU", whichever a worker takes.
    """
    if threading.current_thread() is not threading.main_thread():
        # give_up works by a signal, which reaches only the main thread.
        yield
        return
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(needs, placement, kind, ended), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


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
                "command goes on once there are enough",
            )
            return
