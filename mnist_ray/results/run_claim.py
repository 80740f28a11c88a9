"""The right to a run's name: of the first config that takes it, and of the same config with more epochs."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from mnist_ray.config.settings import TrainConfig
from mnist_ray.data.training_data import TrainingData
from mnist_ray.errors import CheckpointError, ConflictError
from mnist_ray.results.checkpoint_document import CheckpointDocument
from mnist_ray.results.checkpoint_folder import latest_state
from mnist_ray.results.history import EpochResult
from mnist_ray.results.kinds import RUN, remains
from mnist_ray.results.paths import LOGGED, run_path
from mnist_ray.results.run_documents import (
    DamagedCheckpoint,
    checked_document,
    config_in,
    first_difference,
    read_run_document,
    with_checksum,
)
from mnist_ray.results.run_progress import read_history
from mnist_ray.storage.storage import MissingError, Storage
from mnist_ray.text.sizes import count_text


def claim(storage: Storage, run: str, config: TrainConfig, data: TrainingData, *, resume: bool) -> None:
    """Claims a run's name for a config and data, or goes on with the run that has it, for more epochs if so asked.

    A finished run that gets more epochs is unfinished until it has trained them.

    Raises:
      ConflictError: see check_claim; or remains of another run have the name.
    """
    document = {
        "run": run,
        "config": config.model_dump(mode="json"),
        "config_hash": config.config_hash(),
        "data_sha256": data.fingerprint,
        "begun_at": datetime.now(UTC).isoformat(),
    }
    if left := remains(storage, RUN, run):
        raise ConflictError(left)
    if storage.create_bytes(run_path(run, "config.json"), with_checksum(document)):
        return
    existing = check_claim(storage, run, config, data, resume=resume)
    if _config_in(run, existing) == config and not _is_of_fewer_epochs(storage, run, config):
        return
    # Killed here, it is an unfinished run of the old config.
    storage.delete_folder(run_path(run, "best"), first=("checkpoint.json",))
    # A tracker's run ends once.
    storage.delete_folder(run_path(run, LOGGED))
    longer = {name: document[name] for name in ("config", "config_hash")}
    storage.write_bytes(run_path(run, "config.json"), with_checksum(existing | longer))


def check_claim(storage: Storage, run: str, config: TrainConfig, data: TrainingData, *, resume: bool) -> dict[str, Any]:
    """Checks that a run, which exists, may go on with a config and data; writes nothing.

    Returns:
      Its config.json.

    Raises:
      ConflictError: the name belongs to another config or to other data, the run can't get more epochs, or `resume`
        is False.
      CheckpointError: the run is damaged.
    """
    existing = check_config(storage, run, config)
    check_data(run, existing, config, data)
    if not resume:
        raise ConflictError(f"run {run!r}: exists; leave out --no-resume to go on with it, or choose another --name")
    return existing


def check_data(run: str, existing: Mapping[str, Any], config: TrainConfig, data: TrainingData) -> None:
    """Checks that a run was claimed for this data.

    Args:
      existing: its config.json.

    Raises:
      ConflictError: the name belongs to other data.
    """
    if existing["data_sha256"] != data.fingerprint:
        why = ""
        if ":" in config.dataset and "image_size" not in existing["config"]:
            why = (
                "; it began when all images of one's own became 28x28 grey, stretched, as "
                "--image-size 28 --color grey --fit stretch asks for"
            )
        raise ConflictError(
            f"run {run!r}: exists with other data ({existing['data_sha256'][:12]}, now "
            f"{data.fingerprint[:12]}{why}); choose another --name"
        )


def check_config(storage: Storage, run: str, config: TrainConfig) -> dict[str, Any]:
    """Checks that a run, which exists, has a config or may go on with it; see check_claim."""
    document = read_run_document(storage, run)
    # Don't compare hashes: an older version may have computed them differently.
    existing = _config_in(run, document)
    if existing == config:
        return document
    if existing.dataset != config.dataset:
        raise ConflictError(
            f"run {run!r}: the name is taken by a run on another data set ({existing.dataset} there, {config.dataset} "
            "here); choose another with --name"
        )
    if not config.continues(existing):
        raise ConflictError(
            f"run {run!r}: exists with another config ({first_difference(existing, config)}); choose another --name"
        )
    more = f"run {run!r}: has {count_text(existing.epochs, 'epoch')} and can't go on to {config.epochs}"
    if run.endswith(f"-s{existing.seed}-{existing.config_hash()[:10]}"):
        raise ConflictError(f"{more}: it is a run of a grid, named after its config; choose another --name")
    is_finished = storage.exists(run_path(run, "best", "checkpoint.json"))
    if is_finished and complete_history(storage, run) is None:
        raise ConflictError(f"{more}: its last checkpoint was pruned, or is damaged; choose another --name")
    return document


def complete_history(storage: Storage, run: str) -> tuple[EpochResult, ...] | None:
    """Returns a run's epochs if its newest checkpoint is whole and has all of them, else None."""
    try:
        state = latest_state(storage, run)
    except CheckpointError:
        return None
    return state.history if state and len(state.history) == len(read_history(storage, run)) else None


def _is_of_fewer_epochs(storage: Storage, run: str, config: TrainConfig) -> bool:
    """Tells whether a writer of the run with fewer epochs has created best/ after the run was given more."""
    source = run_path(run, "best", "checkpoint.json")
    try:
        document = checked_document(storage.read_bytes(source), source, CheckpointDocument)
    except (MissingError, DamagedCheckpoint):
        return False
    return config.continues(config_in(document, source))


def _config_in(run: str, document: Mapping[str, Any]) -> TrainConfig:
    return config_in(document, f"run {run!r}: config.json")
