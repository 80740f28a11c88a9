"""Work on numbered spans: in this process, or by workers on Ray."""

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
    """Gives the block the results of spans, in order, as they are done.

    One worker on this machine is this very process; more, or a job on a cluster, are Ray workers.

    Args:
      load: loads what does the work of an item, once in each process; told whether it uses a GPU, None for: if there
        is one.
      spans: number of the first shard, and item, of each.
      what: the job, for messages.
      storage: where the workers write.
      num_workers: processes that share the spans.
      placement: on which machines.
      is_divisible: whether there is work for more than one.
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
