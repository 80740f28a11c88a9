"""The JSON documents of a run, each with its own SHA-256; does not import torch, so listing runs is fast."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from mnist_ray.config.settings import TrainConfig, make_config
from mnist_ray.errors import CheckpointError, ConfigError
from mnist_ray.results.checkpoint_document import CheckpointDocument, RunDocument, broken_rule
from mnist_ray.results.kinds import RUN, not_there, remains
from mnist_ray.results.paths import run_path
from mnist_ray.storage.failures import NotAnObjectError
from mnist_ray.storage.storage import MissingError, Storage


class DamagedCheckpoint(CheckpointError):
    """A file is missing or differs from what was written."""


def json_bytes(document: Mapping[str, Any]) -> bytes:
    """Returns the canonical text of a document."""
    return (json.dumps(document, indent=1, sort_keys=True) + "\n").encode()


def with_checksum(document: Mapping[str, Any]) -> bytes:
    """Returns a document's text, including its SHA-256."""
    return json_bytes({**document, "document_sha256": hashlib.sha256(json_bytes(document)).hexdigest()})


def checked_document(text: bytes, source: str, kind: type[RunDocument]) -> dict[str, Any]:
    """Returns a document that with_checksum wrote.

    Raises:
      DamagedCheckpoint: the text changed: a document defines a run, so no byte may change unnoticed.
      CheckpointError: a value that mnist-ray never wrote.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpoint(f"{source} is damaged ({type(error).__name__})") from None
    expected = document.pop("document_sha256", None) if isinstance(document, dict) else None
    if expected is None or hashlib.sha256(json_bytes(document)).hexdigest() != expected:
        raise DamagedCheckpoint(f"{source} is damaged: its own SHA-256 differs")
    if (rule := broken_rule(kind, document)) is not None:
        raise CheckpointError(f"{source} was not written by mnist-ray ({rule}); copy or train the run again")
    return dict(document)


def read_run_document(storage: Storage, run: str) -> dict[str, Any]:
    """Returns a run's config.json.

    Raises:
      CheckpointError: no such run, or damaged.
    """
    try:
        text = storage.read_bytes(run_path(run, "config.json"))
        return checked_document(text, f"run {run!r}: config.json", RunDocument)
    except NotAnObjectError as error:
        raise CheckpointError(f"run {run!r}: {error}; remove it and copy the run again") from None
    except MissingError:
        raise CheckpointError(remains(storage, RUN, run) or not_there(storage, RUN, run)) from None


def read_checkpoint_document(storage: Storage, run: str, folder: str) -> dict[str, Any]:
    """Returns a checkpoint.json, after checking that it was written for this run and its config.

    Args:
      folder: of the checkpoint, in the run's.

    Raises:
      CheckpointError: no such run, or the checkpoint belongs to another one.
    """
    of_run, source = read_run_document(storage, run), f"run {run!r}: {folder}/checkpoint.json"
    try:
        text = storage.read_bytes(run_path(run, folder, "checkpoint.json"))
    except MissingError as error:
        raise DamagedCheckpoint(f"{source}: {error}") from None
    document = checked_document(text, source, CheckpointDocument)
    if "fit" not in of_run["config"]:
        # The run began when all images became 28x28 grey, stretched, and goes on so.
        document.pop("image_shape", None)
    differs = [key for key in ("run", "data_sha256") if document[key] != of_run[key]]
    config, made_for = config_in(of_run, f"run {run!r}: config.json"), config_in(document, source)
    # A run that was given more epochs keeps the checkpoints of those before.
    if made_for != config and (folder == "best" or not config.continues(made_for)):
        differs.append("config")
    if differs:
        raise CheckpointError(f"{source} belongs to another run than config.json ({differs[0]})")
    return document


def config_in(document: Mapping[str, Any], source: str) -> TrainConfig:
    """Returns the config in a document, with defaults for settings that are newer than the run.

    Raises:
      CheckpointError: this version refuses a setting.
    """
    try:
        return make_config(TrainConfig, document["config"], source)
    except ConfigError as error:
        raise CheckpointError(f"{error} (in this version)") from None


def code_change(existing: TrainConfig, wanted: TrainConfig) -> str:
    """Returns in words that the code of a run's own network has changed."""
    then, now = (str(config.code_sha256)[:12] for config in (existing, wanted))
    return f"the code of its network {wanted.model} has changed: SHA-256 {then} there, {now} here"


def first_difference(existing: TrainConfig, wanted: TrainConfig) -> str:
    """Returns in words the first setting in which two configs that differ do so."""
    there, here = existing.model_dump(mode="json"), wanted.model_dump(mode="json")
    if wanted.differs_in_length(existing) and wanted.epochs < existing.epochs:
        return (
            f"epochs={existing.epochs} there, {wanted.epochs} here: a run never loses epochs; "
            f"--epochs {existing.epochs} goes on with it"
        )
    if wanted.differs_in_length(existing) and wanted.has_schedule_of_length:
        return (
            f"epochs={existing.epochs} there, {wanted.epochs} here: with schedule={wanted.schedule}, which ends with "
            "the last epoch, more epochs are another run from the start"
        )
    if there == {**here, "code_sha256": there["code_sha256"]}:
        return code_change(existing, wanted)
    name = next(name for name, value in here.items() if there[name] != value)
    return f"{name}={there[name]!r} there, {here[name]!r} here"
