"""A small table of each kind."""

import dataclasses
from datetime import UTC, datetime

import numpy as np
import torch

from mnist_ray.config.settings import TrainConfig
from mnist_ray.evaluation import metrics
from mnist_ray.results import parquet
from mnist_ray.results.columns import config_columns

AT = datetime(2026, 11, 30, 12, tzinfo=UTC)
DATA = {"evaluation": "e", "dataset": "digits", "split": "test", "dataset_id": "cd"}
EVALUATION = {**DATA, "run": "a"}
TIMES = {"setting": ["baseline", "baseline, epochs 3"], "trained_at": [AT, None], "evaluated_at": AT}
CLASS_NAMES = np.array(["null", "eins", "zwei"])
CONFIGS = [TrainConfig(), TrainConfig(hidden_sizes=(256, 128, 64), gradient_clip_norm=1.5, train_limit=100, seed=1)]


def predictions_table(num_examples=6, **changes):
    generator = torch.Generator().manual_seed(0)
    logits = 2.0 * torch.randn(num_examples, 3, generator=generator)
    labels = torch.randint(3, (num_examples,), generator=generator)
    shard = dataclasses.asdict(metrics.predictions(torch.log_softmax(logits, dim=1), labels))
    del shard["label_rank"]
    columns = {
        **{name: value for name, value in EVALUATION.items() if name != "dataset_id"},
        **shard,
        "example_index": np.arange(num_examples),
        "label_name": CLASS_NAMES[shard["label"]],
        "predicted_label_name": CLASS_NAMES[shard["predicted_label"]],
    }
    return parquet.make_table("predictions", {**columns, **changes}, code_version="1")


def metrics_table(**changes):
    shard = metrics.predictions(torch.log_softmax(torch.eye(3), dim=1), torch.tensor([0, 1, 1]))
    rates = dataclasses.asdict(metrics.rates(metrics.tally(shard, num_bins=15)))
    columns = {
        **EVALUATION,
        "run": ["a", "b"],
        "grid": ["", "regularization"],
        **TIMES,
        **config_columns(CONFIGS),
        **{name: [value, value] for name, value in rates.items()},
        "epoch": [5, 4],
        "config_hash": [config.config_hash() for config in CONFIGS],
        "checkpoint_sha256": "ab",
        "code_version": "1",
    }
    return parquet.make_table("metrics", {**columns, **changes}, code_version="1")


RATES = ("train_loss", "train_accuracy", "val_loss", "val_accuracy")
EPOCHS = {"run": "a", "epoch": [1, 2], "examples": [1500, 1500], "learning_rate": [1e-3, 1e-4]}
OF_IMAGES = {"run": "a", "path": ["a/1.png", "b.parquet"], "row": [None, 7]}


def tallied_columns():
    """The columns of the tables that are made of a tally, by table."""
    shard = metrics.predictions(torch.log_softmax(torch.eye(3), dim=1), torch.tensor([0, 1, 1]))
    total = metrics.tally(shard, num_bins=15)
    labels, predicted = np.indices((3, 3)).reshape(2, 9)
    return {
        "per_class": {
            "class": range(3),
            "class_name": CLASS_NAMES,
            **dataclasses.asdict(metrics.class_rates(total.confusion)),
        },
        "confusion": {
            "label": labels,
            "label_name": CLASS_NAMES[labels],
            "predicted_label": predicted,
            "predicted_label_name": CLASS_NAMES[predicted],
            "count": total.confusion.reshape(-1),
        },
        "calibration": metrics.calibration(total),
    }


RUNS = {
    "run": ["a", "b"],
    "grid": "g",
    **config_columns(CONFIGS),
    "setting": TIMES["setting"],
    "trained_at": TIMES["trained_at"],
    "status": ["finished", "diverged"],
    "reason": [None, "epoch 1"],
    "epochs_done": [5, 0],
    "best_epoch": [4, None],
    "best_val_loss": [0.1, None],
    "best_val_accuracy": [0.97, None],
    "seconds": [1.5, 0.0],
    "checkpoint": ["runs/a/best", None],
}
GRIDS = {
    "grid": ["g", "h"],
    "axes": '{"dropout": [0.0, 0.3]}',
    "fixed": "{}",
    "seeds": [[0, 1], []],
    "search": "grid",
    "num_runs": [4, 0],
    **{f"num_{status}": [1, 0] for status in ("finished", "stopped", "diverged", "unfinished", "missing", "damaged")},
    "trained_at": [AT, None],
}
ESTIMATE = {
    "metric": ["accuracy", "log_loss"],
    **{name: [0.01, None] for name in ("low", "high", "p_value", "seed_variance", "example_variance")},
    "difference": [0.02, 0.0],
    "verdict": ["better", "unresolved"],
    "margin": [0.005, None],
    "num_seeds": [3, 1],
    "num_seeds_needed": [12, None],
}
EFFECTS = {
    **DATA,
    "grid": "g",
    "kind": ["main", "interaction"],
    "axis": "dropout",
    "level": "0.3",
    "reference_level": "0",
    "second_axis": [None, "batch_norm"],
    "second_level": [None, "true"],
    "second_reference_level": [None, "false"],
    "model": "factorial",
    "num_settings": [8, 4],
    **ESTIMATE,
}
COMPARISONS = {
    **DATA,
    "first": ["dropout", "tuned"],
    "second": "baseline",
    "num_examples": [3, 1],
    **{name: [0.9, 0.5] for name in ("first_mean", "second_mean")},
    **ESTIMATE,
    **{name: [3, None] for name in ("first_right", "second_right")},
    "mcnemar_p": [0.01, None],
}
IMAGES = {
    **DATA,
    "reason": ["hardest", "sample"],
    "rank": [0, 0],
    "example_index": [12, 0],
    "label": [1, 2],
    "label_name": ["eins", "zwei"],
    "image": [b"\x89PNG", b"\x89PNG2"],
    "num_runs_wrong": [2, 0],
    "vote_entropy": [0.5, 0.0],
    "mean_loss": [2.5, 0.125],
}
LINEAGE = {
    **EVALUATION,
    **TIMES,
    "run": ["a", "b"],
    **dict.fromkeys(("config_hash", "checkpoint_sha256", "train_data_sha256", "train_code_version"), "ab"),
    "command_line": "mnist-ray train",
    "python": "3.11.2",
    "libraries": '{"torch": "2.14.1"}',
    "cpu": "a CPU",
    "num_cpus": [2, 64],
    "gpu": [None, "a GPU"],
    "os": "Linux",
    "num_workers": [1, 2],
}
ANSWER = {
    "label": [None, 2],
    "predicted_label": [0, 2],
    "predicted_label_name": CLASS_NAMES[[0, 2]],
    "confidence": [0.75, 0.5],
    "inverted": [True, False],
    "probabilities": np.array([[0.75, 0.25, 0], [0.25, 0.25, 0.5]], dtype=np.float32),
}


def other_tables():
    columns = {
        **{name: {**EVALUATION, **own} for name, own in tallied_columns().items()},
        "images": IMAGES,
        "lineage": LINEAGE,
        "learning_curves": {**EVALUATION, **EPOCHS, **{name: [0.5, 0.25] for name in RATES}},
        "image_predictions": {**OF_IMAGES, **ANSWER},
        "image_errors": {**OF_IMAGES, "error": ["null", "cut"]},
        "comparisons": COMPARISONS,
        "effects": EFFECTS,
        "runs": RUNS,
        "grids": GRIDS,
        "history": {**EPOCHS, **{name: [0.5, 0.25] for name in (*RATES, "epoch_seconds")}},
    }
    return {name: parquet.make_table(name, own, code_version="1") for name, own in columns.items()}


ALL = {"predictions": predictions_table(), "metrics": metrics_table(), **other_tables()}
