"""The plan of an evaluation: what its shards have in common, and whether the checkpoints fit the data."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import prod
from typing import Any

import pyarrow as pa

from mnist_ray.config.names import dataset_name
from mnist_ray.config.settings import EvaluationConfig
from mnist_ray.data.datasets import DATASETS
from mnist_ray.data.examples import ExampleStream
from mnist_ray.data.image_shape import ImageForm
from mnist_ray.errors import CheckpointError
from mnist_ray.evaluation.inference import load_network
from mnist_ray.results.checkpoint_folder import Checkpoint
from mnist_ray.results.code_version import code_version
from mnist_ray.results.columns import SCHEMA_VERSION
from mnist_ray.results.history import timeless
from mnist_ray.results.parquet import make_table
from mnist_ray.results.schemas import TABLES
from mnist_ray.storage.uri import check_uri

# Of a default name: a list in 100 columns has room for it, a date and a range of accuracies.
_LONGEST_NAME = 69
# Per part file: 256 MB. A process holds a few times as many while it evaluates a shard.
_MOST_PROBABILITIES = 1 << 26
# Of the images that one part file is made from.
MOST_BYTES = 1 << 28


@dataclass(frozen=True)
class Plan:
    """What the shards of one evaluation have in common.

    Attributes:
      config: the evaluation's config, with a data set.
      checkpoints: the runs' best checkpoints, sorted by run.
      class_names: one per class.
      name: the evaluation's name.
      code_version: of the planning process; workers write it too, whatever version is on their disks.
      evaluated_at: when the evaluation began; None before it begins.
      fingerprints: of the split in each of the plan's forms; empty until all its images are read.
    """

    config: EvaluationConfig
    checkpoints: tuple[Checkpoint, ...]
    class_names: tuple[str, ...]
    name: str
    code_version: str
    evaluated_at: datetime | None = None
    fingerprints: tuple[str, ...] = ()

    @property
    def data_sha256(self) -> str | None:
        """Fingerprint of the split; None until all its images are read."""
        return fingerprint_of_forms(self.fingerprints) if self.fingerprints else None

    def dataset_ids(self) -> dict[str, str]:
        """Returns the fingerprint of each run's split, in the form that the run takes."""
        by_form = dict(zip(self.forms, self.fingerprints, strict=True))
        return {checkpoint.run: by_form[form_of(self.dataset, checkpoint)] for checkpoint in self.checkpoints}

    @property
    def dataset(self) -> str:
        """The data set that is evaluated."""
        assert self.config.dataset is not None
        return self.config.dataset

    @property
    def forms(self) -> tuple[ImageForm, ...]:
        """What the images become, one for each shape that the runs take, in the runs' order."""
        return forms_of(self.dataset, self.checkpoints)

    @property
    def shard_size(self) -> int:
        """Images per part file: as configured, or fewer if many classes and runs, or large images, would fill the
        memory."""
        most = min(
            _MOST_PROBABILITIES // (len(self.class_names) * len(self.runs)),
            MOST_BYTES // sum(prod(form.shape) for form in self.forms),
        )
        return min(self.config.shard_size, max(1, most))

    @property
    def runs(self) -> dict[str, str]:
        """SHA-256 of each run's weights."""
        return {checkpoint.run: checkpoint.sha256 for checkpoint in self.checkpoints}

    def table(self, name: str, columns: Mapping[str, Any]) -> pa.Table:
        """Returns an Arrow table of this evaluation; see make_table."""
        return make_table(name, columns, code_version=self.code_version)

    def facts(self, table: str) -> dict[str, Any]:
        """Returns the columns of a table that have one value in the whole evaluation.

        Where a row is of a run, dataset_id is not among them: see `dataset_ids`.
        """
        facts = {
            "evaluation": self.name,
            "dataset": self.dataset,
            "split": self.config.split,
            "dataset_id": self.data_sha256,
            "evaluated_at": self.evaluated_at,
        }
        names = TABLES[table].names
        return {name: facts[name] for name in names if name in facts and not (name == "dataset_id" and "run" in names)}

    @property
    def request_hash(self) -> str:
        """SHA-256 of what was asked: checkpoints, data set, split, sizes and code, but not the data's content."""
        return request_hash(self.config, self.checkpoints, self.code_version)


def make_plan(
    config: EvaluationConfig, checkpoints: Sequence[Checkpoint], examples: ExampleStream, *, name: str | None = None
) -> Plan:
    """Returns the plan of an evaluation of a split, before the split's fingerprint is known.

    Args:
      config: the evaluation's config.
      checkpoints: the runs' best checkpoints, checked by check_checkpoints.
      examples: the split, in any form.
      name: the evaluation's name; None to derive it from what is asked.
    """
    ordered, code = tuple(sorted(checkpoints, key=lambda checkpoint: checkpoint.run)), code_version()
    if name is None:
        which = config.grid or (ordered[0].run if len(ordered) == 1 else f"{len(ordered)}runs")
        asked = request_hash(config, ordered, code)[:8]
        ending = f"-on-{dataset_name(str(config.dataset))}-{config.split}-{asked}"
        name = f"{which[: _LONGEST_NAME - len(ending)]}{ending}"
    return Plan(config, ordered, examples.class_names, name, code)


def request_hash(config: EvaluationConfig, checkpoints: Sequence[Checkpoint], code: str) -> str:
    """Returns the SHA-256 of what an evaluation is asked for, see Plan.request_hash, in hexadecimal."""
    kind, colon, place = str(config.dataset).partition(":")
    # The same place, however it is written, and from whatever folder.
    asked = config.model_copy(update={"dataset": f"{kind}:{check_uri(place, kind)}"}) if colon else config
    content = {
        "checkpoints": [[checkpoint.run, checkpoint.sha256] for checkpoint in checkpoints],
        "config": asked.model_dump(mode="json"),
        "code_version": code,
        "curves": [timeless(checkpoint.history) for checkpoint in checkpoints],
        "lineage": [checkpoint.document["lineage"] for checkpoint in checkpoints],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_checkpoints(config: EvaluationConfig, checkpoints: Sequence[Checkpoint], examples: ExampleStream) -> None:
    """Checks that checkpoints fit the data, before any image is read.

    Raises:
      CheckpointError: a checkpoint has other classes than the data, takes images of another shape, or has weights that
        don't fit its config.
    """
    for checkpoint in checkpoints:
        names = checkpoint.class_names
        if names != examples.class_names:
            raise CheckpointError(
                f"run {checkpoint.run!r}: trained on {len(names)} classes ({_shortened(names)}), dataset="
                f"{config.dataset!r} has {len(examples.class_names)} ({_shortened(examples.class_names)})"
            )
        if config.dataset in DATASETS and checkpoint.image_shape != examples.image_shape:
            raise CheckpointError(
                f"run {checkpoint.run!r}: takes images of {checkpoint.image_shape.words}, those of dataset="
                f"{config.dataset!r} are {examples.image_shape.words}"
            )
        load_network(checkpoint)


def form_of(dataset: str, checkpoint: Checkpoint) -> ImageForm:
    """Returns what the images of a data set become for a run; those of named sets are never converted."""
    return ImageForm(checkpoint.image_shape) if dataset in DATASETS else checkpoint.image_form


def forms_of(dataset: str, checkpoints: Iterable[Checkpoint]) -> tuple[ImageForm, ...]:
    """Returns the distinct forms of some runs, in their order."""
    return tuple(dict.fromkeys(form_of(dataset, checkpoint) for checkpoint in checkpoints))


def trained_wide_bits(checkpoints: Sequence[Checkpoint]) -> int | None:
    """Returns the bit depth that training images of more than 8 bits were scaled from; None if no run recorded one.

    Raises:
      CheckpointError: runs differ, so the same images would have to be scaled in several ways.
    """
    noted = {checkpoint.wide_bits: checkpoint.run for checkpoint in checkpoints}
    noted.pop(None, None)
    if len(noted) > 1:
        runs = ", ".join(f"{run!r} from {bits} bits" for bits, run in sorted(noted.items()))
        raise CheckpointError(f"runs scaled their training images differently: {runs}; evaluate them one by one")
    return next(iter(noted), None)


def fingerprint_of_forms(fingerprints: Sequence[str]) -> str:
    """Returns a split's fingerprint: that of its only form, or the SHA-256 of those of all forms."""
    if len(fingerprints) == 1:
        return fingerprints[0]
    return hashlib.sha256("\n".join(fingerprints).encode()).hexdigest()


def manifest(plan: Plan, num_examples: int) -> dict[str, Any]:
    """Returns the manifest of the committed folder."""
    return {
        "evaluation": plan.name,
        "schema_version": SCHEMA_VERSION,
        "request_hash": plan.request_hash,
        "config": plan.config.model_dump(mode="json"),
        "data_sha256": plan.data_sha256,
        "num_examples": num_examples,
        "class_names": list(plan.class_names),
        "code_version": plan.code_version,
        "runs": plan.runs,
    }


def _shortened(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
