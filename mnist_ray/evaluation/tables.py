"""The tables of an evaluation, computed from the tallies of all its shards."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa

from mnist_ray.evaluation.gallery import ShownImage, gallery
from mnist_ray.evaluation.metrics import Tally, calibration, class_rates, rates
from mnist_ray.evaluation.plan import Plan
from mnist_ray.evaluation.shards import ShardResult
from mnist_ray.results import parquet
from mnist_ray.results.checkpoint_folder import Checkpoint
from mnist_ray.results.columns import config_columns
from mnist_ray.results.history import timeless
from mnist_ray.storage.storage import PendingFolder, StoredFile


def write_tables(plan: Plan, results: Sequence[ShardResult], pending: PendingFolder) -> list[StoredFile]:
    """Stores the tables computed from the tallies of all shards, which are summed in the given order."""
    totals = [sum(rest, start=first) for first, *rest in zip(*(result.tallies for result in results), strict=True)]
    made = {
        "metrics": [
            _metrics(plan, checkpoint, total) for checkpoint, total in zip(plan.checkpoints, totals, strict=True)
        ],
        "per_class": _rows(plan, [_per_class(plan, total) for total in totals]),
        "calibration": _rows(plan, [calibration(total) for total in totals]),
        "learning_curves": [
            {"run": checkpoint.run, **row} for checkpoint in plan.checkpoints for row in timeless(checkpoint.history)
        ],
        "images": _images(plan, gallery(image for result in results for image in result.images)),
        "lineage": [_lineage(plan, checkpoint) for checkpoint in plan.checkpoints],
    }
    files = [result.file for result in results]
    for name, rows in made.items():
        columns = {column: [row[column] for row in rows] for column in rows[0]}
        files.append(pending.write(f"{name}.parquet", parquet.to_parquet_bytes(plan.table(name, columns))))
    confusion = parquet.pieces_to_parquet_bytes(_confusion(plan, totals))
    files.append(pending.write("confusion.parquet", confusion))
    return files


def _images(plan: Plan, images: Sequence[ShownImage]) -> list[dict[str, Any]]:
    rank: Counter[str] = Counter()
    rows = []
    for image in images:
        rows.append(
            {
                "dataset": plan.dataset,
                "split": plan.config.split,
                **asdict(image),
                "rank": rank[image.reason],
                "label_name": plan.class_names[image.label],
            }
        )
        rank[image.reason] += 1
    return rows


def _of_run(plan: Plan, checkpoint: Checkpoint) -> dict[str, Any]:
    return {"run": checkpoint.run, "dataset": plan.dataset, "split": plan.config.split}


def _lineage(plan: Plan, checkpoint: Checkpoint) -> dict[str, Any]:
    document = checkpoint.document
    return {
        **_of_run(plan, checkpoint),
        "config_hash": checkpoint.config.config_hash(),
        "checkpoint_sha256": checkpoint.sha256,
        "train_data_sha256": document["data_sha256"],
        "train_code_version": document["code_version"],
        **document["lineage"],
        "libraries": json.dumps(document["lineage"]["libraries"], sort_keys=True),
    }


def _metrics(plan: Plan, checkpoint: Checkpoint, total: Tally) -> dict[str, Any]:
    settings = {name: column[0] for name, column in config_columns([checkpoint.config]).items()}
    return {
        **settings,
        **asdict(rates(total)),
        **_of_run(plan, checkpoint),
        "grid": plan.config.grid,
        "epoch": checkpoint.document["epoch"],
        "config_hash": checkpoint.config.config_hash(),
        "checkpoint_sha256": checkpoint.sha256,
        "data_sha256": plan.data_sha256,
        "code_version": plan.code_version,
    }


def _per_class(plan: Plan, total: Tally) -> dict[str, list[Any]]:
    by_class = {name: values.tolist() for name, values in vars(class_rates(total.confusion)).items()}
    return {"class": list(range(len(plan.class_names))), "class_name": list(plan.class_names), **by_class}


def _rows(plan: Plan, by_run: Sequence[Mapping[str, list[Any]]]) -> list[dict[str, Any]]:
    """Returns the rows of a table from the columns of each run."""
    return [
        {**_of_run(plan, checkpoint), **dict(zip(columns, values, strict=True))}
        for checkpoint, columns in zip(plan.checkpoints, by_run, strict=True)
        for values in zip(*columns.values(), strict=True)
    ]


def _confusion(plan: Plan, totals: Sequence[Tally]) -> Iterator[pa.Table]:
    """Yields the confusion table in pieces: with thousands of classes a single run has millions of rows."""
    runs = np.asarray([checkpoint.run for checkpoint in plan.checkpoints], dtype=object)
    names, num_classes = np.asarray(plan.class_names, dtype=object), len(plan.class_names)
    # Row numbers of the nonzero cells, in order.
    filled = np.concatenate([run * num_classes**2 + total.pairs for run, total in enumerate(totals)])
    counts = np.concatenate([total.pair_count for total in totals])
    for first in range(0, len(totals) * num_classes**2, parquet.ROWS_IN_PIECE):
        cells = np.arange(first, min(first + parquet.ROWS_IN_PIECE, len(totals) * num_classes**2))
        run, pair = np.divmod(cells, num_classes**2)
        label, predicted = np.divmod(pair, num_classes)
        some = slice(*np.searchsorted(filled, (first, first + len(cells))))
        count = np.zeros(len(cells), dtype=np.int64)
        count[filled[some] - first] = counts[some]
        columns = {
            "run": runs[run],
            "dataset": plan.dataset,
            "split": plan.config.split,
            "label": label,
            "label_name": names[label],
            "predicted_label": predicted,
            "predicted_label_name": names[predicted],
            "count": count,
        }
        yield plan.table("confusion", columns)
