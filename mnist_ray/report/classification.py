"""The classification report of a run, from the confusion table of its evaluation."""

import numpy as np
from numpy.typing import NDArray

from mnist_ray.evaluation_folder import EvaluationFolder
from mnist_ray.metrics import classification_report


def report_of_run(folder: EvaluationFolder, run: str) -> str:
    """Returns precision, recall, F1 and support of each class as text, with their averages."""
    return classification_report(confusion_of_runs(folder, [run]), folder.class_names)


def confusion_of_runs(folder: EvaluationFolder, runs: list[str]) -> NDArray[np.int64]:
    """Returns the examples by true (row) and predicted class (column), summed over runs: int64 [classes, classes]."""
    size = len(folder.class_names)
    confusion = np.zeros((size, size), dtype=np.int64)
    for row in folder.rows("confusion"):
        if row["run"] in runs:
            confusion[row["label"], row["predicted_label"]] += row["count"]
    return confusion
