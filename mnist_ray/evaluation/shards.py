"""Evaluates checkpoints on a split, shard by shard, on any worker; does not import Ray."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from mnist_ray.data.examples import ExampleStream, Fingerprint
from mnist_ray.evaluation.gallery import ShownImage, candidates, gallery
from mnist_ray.evaluation.inference import load_network, log_probabilities
from mnist_ray.evaluation.metrics import Tally, predictions, tally
from mnist_ray.evaluation.plan import Plan
from mnist_ray.results.parquet import to_parquet_bytes
from mnist_ray.storage.storage import PendingFolder, StoredFile


@dataclass(frozen=True)
class Shard:
    """Consecutive examples of the split.

    Attributes:
      number: index of the shard, from 0.
      first: index of its first example.
      images: uint8 [n, channels, height, width].
      labels: int64 [n].
    """

    number: int
    first: int
    images: Tensor
    labels: Tensor

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles arrays, which Ray copies once; it would copy a pickled tensor three times on either side."""
        return _shard_of_arrays, (self.number, self.first, self.images.numpy(), self.labels.numpy())


def _shard_of_arrays(number: int, first: int, images: "np.ndarray[Any, Any]", labels: "np.ndarray[Any, Any]") -> Shard:
    # Copied, because torch warns about read-only memory.
    return Shard(number, first, torch.from_numpy(images.copy()), torch.from_numpy(labels.copy()))


@dataclass(frozen=True)
class ShardResult:
    """Result of evaluating a shard: its part file, one tally per run, and the images that the gallery may show."""

    number: int
    file: StoredFile
    tallies: tuple[Tally, ...]
    images: tuple[ShownImage, ...]


class ShardStream:
    """The split as shards that depend only on it and the plan, not on the workers; can be iterated once.

    Holds the images of one shard in memory at a time.

    Attributes:
      data_sha256: fingerprint of the split, after the last shard.
      conversion: what was converted, see ImagePieces, after the last shard.
    """

    def __init__(self, examples: ExampleStream, plan: Plan) -> None:
        self._examples, self._plan = examples, plan
        self.data_sha256: str | None = None
        self.conversion: str | None = None

    def __iter__(self) -> Iterator[Shard]:
        """Yields the shards.

        Raises:
          DataError: an image is damaged, or the numbers of images and labels differ; raised after the last shard,
            before anything is committed.
          StorageError: the images can't be read.
        """
        examples = self._examples
        fingerprint, pieces = Fingerprint(examples), examples.read()
        first = 0
        for number, images in enumerate(_in_pieces(pieces, self._plan.shard_size)):
            fingerprint.add(images)
            # A clone: pickling a view would send the labels of the whole split.
            yield Shard(number, first, images, examples.labels[first : first + len(images)].clone())
            first += len(images)
        self.data_sha256, self.conversion = fingerprint.hexdigest(), pieces.conversion


def _in_pieces(images: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """Yields the same rows in pieces of this size; the last may be smaller."""
    held: list[Tensor] = []
    count = 0
    for piece in images:
        rest = piece
        while len(rest):
            part, rest = rest[: size - count], rest[size - count :]
            held.append(part)
            count += len(part)
            if count == size:
                yield torch.cat(held)
                held, count = [], 0
    if held:
        yield torch.cat(held)


class ShardEvaluator:
    """The networks of a plan on their device, ready for any shard.

    Args:
      plan: the evaluation.
      device: where the networks compute.

    Raises:
      CheckpointError: a checkpoint's weights don't fit its config.
    """

    def __init__(self, plan: Plan, *, device: torch.device) -> None:
        self._plan = plan
        self._device = device
        self._networks = [load_network(checkpoint).to(device) for checkpoint in plan.checkpoints]
        self._normalizations = [checkpoint.normalization for checkpoint in plan.checkpoints]

    def evaluate(self, shard: Shard, pending: PendingFolder) -> ShardResult:
        """Evaluates every checkpoint on a shard in one pass and stores its part of the predictions.

        Idempotent: the same shard gives the same bytes on any worker.

        Raises:
          StorageError: the part can't be written.
        """
        plan = self._plan
        scores = log_probabilities(
            self._networks,
            shard.images,
            normalizations=self._normalizations,
            batch_size=plan.config.batch_size,
            device=self._device,
        )
        names = np.asarray(plan.class_names, dtype=object)
        by_run = [predictions(scores_of_run, shard.labels) for scores_of_run in scores]
        parts = []
        for checkpoint, of_run in zip(plan.checkpoints, by_run, strict=True):
            columns = {
                "run": checkpoint.run,
                "dataset": plan.dataset,
                "split": plan.config.split,
                "example_index": np.arange(shard.first, shard.first + len(shard.labels)),
                "label": of_run.label,
                "label_name": names[of_run.label],
                "predicted_label": of_run.predicted_label,
                "predicted_label_name": names[of_run.predicted_label],
                "correct": of_run.correct,
                "confidence": of_run.confidence,
                "label_probability": of_run.label_probability,
                "loss": of_run.loss,
                "probabilities": of_run.probabilities,
            }
            parts.append(plan.table("predictions", columns))
        data = to_parquet_bytes(pa.concat_tables(parts))
        file = pending.write(f"predictions-{shard.number:05d}.parquet", data)
        tallies = tuple(tally(of_run, num_bins=plan.config.num_bins) for of_run in by_run)
        return ShardResult(shard.number, file, tallies, candidates(shard.images, by_run, first=shard.first))


def gather(results: Iterable[ShardResult]) -> list[ShardResult]:
    """Returns the results of all shards, keeping only the images that the gallery shows to save memory."""
    gathered: list[ShardResult] = []
    images: list[ShownImage] = []
    for result in results:
        images = gallery([*images, *result.images])
        gathered.append(replace(result, images=()))
    return [replace(gathered[0], images=tuple(images)), *gathered[1:]]
