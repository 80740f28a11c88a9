"""Evaluates checkpoints on a split, shard by shard, and commits the tables in one step; does not import Ray."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from mnist_ray.config.settings import EvaluationConfig
from mnist_ray.data.examples import ExampleStream, Fingerprint
from mnist_ray.errors import CheckpointError
from mnist_ray.evaluation.gallery import ShownImage, candidates, gallery
from mnist_ray.evaluation.inference import log_probabilities
from mnist_ray.evaluation.metrics import Tally, calibration, class_rates, predictions, rates, tally
from mnist_ray.models.networks import network_of
from mnist_ray.results import parquet
from mnist_ray.results.code_version import code_version
from mnist_ray.results.columns import SCHEMA_VERSION, config_columns
from mnist_ray.results.run_folder import Checkpoint
from mnist_ray.storage.storage import PendingFolder, StoredFile

# Per part file: 256 MB. A process holds a few times as many while it evaluates a shard.
_MOST_PROBABILITIES = 1 << 26


@dataclass(frozen=True)
class Plan:
    """What the shards of one evaluation have in common.

    Attributes:
      config: the evaluation's config, with a data set.
      checkpoints: the runs' best checkpoints, sorted by run.
      class_names: one per class.
      data_sha256: fingerprint of the split; None until all its images are read.
      code_version: of the planning process; workers write it too, whatever version is on their disks.
    """

    config: EvaluationConfig
    checkpoints: tuple[Checkpoint, ...]
    class_names: tuple[str, ...]
    data_sha256: str | None
    code_version: str

    @property
    def dataset(self) -> str:
        """The data set that is evaluated."""
        assert self.config.dataset is not None
        return self.config.dataset

    @property
    def name(self) -> str:
        """The evaluation's name; its last part is a hash of everything that the result depends on."""
        return f"{self.stem}-{self.content_hash[:12]}"

    @property
    def stem(self) -> str:
        """The name without the hash."""
        dataset = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in self.dataset)[:24]
        runs = f"{len(self.checkpoints)}run{'s' if len(self.checkpoints) > 1 else ''}"
        which = f"{self.config.grid}-{runs}" if self.config.grid else runs
        return f"{dataset}-{self.config.split}-{which}"

    @property
    def shard_size(self) -> int:
        """Images per part file: as configured, or fewer if many classes and runs would fill the memory."""
        return min(self.config.shard_size, max(1, _MOST_PROBABILITIES // (len(self.class_names) * len(self.runs))))

    @property
    def runs(self) -> dict[str, str]:
        """SHA-256 of each run's weights."""
        return {checkpoint.run: checkpoint.sha256 for checkpoint in self.checkpoints}

    @property
    def content_hash(self) -> str:
        """SHA-256 of checkpoints, data, config and code, in hexadecimal."""
        assert self.data_sha256 is not None
        content = {
            "checkpoints": [[checkpoint.run, checkpoint.sha256] for checkpoint in self.checkpoints],
            "data_sha256": self.data_sha256,
            "config": self.config.model_dump(mode="json"),
            "code_version": self.code_version,
            "curves": [_curve(checkpoint) for checkpoint in self.checkpoints],
            "lineage": [checkpoint.document["lineage"] for checkpoint in self.checkpoints],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Shard:
    """Consecutive examples of the split.

    Attributes:
      number: index of the shard, from 0.
      first: index of its first example.
      images: uint8 [n, 1, 28, 28].
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


def make_plan(
    config: EvaluationConfig,
    checkpoints: Sequence[Checkpoint],
    examples: ExampleStream,
    *,
    data_sha256: str | None = None,
) -> Plan:
    """Returns the plan of an evaluation.

    Args:
      config: the evaluation's config.
      checkpoints: the runs' best checkpoints, checked by check_checkpoints.
      examples: the split.
      data_sha256: fingerprint of the split, if already known.
    """
    ordered = tuple(sorted(checkpoints, key=lambda checkpoint: checkpoint.run))
    return Plan(config, ordered, examples.class_names, data_sha256, code_version())


def check_checkpoints(config: EvaluationConfig, checkpoints: Sequence[Checkpoint], examples: ExampleStream) -> None:
    """Checks that checkpoints fit the data, before any image is read.

    Raises:
      CheckpointError: a checkpoint has other classes than the data, or weights that don't fit its config.
    """
    for checkpoint in checkpoints:
        names = tuple(checkpoint.document["class_names"])
        if names != examples.class_names:
            raise CheckpointError(
                f"run {checkpoint.run!r}: trained on {len(names)} classes ({_shortened(names)}), dataset="
                f"{config.dataset!r} has {len(examples.class_names)} ({_shortened(examples.class_names)})"
            )
        load_network(checkpoint)


def trained_wide_bits(checkpoints: Sequence[Checkpoint]) -> int | None:
    """Returns the bit depth that training images of more than 8 bits were scaled from; None if no run recorded one.

    Raises:
      CheckpointError: runs differ, so the same images would have to be scaled in several ways.
    """
    noted = {checkpoint.document.get("wide_bits"): checkpoint.run for checkpoint in checkpoints}
    noted.pop(None, None)
    if len(noted) > 1:
        runs = ", ".join(f"{run!r} from {bits} bits" for bits, run in sorted(noted.items()))
        raise CheckpointError(f"runs scaled their training images differently: {runs}; evaluate them one by one")
    return next(iter(noted), None)


def load_network(checkpoint: Checkpoint) -> nn.Sequential:
    """Returns a checkpoint's network in evaluation mode.

    Raises:
      CheckpointError: the weights belong to another architecture than the config.
    """
    try:
        network = network_of(checkpoint.config, len(checkpoint.document["class_names"]), checkpoint.model)
    except ValueError as error:
        reason = str(error)
        raise CheckpointError(
            f"run {checkpoint.run!r}: weights of another architecture than its config: {reason[:300]}"
        ) from None
    return network.eval()


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


def num_shards(examples: ExampleStream, plan: Plan) -> int:
    """Returns the number of shards of the split."""
    return math.ceil(len(examples) / plan.shard_size)


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
        self._normalizations = [
            (checkpoint.document["normalization"]["mean"], checkpoint.document["normalization"]["std"])
            for checkpoint in plan.checkpoints
        ]

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
            parts.append(_table(plan, "predictions", columns))
        data = parquet.to_parquet_bytes(pa.concat_tables(parts))
        file = pending.write(f"predictions-{shard.number:05d}.parquet", data)
        tallies = tuple(tally(of_run, num_bins=plan.config.num_bins) for of_run in by_run)
        return ShardResult(shard.number, file, tallies, candidates(shard.images, by_run, first=shard.first))


def gather(results: Iterable[ShardResult]) -> list[ShardResult]:
    """Returns the results of all shards, keeping only the images that the gallery shows to save memory."""
    gathered: list[ShardResult] = []
    shown: list[ShownImage] = []
    for result in results:
        shown = gallery([*shown, *result.images])
        gathered.append(replace(result, images=()))
    return [replace(gathered[0], images=tuple(shown)), *gathered[1:]]


def write_tables(plan: Plan, results: Sequence[ShardResult], pending: PendingFolder) -> list[StoredFile]:
    """Stores the tables computed from the tallies of all shards, which are summed in the given order."""
    totals = [sum(rest, start=first) for first, *rest in zip(*(result.tallies for result in results), strict=True)]
    made = {
        "metrics": [
            _metrics(plan, checkpoint, total) for checkpoint, total in zip(plan.checkpoints, totals, strict=True)
        ],
        "per_class": _rows(plan, totals, _per_class),
        "calibration": _rows(plan, totals, lambda _, total: _by_row(calibration(total))),
        "learning_curves": [
            {"run": checkpoint.run, **epoch} for checkpoint in plan.checkpoints for epoch in _curve(checkpoint)
        ],
        "images": _images(plan, gallery(image for result in results for image in result.images)),
        "lineage": [_lineage(plan, checkpoint) for checkpoint in plan.checkpoints],
    }
    files = [result.file for result in results]
    for name, rows in made.items():
        columns = {column: [row[column] for row in rows] for column in rows[0]}
        files.append(pending.write(f"{name}.parquet", parquet.to_parquet_bytes(_table(plan, name, columns))))
    confusion = parquet.pieces_to_parquet_bytes(_confusion(plan, totals))
    files.append(pending.write("confusion.parquet", confusion))
    return files


def manifest(plan: Plan, num_examples: int) -> dict[str, Any]:
    """Returns the manifest of the committed folder."""
    return {
        "evaluation": plan.name,
        "schema_version": SCHEMA_VERSION,
        "content_hash": plan.content_hash,
        "config": plan.config.model_dump(mode="json"),
        "data_sha256": plan.data_sha256,
        "num_examples": num_examples,
        "class_names": list(plan.class_names),
        "code_version": plan.code_version,
        "runs": plan.runs,
    }


def _curve(checkpoint: Checkpoint) -> list[dict[str, Any]]:
    """Returns the epochs of a run without their wall times, which are not part of its result."""
    rows = [asdict(epoch) for epoch in checkpoint.history]
    return [{name: value for name, value in row.items() if name != "epoch_seconds"} for row in rows]


def _images(plan: Plan, shown: Sequence[ShownImage]) -> list[dict[str, Any]]:
    rank: Counter[str] = Counter()
    rows = []
    for image in shown:
        rows.append(
            {
                "dataset": plan.dataset,
                "split": plan.config.split,
                **asdict(image),
                "rank": rank[image.reason],
                "label_name": plan.class_names[image.label],
            }
        )
        rank[image.reason] += 1
    return rows


def _lineage(plan: Plan, checkpoint: Checkpoint) -> dict[str, Any]:
    document = checkpoint.document
    made_by = dict(document["lineage"])
    return {
        "run": checkpoint.run,
        "dataset": plan.dataset,
        "split": plan.config.split,
        "config_hash": checkpoint.config.config_hash(),
        "checkpoint_sha256": checkpoint.sha256,
        "train_data_sha256": document["data_sha256"],
        "train_code_version": document["code_version"],
        **made_by,
        "libraries": json.dumps(made_by["libraries"], sort_keys=True),
    }


def _metrics(plan: Plan, checkpoint: Checkpoint, total: Tally) -> dict[str, Any]:
    settings = {name: column[0] for name, column in config_columns([checkpoint.config]).items()}
    return {
        **settings,
        **asdict(rates(total)),
        "run": checkpoint.run,
        "dataset": plan.dataset,
        "split": plan.config.split,
        "grid": plan.config.grid,
        "epoch": checkpoint.document["epoch"],
        "config_hash": checkpoint.config.config_hash(),
        "checkpoint_sha256": checkpoint.sha256,
        "data_sha256": plan.data_sha256,
        "code_version": plan.code_version,
    }


def _per_class(plan: Plan, total: Tally) -> list[dict[str, Any]]:
    classes = class_rates(total.confusion)
    return _by_row(
        {
            "class": list(range(len(plan.class_names))),
            "class_name": list(plan.class_names),
            "precision": classes.precision.tolist(),
            "recall": classes.recall.tolist(),
            "f1": classes.f1.tolist(),
            "support": classes.support.tolist(),
        }
    )


def _confusion(plan: Plan, totals: Sequence[Tally]) -> Iterator[pa.Table]:
    """Yields the confusion table in pieces: with thousands of classes a single run has millions of rows."""
    runs = np.asarray([checkpoint.run for checkpoint in plan.checkpoints], dtype=object)
    names, num_classes = np.asarray(plan.class_names, dtype=object), len(plan.class_names)
    # Row numbers of the nonzero cells, in order.
    filled = np.concatenate([run * num_classes**2 + total.pairs for run, total in enumerate(totals)])
    counts = np.concatenate([total.pair_count for total in totals])
    for first in range(0, len(totals) * num_classes**2, parquet.ROWS_IN_PIECE):
        cells = np.arange(first, min(first + parquet.ROWS_IN_PIECE, len(totals) * num_classes**2))
        run, pair = np.divmod(cells, num_classes**2)
        label, predicted = np.divmod(pair, num_classes)
        some = slice(*np.searchsorted(filled, (first, first + len(cells))))
        count = np.zeros(len(cells), dtype=np.int64)
        count[filled[some] - first] = counts[some]
        columns = {
            "run": runs[run],
            "dataset": plan.dataset,
            "split": plan.config.split,
            "label": label,
            "label_name": names[label],
            "predicted_label": predicted,
            "predicted_label_name": names[predicted],
            "count": count,
        }
        yield _table(plan, "confusion", columns)


def _rows(plan: Plan, totals: Sequence[Tally], make: Any) -> list[dict[str, Any]]:
    return [
        {"run": checkpoint.run, "dataset": plan.dataset, "split": plan.config.split, **row}
        for checkpoint, total in zip(plan.checkpoints, totals, strict=True)
        for row in make(plan, total)
    ]


def _by_row(columns: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _table(plan: Plan, name: str, columns: dict[str, Any]) -> pa.Table:
    return parquet.make_table(name, columns, code_version=plan.code_version, num_classes=len(plan.class_names))


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
