"""An evaluation's shards on Ray's workers."""

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import ray
import torch
from ray.exceptions import RayError, RayTaskError

from mnist_ray.errors import MnistRayError, RunFailedError
from mnist_ray.evaluation.evaluation import Plan, Shard, ShardEvaluator, ShardResult
from mnist_ray.models.device import choose_device
from mnist_ray.storage.storage import PendingFolder

_RETRIES = 3


@lru_cache(maxsize=1)
def _evaluator(plan: "ray.ObjectRef[Plan]") -> ShardEvaluator:
    """Returns this worker's networks: with hundreds of runs they take longer to load than a shard to evaluate.

    With a GPU a worker is a new process for each shard: Ray ends it so that the GPU's memory is free again.
    """
    return ShardEvaluator(ray.get(plan), device=choose_device())


def _evaluate_remotely(
    plans: "list[ray.ObjectRef[Plan]]", number: int, first: int, images: "np.ndarray[Any, Any]",
    labels: "np.ndarray[Any, Any]", pending: PendingFolder,
) -> ShardResult:  # fmt: skip
    # Copies: torch warns of memory that it must not write to.
    shard = Shard(number, first, torch.from_numpy(images.copy()), torch.from_numpy(labels.copy()))
    (plan,) = plans
    return _evaluator(plan).evaluate(shard, pending)


def evaluate_on_workers(
    plan: Plan, shards: Iterable[Shard], pending: PendingFolder, *, num_workers: int, use_gpu: bool
) -> Iterator[ShardResult]:
    """Evaluates shards by tasks of the Ray that this process is connected to; yields what they leave, in any order.

    Every worker is busy with one shard while the next one is read and waits.

    Args:
      plan: the evaluation.
      shards: read here, one after the other, and sent to the workers.
      pending: the folder that their parts are written to.
      num_workers: tasks at once.
      use_gpu: whether each gets a GPU.

    Raises:
      MnistRayError: as ShardEvaluator.
      RunFailedError: a worker was lost too often.
    """
    task = ray.remote(num_cpus=1, num_gpus=1 if use_gpu else 0, max_retries=_RETRIES)(_evaluate_remotely)
    # In a list, as Ray would unpickle it for every task.
    plans = [ray.put(plan)]
    under_way: list[ray.ObjectRef[ShardResult]] = []
    try:
        for shard in shards:
            # As arrays: Ray copies them once, where a pickled tensor is copied three times on either side.
            images, labels = shard.images.numpy(), shard.labels.numpy()
            under_way.append(task.remote(plans, shard.number, shard.first, images, labels, pending))
            if len(under_way) > num_workers:
                done, under_way = ray.wait(under_way)
                yield ray.get(done[0])
        yield from ray.get(under_way)
    except RayTaskError as error:
        if isinstance(error.cause, MnistRayError):
            raise error.cause from error
        raise
    except RayError as error:
        raise RunFailedError(f"evaluation {plan.stem}: a worker was lost {_RETRIES + 1} times: {error}") from error
