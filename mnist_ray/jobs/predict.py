"""The prediction job: the user's own images streamed through an actor pool of Ray Data, committed in one step."""

import itertools
import sys
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mnist_ray.config.placement import ANYWHERE, Placement, on_cluster
from mnist_ray.data.image_spans import Span
from mnist_ray.data.unlabelled import Images
from mnist_ray.evaluation.predict import (
    Committed,
    PredictionPlan,
    Predictor,
    ShardPrediction,
    check_name_is_free,
    commit,
    gather,
)
from mnist_ray.models.device import choose_device
from mnist_ray.storage.storage import PendingFolder, Storage


@dataclass(frozen=True)
class PredictJob:
    """A prediction and where it is done.

    Attributes:
      plan: run, polarity and sizes.
      images: what is predicted.
      storage: where the prediction is written.
      name: of its folder; None for one made from the content.
      num_workers: processes that share the images.
      strict: whether an image that can't be read ends the job.
      placement: on which machines.
    """

    plan: PredictionPlan
    images: Images
    storage: Storage
    name: str | None = None
    num_workers: int = 1
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
            # Ray Data takes most of a second to import.
            from mnist_ray.cluster.prediction_actors import predict_on_actors
            from mnist_ray.cluster.resources import Needs
            from mnist_ray.cluster.session import ray_session

            needs = Needs(f"images={job.plan.images}", job.storage, job.num_workers)
            with (
                ray_session(needs, job.placement) as use_gpu,
                # Closed before Ray is stopped, also where gather ends early.
                closing(
                    predict_on_actors(job.plan, job.images, pending, num_workers=job.num_workers, use_gpu=use_gpu)
                ) as done,
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
    predictor = Predictor(job.plan, device=choose_device(job.placement.use_gpu))
    for span in spans:
        yield from predictor.predict_span(span, pending)
