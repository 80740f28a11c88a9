"""Processes numbered spans in this process or on Ray workers."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import TypeVar

from mnist_ray.config.placement import Placement, on_cluster
from mnist_ray.storage.storage import Storage

Item = TypeVar("Item")
Result = TypeVar("Result")


@contextmanager
def results_of_spans(
    load: Callable[[bool | None], Callable[[Item], Iterable[Result]]],
    spans: Iterable[tuple[int, Item]],
    *,
    what: str,
    storage: Storage,
    num_workers: int,
    placement: Placement,
    is_divisible: bool = True,
) -> Iterator[Iterator[Result]]:
    """Yields an iterator over the spans' results, in order, as they become ready.

    A single worker on this machine is this process; several workers, or a job on a cluster, run on Ray.

    Args:
      load: called once in each process; returns the function that processes an item. Its argument says whether to use
        a GPU; None means if there is one.
      spans: the number of each span's first shard, and its item.
      what: the job, for messages.
      storage: where the workers write.
      num_workers: processes that share the spans.
      placement: where the workers run.
      is_divisible: whether there is work for more than one worker.
    """
    if not is_divisible or (num_workers == 1 and not on_cluster()):
        work = load(placement.use_gpu)
        yield chain.from_iterable(work(item) for _, item in spans)
        return
    # Ray takes a third of a second to import.
    from mnist_ray.cluster.resources import Needs
    from mnist_ray.cluster.worker_pool import results_of_workers

    needs = Needs(what, storage, num_workers)
    with results_of_workers(partial(load, None), spans, needs, placement) as results:
        yield results
