"""Predicts the user's own images, shard by shard, and commits the tables in one step; does not import Ray."""

import hashlib
import itertools
import json
import operator
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch

from mnist_ray.data.decoded_images import all_one_shade
from mnist_ray.data.image_spans import ReadImages, Span, shards
from mnist_ray.data.polarity import Inversion, Polarity, choose_inversion, to_be_inverted
from mnist_ray.data.sources import MAX_NAMES_SAID
from mnist_ray.data.unlabelled import Images
from mnist_ray.errors import ConflictError, DataError
from mnist_ray.evaluation.inference import load_network, log_probabilities
from mnist_ray.evaluation.metrics import Predictions, predictions
from mnist_ray.models.device import choose_device
from mnist_ray.results import parquet
from mnist_ray.results.code_version import code_version
from mnist_ray.results.paths import prediction_path
from mnist_ray.results.run_folder import Checkpoint, RunFolder
from mnist_ray.storage.storage import PendingFolder, Storage, StoredFile
from mnist_ray.text.escape import printable

SHARD_SIZE = 4096
_BATCH_SIZE = 1024


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

    @property
    def wide_bits(self) -> int | None:
        """Bit depth that training images of more than 8 bits were scaled from; None if none had, or if unrecorded."""
        return cast(int | None, self.checkpoint.document.get("wide_bits"))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the network's outputs."""
        return tuple(self.checkpoint.document["class_names"])

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
            "class_names": list(self.class_names),
            "code_version": self.code_version,
        }


@dataclass(frozen=True)
class ShardPrediction:
    """Result of predicting a shard.

    Attributes:
      number: of the shard.
      file: part file of the predictions; empty if no image could be read.
      num_images: images that could be read.
      num_inverted, num_converted: readable images that were inverted; that had another size or colours.
      num_wide: readable images of more than 8 bits.
      num_one_shade, first_one_shade: number of readable images that became one shade; location of the first few.
      num_labelled, num_correct: readable images with a label; whose label was predicted.
      has_label_column: whether some images come from a Parquet file with a column label.
      first_unlabelled: location of the first readable image without a label; None if all have one.
      errors: path, row and reason of each unreadable image.
    """

    number: int
    file: StoredFile
    num_images: int
    num_inverted: int
    num_converted: int
    num_wide: int
    num_one_shade: int
    first_one_shade: tuple[str, ...]
    num_labelled: int
    num_correct: int
    has_label_column: bool
    first_unlabelled: str | None
    errors: tuple[tuple[str, int | None, str], ...]


@dataclass(frozen=True)
class Answer:
    """The prediction for a single image.

    Attributes:
      label_name: the most probable class.
      probabilities: class name -> probability.
      inverted: whether the image was inverted.
      is_converted: whether it had another size or colours.
    """

    label_name: str
    probabilities: dict[str, float]
    inverted: bool
    is_converted: bool


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
        self._labels = {name: label for label, name in enumerate(plan.class_names)}

    def predict_span(self, span: Span, pending: PendingFolder) -> Iterator[ShardPrediction]:
        """Predicts a span's images and stores the part files of its shards; the same span gives the same bytes.

        Raises:
          DataError: a Parquet or IDX file is damaged.
          StorageError: the images can't be read, or a part can't be written.
        """
        for number, images in enumerate(
            shards(span.read(self._plan.wide_bits), self._plan.shard_size), start=span.first_shard
        ):
            yield self._predict_shard(number, images, pending)

    def answer(self, image: ReadImages) -> Answer:
        """Predicts one image.

        Raises:
          DataError: the image can't be read.
        """
        if image.error is not None:
            raise DataError(f"images={self._plan.images}: no readable image: {image.error}")
        if image.one_shade is not None:
            raise all_one_shade(f"images={self._plan.images}", [printable(image.path)], 1)
        predicted, inverted = self._predict(_joined([image]))
        names = self._plan.class_names
        probabilities = dict(zip(names, map(float, predicted.probabilities[0]), strict=True))
        return Answer(names[predicted.predicted_label[0]], probabilities, bool(inverted[0]), image.is_converted)

    def _predict_shard(self, number: int, images: Sequence[ReadImages], pending: PendingFolder) -> ShardPrediction:
        readable = [some for some in images if some.error is None]
        predicted, inverted = self._predict(_joined(readable))
        names = np.asarray(self._plan.class_names, dtype=object)
        paths = [path for some in readable for path in [some.path] * len(some)]
        labels = [label for some in readable for label in self._labels_of(some)]
        rows = [row for some in readable for row in some.rows]
        unlabelled = (_place(path, row) for path, row, label in zip(paths, rows, labels, strict=True) if label is None)
        one_shade = [name for some in readable for name in _one_shade(some)]
        columns = {
            "run": self._plan.checkpoint.run,
            "path": paths,
            "row": rows,
            "label": labels,
            "predicted_label": predicted.predicted_label,
            "predicted_label_name": names[predicted.predicted_label],
            "confidence": predicted.confidence,
            "inverted": inverted,
            "probabilities": predicted.probabilities,
        }
        return ShardPrediction(
            number=number,
            file=pending.write(f"predictions-{number:05d}.parquet", _parquet(self._plan, "image_predictions", columns)),
            num_images=len(inverted),
            num_inverted=int(inverted.sum()),
            num_converted=sum(len(some) for some in readable if some.is_converted),
            num_wide=sum(len(some) for some in readable if some.is_wide),
            num_one_shade=len(one_shade),
            first_one_shade=tuple(one_shade[:MAX_NAMES_SAID]),
            num_labelled=len(labels) - labels.count(None),
            num_correct=sum(map(operator.eq, labels, predicted.predicted_label.tolist())),
            has_label_column=any(some.labels is not None for some in images),
            first_unlabelled=next(unlabelled, None),
            errors=tuple((_text(some.path), some.row, some.error) for some in images if some.error is not None),
        )

    def _labels_of(self, images: ReadImages) -> Sequence[int | None]:
        if images.labels is not None:
            return [None if name is None else self._labels.get(name) for name in images.labels]
        # Only in a folder of images do folder names name the classes.
        folder, slash, _ = images.path.partition("/")
        is_named = bool(slash) and self._plan.kind == "folder"
        return [self._labels.get(folder) if is_named else None] * len(images)

    def _predict(self, grey: "np.ndarray[Any, np.dtype[np.uint8]]") -> tuple[Predictions, Any]:
        """Inverts uint8 [n, 28, 28] in place where needed; returns the predictions and what was inverted, bool [n]."""
        normalization = self._plan.checkpoint.document["normalization"]
        inverted = to_be_inverted(grey, self._plan.inversion)
        np.subtract(255, grey, out=grey, where=inverted[:, None, None])
        images = torch.from_numpy(grey).unsqueeze(1)
        (scores,) = log_probabilities(
            [self._network],
            images,
            normalizations=[(normalization["mean"], normalization["std"])],
            batch_size=_BATCH_SIZE,
            device=self._device,
        )
        # There are no labels; results that depend on these zeros are ignored.
        return predictions(scores, torch.zeros(len(images), dtype=torch.int64)), inverted


def _joined(images: Sequence[ReadImages]) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    grey = [some.grey for some in images if some.grey is not None]
    return np.concatenate(grey) if grey else np.empty((0, 28, 28), dtype=np.uint8)


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


def _parquet(plan: PredictionPlan, name: str, columns: Mapping[str, Any]) -> bytes:
    table = parquet.make_table(name, columns, code_version=plan.code_version, num_classes=len(plan.class_names))
    return parquet.to_parquet_bytes(table)


@dataclass(frozen=True)
class Totals:
    """Sums over the shards of a prediction.

    Attributes:
      num_images: predicted images.
      num_errors: unreadable images.
      num_inverted, num_converted: predicted images that were inverted; that had another size or colours.
      num_wide: predicted images of more than 8 bits.
      num_one_shade: predicted images that became one shade.
      num_labelled: predicted images whose folder, or column label, names a class.
      accuracy: share of predicted images whose label was predicted; None unless all are labelled.
    """

    num_images: int
    num_errors: int
    num_inverted: int
    num_converted: int
    num_wide: int
    num_one_shade: int
    num_labelled: int
    accuracy: float | None


@dataclass(frozen=True)
class Committed:
    """A committed prediction.

    Attributes:
      name: of its folder in predictions/.
      uri: of the folder.
      already_done: whether the same prediction already existed.
      totals: its counts.
      first_error: the first unreadable image, and why; None if there is none.
      has_label_column: whether some images come from a Parquet file with a column label.
      first_unlabelled: location of the first predicted image without a label that names a class; None if there is none.
      first_one_shade: locations of the first few images that became one shade.
    """

    name: str
    uri: str
    already_done: bool
    totals: Totals
    first_error: str | None
    has_label_column: bool
    first_unlabelled: str | None
    first_one_shade: tuple[str, ...]


def make_plan(
    storage: Storage, run: str, images: Images, *, polarity: Polarity, shard_size: int = SHARD_SIZE
) -> PredictionPlan:
    """Returns the plan of a prediction.

    Raises:
      CheckpointError: no such run, not finished, or damaged.
      ConfigError: a polarity that can't be compared with the run's.
      StorageError: the storage can't be read.
    """
    checkpoint = RunFolder(storage, run).best()
    inversion = choose_inversion(polarity, checkpoint.document.get("bright_ground_share"), run)
    return PredictionPlan(checkpoint, images.uri, images.kind, polarity, inversion, shard_size, code_version())


def gather(shards: Iterable[ShardPrediction], *, images: str, strict: bool) -> list[ShardPrediction]:
    """Returns all shards.

    Args:
      shards: in order.
      images: path or URI of the images, for the message.
      strict: whether to stop at the first shard with an unreadable image.

    Raises:
      DataError: an image is unreadable, and `strict` is set.
    """
    gathered = []
    for shard in shards:
        if strict and shard.errors:
            count = shard.num_images + len(shard.errors)
            raise DataError(
                f"images={images}: {len(shard.errors)} of the first {count} images of shard {shard.number} cannot be "
                f"read, the first is {_error_text(shard.errors[0])}; repair or remove them, or leave out --strict"
            )
        gathered.append(shard)
    return gathered


def check_name_is_free(storage: Storage, name: str, plan: PredictionPlan) -> None:
    """Checks, before any image is read, that a name doesn't belong to another prediction.

    Raises:
      ConflictError: it does.
    """
    manifest = storage.read_manifest(prediction_path(name))
    if manifest is None:
        return
    for key, wanted in plan.facts().items():
        if manifest.get(key) != wanted:
            raise ConflictError(
                f"predictions {name!r}: exist with another {key} ({_short(manifest.get(key))} there, {_short(wanted)} "
                "here); choose another --name"
            )


def commit(
    plan: PredictionPlan, shards: Sequence[ShardPrediction], pending: PendingFolder, *, name: str | None
) -> Committed:
    """Stores errors.parquet and makes the folder visible.

    Args:
      plan: the prediction.
      shards: all of them, in order.
      pending: the folder that holds their parts, at any path.
      name: of the final folder; None to make it from the run, the images' URI and a hash of all content.

    Raises:
      DataError: all images became one shade.
      ConflictError: the name exists with other content.
      StorageError: the storage can't be written.
    """
    errors = [error for shard in shards for error in shard.errors]
    columns = {name: [error[place] for error in errors] for place, name in enumerate(("path", "row", "error"))}
    columns["run"] = [plan.checkpoint.run] * len(errors)
    files = [shard.file for shard in shards]
    files.append(pending.write("errors.parquet", _parquet(plan, "image_errors", columns)))
    totals = _totals(shards)
    one_shade = tuple(itertools.islice((name for shard in shards for name in shard.first_one_shade), MAX_NAMES_SAID))
    if totals.num_one_shade == totals.num_images > 0:
        raise all_one_shade(f"images={plan.images}", one_shade, totals.num_images)
    content = {**plan.facts(), "sha256": {file.name: file.sha256 for file in files}}
    content_hash = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    chosen = name or f"{plan.checkpoint.run}-{_stem(plan.images)}-{content_hash[:12]}"
    manifest = {"predictions": chosen, "content_hash": content_hash, **plan.facts(), **vars(totals)}
    final = replace(pending, path=prediction_path(chosen))
    committed = final.commit(files, manifest)
    first_error = _error_text(errors[0]) if errors else None
    first_unlabelled = next((shard.first_unlabelled for shard in shards if shard.first_unlabelled is not None), None)
    uri = pending.storage.uri_of(final.path)
    has_label_column = any(shard.has_label_column for shard in shards)
    return Committed(chosen, uri, not committed, totals, first_error, has_label_column, first_unlabelled, one_shade)


def _totals(shards: Sequence[ShardPrediction]) -> Totals:
    num_images = sum(shard.num_images for shard in shards)
    num_labelled = sum(shard.num_labelled for shard in shards)
    num_correct = sum(shard.num_correct for shard in shards)
    return Totals(
        num_images=num_images,
        num_errors=sum(len(shard.errors) for shard in shards),
        num_inverted=sum(shard.num_inverted for shard in shards),
        num_converted=sum(shard.num_converted for shard in shards),
        num_wide=sum(shard.num_wide for shard in shards),
        num_one_shade=sum(shard.num_one_shade for shard in shards),
        num_labelled=num_labelled,
        accuracy=num_correct / num_images if num_images and num_labelled == num_images else None,
    )


def answer_image(plan: PredictionPlan, images: Images) -> Answer:
    """Predicts a single image, of kind "image", in this process.

    Raises:
      DataError: the image can't be read.
      StorageError: the storage can't be read.
    """
    (span,) = images.spans(1)
    (image,) = span.read(plan.wide_bits)
    return Predictor(plan, device=choose_device(use_gpu=False)).answer(image)


def _stem(uri: str) -> str:
    """Returns the last part of a URI, reduced to characters allowed in a folder's name."""
    name = uri.rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9]+", "-", name.partition(".")[0]).strip("-")[:24] or "images"


def _error_text(error: tuple[str, int | None, str]) -> str:
    path, row, reason = error
    return f"{path} ({reason})" if row is None else f"row {row} of {path} ({reason})"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
