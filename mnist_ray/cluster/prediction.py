"""The prediction job: the user's own images streamed through an actor pool of Ray Data, committed in one step."""

import gc
import io
import itertools
import logging
import os
import pickle
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing, redirect_stdout
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import DataContext, Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.exceptions import RayError
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mnist_ray.cluster.attempts import Attempts
from mnist_ray.cluster.resources import Needs
from mnist_ray.cluster.session import on_cluster, ray_session
from mnist_ray.data.image_spans import Span
from mnist_ray.data.unlabelled import Images
from mnist_ray.errors import MnistRayError, RunFailedError
from mnist_ray.inference import inference_device
from mnist_ray.placement import ANYWHERE, Placement
from mnist_ray.predicting import (
    Committed,
    PredictionPlan,
    Predictor,
    ShardPrediction,
    check_name_is_free,
    commit,
    gather,
)
from mnist_ray.storage import PendingFolder, Storage

_ATTEMPTS = 4


@dataclass(frozen=True)
class PredictJob:
    """A prediction and where it is done.

    Attributes:
      plan: run, polarity and sizes.
      images: what is predicted.
      storage: where the prediction is written.
      name: of its folder; None for one made from the content.
      num_workers: actors that share the images; None for as many as this machine has CPUs (GPUs, if it has any), one on
        a cluster.
      strict: whether an image that can't be read ends the job.
      placement: on which machines.
    """

    plan: PredictionPlan
    images: Images
    storage: Storage
    name: str | None = None
    num_workers: int | None = None
    strict: bool = False
    placement: Placement = ANYWHERE


def predict(job: PredictJob) -> Committed:
    """Predicts the images and commits the tables; the same images give the same bytes with any number of workers.

    One worker on this machine, and images of a single span, are predicted in this very process; more are actors.
    """
    if job.name is not None:
        check_name_is_free(job.storage, job.name, job.plan)
    job.storage.check()
    spans = job.images.spans(job.plan.shard_size)
    first = list(itertools.islice(spans, 2))
    pending = job.storage.pending_folder(f"predictions/{job.name or 'unnamed'}")
    try:
        if len(first) == 1 or (job.num_workers == 1 and not on_cluster()):
            done = _in_process(job, itertools.chain(first, spans), pending)
            shards = gather(_shown(done), images=job.plan.images, strict=job.strict)
        else:
            needs = Needs(f"images={job.plan.images}", job.storage, job.num_workers or 1)
            with (
                ray_session(needs, job.placement) as use_gpu,
                # Closed before Ray is stopped, also where gather ends early.
                closing(_on_actors(job, pending, use_gpu=use_gpu)) as done,
            ):
                shards = gather(_shown(done), images=job.plan.images, strict=job.strict)
        return commit(job.plan, shards, pending, name=job.name)
    except BaseException:
        pending.abort()
        raise


def _shown(shards: Iterator[ShardPrediction]) -> Iterator[ShardPrediction]:
    """Passes shards on and shows on a terminal how many images they had; how many there will be nobody knows."""
    columns = (SpinnerColumn(), TextColumn("{task.completed:,.0f} images"), TimeElapsedColumn())
    with Progress(*columns, console=Console(file=sys.stderr), transient=True, disable=not sys.stderr.isatty()) as shown:
        task = shown.add_task("images", total=None)
        for shard in shards:
            shown.advance(task, shard.num_images + len(shard.errors))
            yield shard


def _in_process(job: PredictJob, spans: Iterable[Span], pending: PendingFolder) -> Iterator[ShardPrediction]:
    predictor = Predictor(job.plan, device=inference_device(job.placement.use_gpu))
    for span in spans:
        yield from predictor.predict_span(span, pending)


class _Spans(Datasource):  # type: ignore[misc]
    """The spans of images as a Ray Data source: listed by one task, a block each, only as fast as they are taken."""

    def __init__(self, images: Images, shard_size: int) -> None:
        super().__init__()
        self._images = images
        self._shard_size = shard_size

    def estimate_inmemory_data_size(self) -> int | None:
        """Nobody knows before all are listed."""
        return None

    def get_read_tasks(
        self,
        parallelism: int,  # noqa: ARG002
        per_task_row_limit: int | None = None,  # noqa: ARG002
        data_context: DataContext | None = None,  # noqa: ARG002
    ) -> list[ReadTask]:
        """Returns the only task."""
        images, shard_size = self._images, self._shard_size

        def read() -> Iterator[pa.Table]:
            try:
                for span in images.spans(shard_size):
                    yield pa.table({"message": [pickle.dumps(span)]})
            except MnistRayError as error:
                yield pa.table({"message": [pickle.dumps(error)]})

        metadata = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(read, metadata)]


class _PredictorActor:
    """Predicts spans; what it sends is a shard's result, or the error that ends the job, pickled."""

    def __init__(self, plan: PredictionPlan, pending: PendingFolder, attempts: Any) -> None:
        self._predictor = Predictor(plan, device=inference_device())
        self._pending = pending
        self._attempts = attempts

    def __call__(self, batch: pa.Table) -> Iterator[dict[str, Any]]:
        for message in batch["message"].to_pylist():
            try:
                for shard in self._predict(pickle.loads(message)):
                    yield {"message": [pickle.dumps(shard)]}
            except MnistRayError as error:
                yield {"message": [pickle.dumps(error)]}

    def _predict(self, received: Span | MnistRayError) -> Iterator[ShardPrediction]:
        if isinstance(received, MnistRayError):
            raise received
        if not ray.get(self._attempts.may_begin.remote(received.first_shard)):
            raise RunFailedError(
                f"shard {received.first_shard}: its worker died {_ATTEMPTS} times; use fewer --num-workers if memory "
                "is short, or a smaller --shard-size to find the image that ends a process"
            )
        return self._predictor.predict_span(received, self._pending)


def _on_actors(job: PredictJob, pending: PendingFolder, *, use_gpu: bool) -> Generator[ShardPrediction, None, None]:
    _configure_ray_data()
    there = ray.cluster_resources()["GPU" if use_gpu else "CPU"]
    num_workers = job.num_workers or (1 if on_cluster() else int(there))
    # Without a CPU of its own: the actors may have them all.
    spans = ray.data.read_datasource(_Spans(job.images, job.plan.shard_size), override_num_blocks=1, num_cpus=0)
    results = spans.map_batches(
        _PredictorActor,
        fn_constructor_args=(job.plan, pending, _start_counting()),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=num_workers),
        num_cpus=1,
        num_gpus=1 if use_gpu else 0,
    )
    rows = iter(results.iter_rows())
    try:
        for row in rows:
            received = pickle.loads(row["message"])
            if isinstance(received, MnistRayError):
                raise received
            yield received
    except RayError as error:
        raise RunFailedError(f"images={job.plan.images}: a worker was lost: {error}") from error
    finally:
        # What stops the thread that executes a Dataset, and its actors, is that nothing refers to it any more. Of
        # actors that are in their work Ray says that it will be tried again.
        with redirect_stdout(io.StringIO()):
            rows.close()
            del rows, results, spans
            gc.collect()


def _start_counting() -> Any:
    """Starts the counter of attempts as the first actor of this process that has an argument in the object store.

    About that one Ray prints a line, straight to the file descriptor and once per process. Every actor pool of Ray Data
    would cause it, and nobody can do anything about it: https://github.com/ray-project/ray/issues/53727
    """
    limit = ray.put(_ATTEMPTS)
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        return ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Attempts).remote(limit)
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def _configure_ray_data() -> None:
    context = DataContext.get_current()
    # A span is one block: by default blocks are joined until they have 128 MiB.
    context.target_max_block_size = 1
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
