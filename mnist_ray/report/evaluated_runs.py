"""The runs of an evaluation: rows of its metrics table, extended from its learning curves."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mnist_ray.config.settings import DATA_SETTINGS
from mnist_ray.results.columns import column_of, with_own_settings
from mnist_ray.results.evaluation_folder import EvaluationFolder


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


def share_validation(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Tells whether runs were validated on the same examples, so validation can choose among them."""
    return len({tuple(row[column_of(name)] for name in DATA_SETTINGS) for row in rows}) == 1
