"""The metrics of an evaluation on the terminal."""

from collections.abc import Sequence
from typing import Any

from mnist_ray.results.evaluated_data import trained_elsewhere
from mnist_ray.text.tables import READING_WIDTH, print_table


def print_metrics(metrics: Sequence[dict[str, Any]]) -> None:
    """Prints each run's accuracy with its interval, log loss, calibration error and F1."""
    rows = [
        [
            row["run"],
            f"{row['accuracy']:.4f}",
            f"{row['accuracy_low']:.4f}-{row['accuracy_high']:.4f}",
            f"{row['log_loss']:.4f}",
            f"{row['ece']:.4f}",
            f"{row['f1_macro']:.4f}",
            str(row["num_examples"]),
        ]
        for row in metrics
    ]
    names = ["run", "accuracy", "95 % interval", "log loss", "ECE", "macro F1", "examples"]
    print_table(names, rows, title=metrics_title(metrics), width=READING_WIDTH, optional=names[2:])


def metrics_title(metrics: Sequence[dict[str, Any]]) -> str:
    """Returns a title that names the data on which the metrics were measured."""
    first = metrics[0]
    elsewhere = trained_elsewhere([row["train_dataset"] for row in metrics], first["dataset"])
    measured = f"Evaluated on {first['num_examples']:,} {first['split']} examples of {first['dataset']}"
    return f"{measured}; {elsewhere}" if elsewhere else measured
