"""Trains a run again in a temporary storage and compares the results."""

import tempfile
from pathlib import Path

import torch

from mnist_ray.cluster.train_job import TrainJob
from mnist_ray.config.own_code import check_code
from mnist_ray.errors import ConflictError
from mnist_ray.jobs.train import train
from mnist_ray.results.reproduction import Reproduction, compare_trainings
from mnist_ray.results.run_folder import RunFolder
from mnist_ray.storage.storage import open_storage
from mnist_ray.training.data import load_data


def reproduce(run: str, storage_uri: str, data_dir: Path, *, num_workers: int | None = None) -> Reproduction:
    """Trains a run again into a temporary folder and compares both; only reads the storage.

    Args:
      run: name of a run that has a best checkpoint.
      storage_uri: URI of the run's storage.
      data_dir: folder of the data sets.
      num_workers: processes that share every batch; None for the run's own number.

    Raises:
      CheckpointError: the run is missing, unfinished or damaged.
      ConflictError: the data set differs from the one that the run was trained on.
      MnistRayError: as train.
    """
    original = RunFolder(open_storage(storage_uri), run)
    then = original.best()
    check_code(then.config, f"run {run!r}")
    data = load_data(then.data_config, data_dir, torch.device("cpu"))
    expected = str(then.document["data_sha256"])
    if data.fingerprint != expected:
        raise ConflictError(
            f"run {run!r}: was trained on other data ({then.config.dataset!r} was {expected[:12]}, is "
            f"{data.fingerprint[:12]}); give the data set as it was, with --data-dir if it lies elsewhere"
        )
    workers = num_workers or int(then.document["lineage"]["num_workers"])
    with tempfile.TemporaryDirectory(prefix="mnist-ray-reproduce-") as scratch:
        # A run that ended early has fewer epochs than its config.
        job = TrainJob(
            then.config, run, scratch, data_dir, workers, last_epoch=len(then.history), data_config=then.data_config
        )
        train(job, data)
        again = RunFolder(open_storage(scratch), run)
        return compare_trainings(then, again.best(), num_validation=len(data.validation_labels))
