"""The runs of an evaluation: rows of its metrics table, extended from its learning curves."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mnist_ray.config.settings import DATA_SETTINGS
from mnist_ray.errors import CheckpointError
from mnist_ray.results.columns import column_of, with_own_settings
from mnist_ray.results.evaluation_folder import EvaluationFolder
from mnist_ray.results.run_documents import config_in, read_checkpoint_document
from mnist_ray.results.validation import Validation, validation_in
from mnist_ray.storage.manifest import REQUESTS_AT_ONCE
from mnist_ray.storage.storage import Storage


def evaluated_runs(folder: EvaluationFolder) -> list[dict[str, Any]]:
    """Returns the rows of an evaluation's metrics table, in the same order, with more columns.

    Returns:
      Rows with best_val_accuracy and best_val_loss of the evaluated epoch; num_train_images: training images of each
      epoch; was_stopped: whether something other than the run's own patience, such as the scheduler of a grid, ended it
      before its last epoch; and with those of with_own_settings.

    Raises:
      DataError: a table is damaged.
      StorageError: it can't be read.
    """
    curves = folder.rows("learning_curves")
    epochs = {(curve["run"], curve["epoch"]): curve for curve in curves}
    num_epochs = Counter(curve["run"] for curve in curves)
    runs = []
    for row in with_own_settings(folder.rows("metrics")):
        kept, done, patience = epochs[row["run"], row["epoch"]], num_epochs[row["run"]], row["early_stopping_patience"]
        ended_itself = patience is not None and done - row["epoch"] >= patience
        of_kept = {
            "best_val_accuracy": kept["val_accuracy"],
            "best_val_loss": kept["val_loss"],
            "num_train_images": kept["examples"],
        }
        runs.append({**row, **of_kept, "was_stopped": done < row["epochs"] and not ended_itself})
    return runs


def read_validations(storage: Storage, rows: Sequence[Mapping[str, Any]]) -> dict[str, Validation]:
    """Returns run -> which validation examples its evaluated weights predict correctly.

    Without the runs that keep none, or are no longer in the storage as they were evaluated: an evaluation may be copied
    without its runs.

    Args:
      rows: of the metrics table.

    Raises:
      StorageError: the storage can't be read.
    """
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        read = list(pool.map(lambda row: _read_validation(storage, row), rows))
    return {row["run"]: validation for row, validation in zip(rows, read, strict=True) if validation is not None}


def _read_validation(storage: Storage, row: Mapping[str, Any]) -> Validation | None:
    try:
        document = read_checkpoint_document(storage, row["run"], "best")
    except CheckpointError:
        return None
    if document["files"]["model.safetensors"] != row["checkpoint_sha256"]:
        return None
    return validation_in(document, config_in(document, f"run {row['run']!r}"))


def share_validation(rows: Sequence[Mapping[str, Any]], validations: Iterable[Validation]) -> bool:
    """Tells whether runs were validated on the same examples, so validation can choose among them.

    Args:
      rows: of the metrics table.
      validations: of the same runs, as far as they are known.
    """
    of_settings = {tuple(row[column_of(name)] for name in DATA_SETTINGS) for row in rows}
    return len(of_settings) == 1 and len({validation.examples for validation in validations}) <= 1
