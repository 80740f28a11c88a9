"""The folder of a prediction: collects its shards and commits their tables in one step."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from mnist_ray.config.names import place_name
from mnist_ray.data.decoded_images import all_one_shade
from mnist_ray.errors import ConflictError, DataError
from mnist_ray.evaluation.predict import PredictionPlan, ShardPrediction, Summary
from mnist_ray.results.paths import part_path, prediction_path
from mnist_ray.storage.storage import PendingFolder, Storage


@dataclass(frozen=True)
class Committed:
    """A committed prediction.

    Attributes:
      name: of its folder in predictions/.
      uri: of the folder.
      already_done: whether the same prediction already existed.
      summary: facts about its images.
      first_error: the first unreadable image, and why; None if there is none.
    """

    name: str
    uri: str
    already_done: bool
    summary: Summary
    first_error: str | None


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
            count = shard.summary.num_images + len(shard.errors)
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
    """Stores the table image_errors and makes the folder visible.

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
    files.append(pending.write(part_path("image_errors"), plan.parquet("image_errors", columns)))
    summary = sum((shard.summary for shard in shards), start=Summary())
    if summary.num_one_shade == summary.num_images > 0:
        raise all_one_shade(
            f"images={plan.images}", plan.checkpoint.image_form, summary.first_one_shade, summary.num_images
        )
    content = {**plan.facts(), "sha256": {file.name: file.sha256 for file in files}}
    content_hash = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    chosen = name or f"{plan.checkpoint.run}-{place_name(plan.images)}-{content_hash[:12]}"
    manifest = {"predictions": chosen, "content_hash": content_hash, **plan.facts(), **summary.facts()}
    final = replace(pending, path=prediction_path(chosen))
    committed = final.commit(files, manifest)
    first_error = _error_text(errors[0]) if errors else None
    return Committed(chosen, pending.storage.uri_of(final.path), not committed, summary, first_error)


def _error_text(error: tuple[str, int | None, str]) -> str:
    path, row, reason = error
    return f"{path} ({reason})" if row is None else f"row {row} of {path} ({reason})"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
