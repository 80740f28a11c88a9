"""Processes numbered spans on Ray actors, a bounded window at a time; results come in order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from mnist_ray.cluster.resources import Needs
from mnist_ray.cluster.session import ray_session
from mnist_ray.config.placement import Placement
from mnist_ray.errors import MnistRayError, RunFailedError

Item = TypeVar("Item")
Result = TypeVar("Result")

_TRIES = 4
_LOST = f"its worker died {_TRIES} times; use fewer --num-workers if memory is short"
_LOST_OVER_IMAGES = f"{_LOST}, or a smaller --shard-size to find the image that ends a process"
# One span in progress and one queued, so that no worker waits for this process.
_SPANS_PER_WORKER = 2
# Spans in flight, per worker: the other workers continue while one span is slow.
_WINDOW_PER_WORKER = 8
# ray job stop kills the job after 3 s.
_GRACE_S = 1.0


class PoolWorker:
    """A Ray actor that processes spans, one after the other."""

    def load(self, load: Callable[[], Callable[[Any], Iterable[Any]]]) -> list[Any]:
        """Loads the function that processes spans."""
        self._work = load()
        return []

    def work(self, item: Any) -> list[Any]:
        """Returns the results of a span."""
        return list(self._work(item))


@dataclass(eq=False)
class _Call:
    """A call to a worker: to load, or to process a span.

    Attributes:
      if_lost: message if the call loses too many workers.
      item: the span's item, in Ray's object store until the call is done.
      losses: workers lost during the call.
      results: None until the call is done.
    """

    if_lost: str
    item: Any = None
    losses: int = 0
    results: list[Any] | None = None


@dataclass(eq=False)
class _Worker:
    """An actor and its queue of calls, each with the reference to its result; loading comes first."""

    actor: Any
    loading: _Call
    calls: deque[tuple[Any, _Call]]

    @property
    def has_room(self) -> bool:
        return self.loading.results is not None and len(self.calls) < _SPANS_PER_WORKER


@contextmanager
def results_of_workers(
    load: Callable[[], Callable[[Item], Iterable[Result]]],
    spans: Iterable[tuple[int, Item]],
    needs: Needs,
    placement: Placement,
) -> Iterator[Iterator[Result]]:
    """Yields an iterator over the spans' results, in order, computed by workers in a ray_session.

    Args:
      load: called once by each worker; returns the function that processes an item. Ray pickles load, the items and
        the results.
      spans: the number of each span's first shard, and its item; consumed lazily, a window at a time.
      needs: the job's requirements.
      placement: where the workers run.

    Raises:
      MnistRayError: as ray_session, or raised on a worker.
      RunFailedError: too many workers were lost during the same span, or while loading.
    """
    with ray_session(needs, placement) as use_gpu:
        pool = _Pool(load, needs, use_gpu=use_gpu)
        try:
            yield pool.results(spans)
        finally:
            pool.end()


class _Pool:
    def __init__(self, load: Callable[[], Callable[[Any], Iterable[Any]]], needs: Needs, *, use_gpu: bool) -> None:
        self._needs, self._load = needs, ray.put(load)
        self._actor = ray.remote(num_cpus=1, num_gpus=1 if use_gpu else 0)(PoolWorker)
        self._workers: list[_Worker] = []
        # The spans of the window in order, and the subset not assigned to a worker.
        self._taken: deque[_Call] = deque()
        self._waiting: deque[_Call] = deque()

    def results(self, spans: Iterable[tuple[int, Any]]) -> Iterator[Any]:
        """Yields the results of all spans in order."""
        rest = iter(spans)
        for span in islice(rest, self._needs.num_workers):
            self._take(span)
            self._workers.append(self._start())
        while self._taken:
            if not self._waiting and len(self._taken) < self._needs.num_workers * _WINDOW_PER_WORKER:
                for span in islice(rest, 1):
                    self._take(span)
            if self._give():
                continue
            if (results := self._taken[0].results) is None:
                self._await_call()
            else:
                self._taken.popleft()
                yield from results

    def end(self) -> None:
        """Ends the workers after a short grace period, because an interrupted write leaves a file behind."""
        loaded = [worker for worker in self._workers if worker.loading.results is not None]
        if under_way := [ref for worker in loaded for ref, _ in worker.calls]:
            ray.wait(under_way, num_returns=len(under_way), timeout=_GRACE_S)
        for worker in self._workers:
            ray.kill(worker.actor)

    def _take(self, span: tuple[int, Any]) -> None:
        number, item = span
        call = _Call(f"shard {number}: {_LOST_OVER_IMAGES}", ray.put(item))
        self._taken.append(call)
        self._waiting.append(call)

    def _start(self, losses: int = 0) -> _Worker:
        actor, loading = self._actor.remote(), _Call(f"loading the networks: {_LOST}", losses=losses)
        return _Worker(actor, loading, deque([(actor.load.remote(self._load), loading)]))

    def _give(self) -> bool:
        """Assigns the first waiting span to the least busy worker; returns False if there is no span or no room."""
        with_room = [worker for worker in self._workers if worker.has_room]
        if not self._waiting or not with_room:
            return False
        worker, call = min(with_room, key=lambda worker: len(worker.calls)), self._waiting.popleft()
        worker.calls.append((worker.actor.work.remote(call.item), call))
        return True

    def _await_call(self) -> None:
        """Waits until any worker has finished its first call or is lost."""
        workers = {worker.calls[0][0]: worker for worker in self._workers if worker.calls}
        (done,), _ = ray.wait(list(workers))
        call = workers[done].calls[0][1]
        try:
            call.results, call.item = ray.get(done), None
            workers[done].calls.popleft()
        except RayError as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            if isinstance(cause, MnistRayError):
                raise cause from error
            if not isinstance(cause, RayError):
                raise
            call.losses += 1
            if call.losses == _TRIES:
                reason = str(error).splitlines()[0]
                raise RunFailedError(f"{self._needs.what}: {call.if_lost}; Ray says: {reason}") from error
            self._replace(workers[done])

    def _replace(self, worker: _Worker) -> None:
        """Replaces a lost worker and queues its spans again."""
        calls = [call for _, call in worker.calls]
        self._waiting.extendleft(call for call in reversed(calls) if call is not worker.loading)
        # The worker may only be unreachable and still running.
        ray.kill(worker.actor)
        losses = worker.loading.losses if worker.loading.results is None else 0
        self._workers[self._workers.index(worker)] = self._start(losses)
