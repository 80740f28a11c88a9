"""A prediction's images streamed through an actor pool of Ray Data."""

import gc
import io
import logging
import os
import pickle
from collections.abc import Generator, Iterator
from contextlib import redirect_stdout
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import DataContext, Datasource, ReadTask
from ray.data.block import BlockMetadata
from ray.exceptions import RayError

from mnist_ray.cluster.attempts import Attempts
from mnist_ray.data.image_spans import Span
from mnist_ray.data.unlabelled import Images
from mnist_ray.errors import MnistRayError, RunFailedError
from mnist_ray.evaluation.predict import PredictionPlan, Predictor, ShardPrediction
from mnist_ray.models.device import choose_device
from mnist_ray.storage.storage import PendingFolder

_ATTEMPTS = 4


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
        self._predictor = Predictor(plan, device=choose_device())
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


def predict_on_actors(
    plan: PredictionPlan, images: Images, pending: PendingFolder, *, num_workers: int, use_gpu: bool
) -> Generator[ShardPrediction, None, None]:
    """Predicts images on actors of the Ray that this process is connected to; yields what shards leave, in any order.

    Args:
      plan: the prediction.
      images: listed by one task, and read by the actors.
      pending: the folder that the parts are written to.
      num_workers: actors.
      use_gpu: whether each gets a GPU.

    Raises:
      MnistRayError: as Predictor.predict_span.
      RunFailedError: a worker was lost too often.
    """
    _configure_ray_data()
    # Without a CPU of its own: the actors may have them all.
    spans = ray.data.read_datasource(_Spans(images, plan.shard_size), override_num_blocks=1, num_cpus=0)
    results = spans.map_batches(
        _PredictorActor,
        fn_constructor_args=(plan, pending, _start_counting()),
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
        raise RunFailedError(f"images={plan.images}: a worker was lost: {error}") from error
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
