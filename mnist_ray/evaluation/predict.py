"""Predicts the user's own images, shard by shard, on any worker; does not import Ray."""

import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import torch

from mnist_ray.config.own_code import check_code
from mnist_ray.data.datasets import DATASETS
from mnist_ray.data.decoded_images import all_one_shade
from mnist_ray.data.image_spans import ReadImages, Span, shards
from mnist_ray.data.ink import MIN_EXTENT, ink_extent
from mnist_ray.data.polarity import Inversion, Polarity, choose_inversion, to_be_inverted
from mnist_ray.data.sources import MAX_NAMES_SAID
from mnist_ray.data.unlabelled import Images
from mnist_ray.errors import ConfigError, DataError
from mnist_ray.evaluation.inference import load_network, log_probabilities
from mnist_ray.evaluation.metrics import Predictions, predictions
from mnist_ray.evaluation.plan import MOST_BYTES
from mnist_ray.models.device import choose_device
from mnist_ray.results.checkpoint_folder import Checkpoint
from mnist_ray.results.code_version import code_version
from mnist_ray.results.parquet import make_table, to_parquet_bytes
from mnist_ray.results.paths import part_of_shard
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.storage.storage import PendingFolder, Storage, StoredFile
from mnist_ray.text.doing import count_on
from mnist_ray.text.escape import printable

_BATCH_SIZE = 1024
_TABLE = "image_predictions"
# What is counted meanwhile.
PREDICTED = "images predicted"


@dataclass(frozen=True)
class PredictionPlan:
    """What the shards of one prediction have in common.

    Attributes:
      checkpoint: the run's best checkpoint.
      images: path or URI of the images.
      kind: kind of the images.
      polarity: polarity of the images.
      inversion: which images are inverted.
      shard_size: images per part file.
      code_version: of the planning process.
    """

    checkpoint: Checkpoint
    images: str
    kind: str
    polarity: Polarity
    inversion: Inversion
    shard_size: int
    code_version: str

    def facts(self) -> dict[str, Any]:
        """Returns everything that the result depends on, except the images' content, as JSON values."""
        return {
            "run": self.checkpoint.run,
            "checkpoint_sha256": self.checkpoint.sha256,
            "images": self.images,
            "kind": self.kind,
            "polarity": self.polarity,
            "inversion": self.inversion,
            "shard_size": self.shard_size,
            "class_names": list(self.checkpoint.class_names),
            "code_version": self.code_version,
        }

    def parquet(self, name: str, columns: Mapping[str, Any]) -> bytes:
        """Returns a table of this prediction as the content of a Parquet file; see make_table."""
        return to_parquet_bytes(make_table(name, columns, code_version=self.code_version))


def make_plan(storage: Storage, run: str, images: Images, *, polarity: Polarity, shard_size: int) -> PredictionPlan:
    """Returns the plan of a prediction.

    Raises:
      CheckpointError: no such run, not finished, or damaged.
      ConfigError: a polarity that can't be compared with the run's, or the code of its own network is not given.
      StorageError: the storage can't be read.
    """
    checkpoint = RunFolder(storage, run).best()
    check_code(checkpoint.config, f"run {run!r}")
    inversion = _inversion(polarity, checkpoint)
    shard_size = min(shard_size, max(MOST_BYTES // prod(checkpoint.image_shape), 1))
    return PredictionPlan(checkpoint, images.uri, images.kind, polarity, inversion, shard_size, code_version())


def _inversion(polarity: Polarity, checkpoint: Checkpoint) -> Inversion:
    if checkpoint.image_shape.channels == 1:
        return choose_inversion(polarity, checkpoint.document.get("bright_ground_share"), checkpoint.run)
    if polarity in ("auto", "as-trained"):
        return "none"
    raise ConfigError(
        f"polarity={polarity!r}: run {checkpoint.run!r} takes images in colour, which have no polarity; leave it out"
    )


def is_small_noticed(checkpoint: Checkpoint) -> bool:
    """Tells whether ink that fills less than MIN_EXTENT of the frame is unlike a run's training images.

    It is for the grey sets by name. Of one's own images nothing says how much of the frame they fill.
    """
    return checkpoint.config.dataset in DATASETS and checkpoint.image_shape.channels == 1


@dataclass(frozen=True)
class Summary:
    """Facts about the images of a shard, or of a whole prediction; those of consecutive shards add up with +.

    Attributes:
      num_images: predicted images.
      num_errors: unreadable images.
      num_inverted, num_converted: predicted images that were inverted; that had another size or colours.
      num_wide: predicted images of more than 8 bits.
      num_small: predicted images in which the ink fills little of the frame; see `is_small_noticed`.
      num_one_shade, first_one_shade: number of predicted images that became one shade; location of the first few.
      num_labelled: predicted images whose folder, or column label, names a class.
      num_correct: predicted images whose label was predicted.
      first_unlabelled: location of the first predicted image without such a label; None if all have one.
      has_label_column: whether some images come from a Parquet file with a column label.
      predicted: predicted class, as its name -> number of images.
    """

    num_images: int = 0
    num_errors: int = 0
    num_inverted: int = 0
    num_converted: int = 0
    num_wide: int = 0
    num_small: int = 0
    num_one_shade: int = 0
    num_labelled: int = 0
    num_correct: int = 0
    first_one_shade: tuple[str, ...] = ()
    first_unlabelled: str | None = None
    has_label_column: bool = False
    predicted: Counter[str] = field(default_factory=Counter)

    @property
    def counts(self) -> dict[str, int]:
        """The numbers of images by name."""
        return {name: value for name, value in vars(self).items() if name.startswith("num_")}

    @property
    def accuracy(self) -> float | None:
        """Share of the predicted images whose label was predicted; None unless all are labelled."""
        return self.num_correct / self.num_images if 0 < self.num_images == self.num_labelled else None

    def facts(self) -> dict[str, float | None]:
        """Returns what is recorded of a prediction: the numbers of images, and the accuracy instead of num_correct."""
        facts: dict[str, float | None] = {**self.counts, "accuracy": self.accuracy}
        del facts["num_correct"]
        return facts

    def __add__(self, other: "Summary") -> "Summary":
        return Summary(
            **{name: count + other.counts[name] for name, count in self.counts.items()},
            first_one_shade=(self.first_one_shade + other.first_one_shade)[:MAX_NAMES_SAID],
            first_unlabelled=other.first_unlabelled if self.first_unlabelled is None else self.first_unlabelled,
            has_label_column=self.has_label_column or other.has_label_column,
            predicted=self.predicted + other.predicted,
        )


@dataclass(frozen=True)
class ShardPrediction:
    """Result of predicting a shard.

    Attributes:
      number: of the shard.
      file: part file of the predictions; empty if no image could be read.
      summary: facts about its images.
      errors: path, row and reason of each unreadable image.
    """

    number: int
    file: StoredFile
    summary: Summary
    errors: tuple[tuple[str, int | None, str], ...]


@dataclass(frozen=True)
class Answer:
    """The prediction for a single image.

    Attributes:
      row: its row of the table image_predictions.
      is_converted: whether it had another size or colours.
      is_small: whether the ink fills little of the frame; see `is_small_noticed`.
    """

    row: Mapping[str, Any]
    is_converted: bool
    is_small: bool


class Predictor:
    """A network on its device, ready for the images of any span.

    Args:
      plan: the prediction.
      device: where the network computes.

    Raises:
      CheckpointError: the weights don't fit the config.
    """

    def __init__(self, plan: PredictionPlan, *, device: torch.device) -> None:
        self._plan = plan
        self._device = device
        self._network = load_network(plan.checkpoint).to(device)
        self._labels = {name: label for label, name in enumerate(plan.checkpoint.class_names)}

    def predict_span(self, span: Span, pending: PendingFolder) -> Iterator[ShardPrediction]:
        """Predicts a span's images and stores the part files of its shards; the same span gives the same bytes.

        Raises:
          DataError: a Parquet or IDX file is damaged.
          StorageError: the images can't be read, or a part can't be written.
        """
        checkpoint = self._plan.checkpoint
        images_read = _counted_on(span.read(checkpoint.image_form, checkpoint.wide_bits))
        for number, images in enumerate(shards(images_read, self._plan.shard_size), start=span.first_shard):
            yield self._predict_shard(number, images, pending)

    def answer(self, image: ReadImages) -> Answer:
        """Predicts one image.

        Raises:
          DataError: the image can't be read.
        """
        if image.error is not None:
            raise DataError(f"images={self._plan.images}: no readable image: {image.error}")
        if image.one_shade is not None:
            raise all_one_shade(
                f"images={self._plan.images}", self._plan.checkpoint.image_form, [printable(image.path)], 1
            )
        table = make_table(_TABLE, self._columns([image]), code_version=self._plan.code_version)
        (row,) = table.to_pylist()
        return Answer(row, image.is_converted, self._num_small([image]) > 0)

    def _predict_shard(self, number: int, images: Sequence[ReadImages], pending: PendingFolder) -> ShardPrediction:
        readable = [some for some in images if some.error is None]
        columns = self._columns(readable)
        labels = columns["label"]
        places = zip(columns["path"], columns["row"], labels, strict=True)
        unlabelled = (_place(path, row) for path, row, label in places if label is None)
        one_shade = [name for some in readable for name in _one_shade(some)]
        errors = tuple((_text(some.path), some.row, some.error) for some in images if some.error is not None)
        summary = Summary(
            num_images=len(labels),
            num_errors=len(errors),
            num_inverted=int(columns["inverted"].sum()),
            num_converted=sum(len(some) for some in readable if some.is_converted),
            num_wide=sum(len(some) for some in readable if some.is_wide),
            num_small=self._num_small(readable),
            num_one_shade=len(one_shade),
            num_labelled=len(labels) - labels.count(None),
            num_correct=sum(map(operator.eq, labels, columns["predicted_label"].tolist())),
            first_one_shade=tuple(one_shade[:MAX_NAMES_SAID]),
            first_unlabelled=next(unlabelled, None),
            has_label_column=any(some.labels is not None for some in images),
            predicted=Counter(columns["predicted_label_name"].tolist()),
        )
        content = self._plan.parquet(_TABLE, columns)
        return ShardPrediction(number, pending.write(part_of_shard(_TABLE, number), content), summary, errors)

    def _columns(self, images: Sequence[ReadImages]) -> dict[str, Any]:
        """Returns the columns of image_predictions of readable images."""
        predicted, inverted = self._predict(images)
        names = np.asarray(self._plan.checkpoint.class_names, dtype=object)
        return {
            "run": self._plan.checkpoint.run,
            "path": [path for some in images for path in [some.path] * len(some)],
            "row": [row for some in images for row in some.rows],
            "label": [label for some in images for label in self._labels_of(some)],
            "predicted_label": predicted.predicted_label,
            "predicted_label_name": names[predicted.predicted_label],
            "confidence": predicted.confidence,
            "inverted": inverted,
            "probabilities": predicted.probabilities,
        }

    def _num_small(self, images: Sequence[ReadImages]) -> int:
        """Returns the number of readable images in which the ink fills little of the frame."""
        if not images or not is_small_noticed(self._plan.checkpoint):
            return 0
        return int((ink_extent(self._pixels(images)[:, 0]) < MIN_EXTENT).sum())

    def _pixels(self, images: Sequence[ReadImages]) -> "np.ndarray[Any, np.dtype[np.uint8]]":
        """Returns a copy of the pixels of readable images, uint8 [n, channels, rows, columns]."""
        shape = self._plan.checkpoint.image_shape
        return np.concatenate([np.empty((0, *shape), dtype=np.uint8), *(some.pixels for some in images)])

    def _labels_of(self, images: ReadImages) -> Sequence[int | None]:
        if images.labels is not None:
            return [None if name is None else self._labels.get(name) for name in images.labels]
        # Only in a folder of images do folder names name the classes.
        folder, slash, _ = images.path.partition("/")
        is_named = bool(slash) and self._plan.kind == "folder"
        return [self._labels.get(folder) if is_named else None] * len(images)

    def _predict(self, images: Sequence[ReadImages]) -> tuple[Predictions, "np.ndarray[Any, np.dtype[np.bool_]]"]:
        """Returns the predictions for readable images, inverted where needed, and what was inverted, bool [n]."""
        pixels = self._pixels(images)
        inverted = np.zeros(len(pixels), dtype=np.bool_)
        if self._plan.inversion != "none":
            inverted = to_be_inverted(pixels[:, 0], self._plan.inversion)
            np.subtract(255, pixels, out=pixels, where=inverted[:, None, None, None])
        (scores,) = log_probabilities(
            [self._network],
            torch.from_numpy(pixels),
            normalizations=[self._plan.checkpoint.normalization],
            batch_size=_BATCH_SIZE,
            device=self._device,
        )
        # There are no labels; results that depend on these zeros are ignored.
        return predictions(scores, torch.zeros(len(pixels), dtype=torch.int64)), inverted


def _counted_on(images: Iterable[ReadImages]) -> Iterator[ReadImages]:
    for some in images:
        yield some
        count_on(PREDICTED, len(some))


def answer_image(plan: PredictionPlan, images: Images) -> Answer:
    """Predicts a single image, of kind "image", in this process.

    Raises:
      DataError: the image can't be read.
      StorageError: the storage can't be read.
    """
    (span,) = images.spans(1)
    (image,) = span.read(plan.checkpoint.image_form, plan.checkpoint.wide_bits)
    return Predictor(plan, device=choose_device(use_gpu=False)).answer(image)


def _one_shade(images: ReadImages) -> list[str]:
    """Returns the locations of images that became one shade."""
    places = [] if images.one_shade is None else images.one_shade.nonzero()[0].tolist()
    rows = (images.rows[place] for place in places)
    return [_place(images.path, row) for row in rows]


def _place(path: str, row: int | None) -> str:
    return printable(path) if row is None else f"row {row} of {printable(path)}"


def _text(name: str) -> str:
    """Returns a file's name as valid Unicode, whatever bytes it has."""
    return name.encode("utf-8", "backslashreplace").decode()
