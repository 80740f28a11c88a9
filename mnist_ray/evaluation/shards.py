"""Evaluates checkpoints on a split, shard by shard, on any worker; does not import Ray."""

from collections.abc import Iterable, Iterator, Sequence
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
from mnist_ray.evaluation.plan import Plan, fingerprint_of_forms, form_of
from mnist_ray.results.parquet import to_parquet_bytes
from mnist_ray.results.paths import part_of_shard
from mnist_ray.storage.storage import PendingFolder, StoredFile
from mnist_ray.text.doing import count_on


@dataclass(frozen=True)
class Shard:
    """Consecutive examples of the split.

    Attributes:
      number: index of the shard, from 0.
      first: index of its first example.
      images: for each of the plan's forms, uint8 [n, channels, height, width].
      labels: int64 [n].
    """

    number: int
    first: int
    images: tuple[Tensor, ...]
    labels: Tensor

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles arrays, which Ray copies once; it would copy a pickled tensor three times on either side."""
        images = tuple(of_form.numpy() for of_form in self.images)
        return _shard_of_arrays, (self.number, self.first, images, self.labels.numpy())


def _shard_of_arrays(
    number: int, first: int, images: "Sequence[np.ndarray[Any, Any]]", labels: "np.ndarray[Any, Any]"
) -> Shard:
    # Copied, because torch warns about read-only memory.
    copies = tuple(torch.from_numpy(of_form.copy()) for of_form in images)
    return Shard(number, first, copies, torch.from_numpy(labels.copy()))


# What is counted while a split is evaluated.
EVALUATED = "images evaluated"


@dataclass(frozen=True)
class ShardResult:
    """Result of evaluating a shard: its part file, one tally per run, and the images that the gallery may show."""

    number: int
    num_images: int
    file: StoredFile
    tallies: tuple[Tally, ...]
    images: tuple[ShownImage, ...]


class ShardStream:
    """The split as shards that depend only on it and the plan, not on the workers; can be iterated once.

    Holds the images of one shard in memory at a time.

    Args:
      examples: the split in each of the plan's forms.

    Attributes:
      fingerprints: of the split in each form, after the last shard.
      conversion: what was converted, see ImagePieces, after the last shard.
    """

    def __init__(self, examples: Sequence[ExampleStream], plan: Plan) -> None:
        self._examples, self._plan = tuple(examples), plan
        self.fingerprints: tuple[str, ...] = ()
        self.conversion: str | None = None

    def __iter__(self) -> Iterator[Shard]:
        """Yields the shards.

        Raises:
          DataError: an image is damaged, or the numbers of images and labels differ; raised after the last shard,
            before anything is committed.
          StorageError: the images can't be read.
        """
        fingerprints = [Fingerprint(examples) for examples in self._examples]
        pieces = [examples.read() for examples in self._examples]
        shards = zip(*(_in_pieces(of_form, self._plan.shard_size) for of_form in pieces), strict=True)
        first = 0
        for number, images in enumerate(shards):
            for fingerprint, of_form in zip(fingerprints, images, strict=True):
                fingerprint.add(of_form)
            # A clone: pickling a view would send the labels of the whole split.
            labels = self._examples[0].labels[first : first + len(images[0])].clone()
            yield Shard(number, first, images, labels)
            first += len(labels)
        self.fingerprints = tuple(fingerprint.hexdigest() for fingerprint in fingerprints)
        self.conversion = conversion_of_forms([of_form.conversion for of_form in pieces])


def scan(examples: Sequence[ExampleStream]) -> tuple[str, str | None]:
    """Reads all images once for each form; returns the split's fingerprint and conversion, both of all forms."""
    fingerprints, conversions = zip(*(of_form.scan() for of_form in examples), strict=True)
    return fingerprint_of_forms(fingerprints), conversion_of_forms(conversions)


def conversion_of_forms(conversions: Iterable[str | None]) -> str | None:
    """Returns what was converted for any form; None if nothing was."""
    return "; ".join(conversion for conversion in conversions if conversion) or None


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

    def evaluate(self, shard: Shard, pending: PendingFolder) -> ShardResult:
        """Evaluates every checkpoint on a shard in one pass and stores its part of the predictions.

        Idempotent: the same shard gives the same bytes on any worker.

        Raises:
          StorageError: the part can't be written.
        """
        plan = self._plan
        names = np.asarray(plan.class_names, dtype=object)
        by_run = [predictions(scores_of_run, shard.labels) for scores_of_run in self._scores(shard)]
        parts = []
        for checkpoint, of_run in zip(plan.checkpoints, by_run, strict=True):
            columns = {
                **plan.facts("predictions"),
                "run": checkpoint.run,
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
        file = pending.write(part_of_shard("predictions", shard.number), data)
        tallies = tuple(tally(of_run, num_bins=plan.config.num_bins) for of_run in by_run)
        shown = max(shard.images, key=lambda of_form: of_form[0].numel())
        return ShardResult(shard.number, len(shard.labels), file, tallies, candidates(shown, by_run, first=shard.first))

    def _scores(self, shard: Shard) -> list[Tensor]:
        """Returns each run's log-probabilities, [n, classes], from one pass over the images of each form."""
        of_runs: dict[int, Tensor] = {}
        forms = [form_of(self._plan.dataset, checkpoint) for checkpoint in self._plan.checkpoints]
        for form, images in zip(self._plan.forms, shard.images, strict=True):
            runs = [run for run, its in enumerate(forms) if its == form]
            scores = log_probabilities(
                [self._networks[run] for run in runs],
                images,
                normalizations=[self._plan.checkpoints[run].normalization for run in runs],
                batch_size=self._plan.config.batch_size,
                device=self._device,
                done=lambda share: count_on(EVALUATED, share / len(forms)),
            )
            of_runs.update(zip(runs, scores, strict=True))
        return [of_runs[run] for run in range(len(forms))]


def gather(results: Iterable[ShardResult]) -> list[ShardResult]:
    """Returns the results of all shards, keeping only the images that the gallery shows to save memory."""
    gathered: list[ShardResult] = []
    images: list[ShownImage] = []
    for result in results:
        images = gallery([*images, *result.images])
        gathered.append(replace(result, images=()))
    return [replace(gathered[0], images=tuple(images)), *gathered[1:]]
