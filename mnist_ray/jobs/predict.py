"""The prediction job: classifies the user's own images span by span and commits the tables atomically."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from mnist_ray.config.placement import ANYWHERE, Placement
from mnist_ray.data.image_spans import Span
from mnist_ray.data.unlabelled import Images
from mnist_ray.evaluation.predict import PREDICTED, PredictionPlan, Predictor, ShardPrediction
from mnist_ray.evaluation.prediction_folder import Committed, check_name_is_free, commit, gather
from mnist_ray.jobs.spans import results_of_spans
from mnist_ray.models.device import choose_device
from mnist_ray.results.paths import prediction_path
from mnist_ray.storage.storage import PendingFolder, Storage
from mnist_ray.text.doing import counted
from mnist_ray.text.escape import say_line


@dataclass(frozen=True)
class PredictJob:
    """A prediction and where to run it.

    Attributes:
      plan: run, polarity and sizes.
      images: the images to classify.
      storage: where the prediction is written.
      name: name of its folder; None to derive it from the content.
      num_workers: processes that share the images.
      strict: whether an unreadable image ends the job.
      placement: where the workers run.
    """

    plan: PredictionPlan
    images: Images
    storage: Storage
    name: str | None = None
    num_workers: int = 1
    strict: bool = False
    placement: Placement = ANYWHERE


def predict(job: PredictJob) -> Committed:
    """Classifies the images and commits the tables; the same images give the same bytes with any number of workers.

    A single worker on this machine, or a single span of images, runs in this process; otherwise workers are Ray actors.
    """
    if job.name is not None:
        check_name_is_free(job.storage, job.name, job.plan)
    job.storage.check()
    say_line(f"predicting images={job.plan.images}")
    spans = job.images.spans(job.plan.shard_size)
    first = list(itertools.islice(spans, 2))
    pending = job.storage.pending_folder(prediction_path(job.name or "unnamed"))
    try:
        with results_of_spans(
            partial(_load, job.plan, pending),
            ((span.first_shard, span) for span in itertools.chain(first, spans)),
            what=f"images={job.plan.images}",
            storage=job.storage,
            num_workers=job.num_workers,
            placement=job.placement,
            is_divisible=len(first) > 1,
        ) as done:
            shards = gather(counted(done, PREDICTED, size=_num_images), images=job.plan.images, strict=job.strict)
        return commit(job.plan, shards, pending, name=job.name)
    except BaseException:
        pending.abort()
        raise


def _num_images(shard: ShardPrediction) -> int:
    return shard.summary.num_images + shard.summary.num_errors


def _load(
    plan: PredictionPlan, pending: PendingFolder, use_gpu: bool | None
) -> Callable[[Span], Iterator[ShardPrediction]]:
    predictor = Predictor(plan, device=choose_device(use_gpu))
    return lambda span: predictor.predict_span(span, pending)
