"""The tables of an evaluation, computed from the tallies of all its shards."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa

from mnist_ray.evaluation.gallery import ShownImage, gallery
from mnist_ray.evaluation.metrics import Tally, calibration, class_rates, rates
from mnist_ray.evaluation.plan import Plan
from mnist_ray.evaluation.shards import ShardResult
from mnist_ray.results import parquet
from mnist_ray.results.checkpoint_folder import Checkpoint
from mnist_ray.results.columns import settings_row
from mnist_ray.results.history import timeless
from mnist_ray.results.paths import part_path
from mnist_ray.results.setting_words import setting_words
from mnist_ray.storage.storage import PendingFolder, StoredFile


def write_tables(plan: Plan, results: Sequence[ShardResult], pending: PendingFolder) -> list[StoredFile]:
    """Stores the tables computed from the tallies of all shards, which are summed in the given order."""
    totals = [sum(rest, start=first) for first, *rest in zip(*(result.tallies for result in results), strict=True)]
    ids = plan.dataset_ids()
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
        "lineage": [_lineage(checkpoint) for checkpoint in plan.checkpoints],
    }
    files = [result.file for result in results]
    for name, rows in made.items():
        columns = {column: [row[column] for row in rows] for column in rows[0]} | plan.facts(name)
        if "run" in columns:
            columns["dataset_id"] = [ids[run] for run in columns["run"]]
        files.append(pending.write(part_path(name), parquet.to_parquet_bytes(plan.table(name, columns))))
    confusion = parquet.pieces_to_parquet_bytes(_confusion(plan, totals))
    files.append(pending.write(part_path("confusion"), confusion))
    return files


def _images(plan: Plan, images: Sequence[ShownImage]) -> list[dict[str, Any]]:
    rank: Counter[str] = Counter()
    rows = []
    for image in images:
        rows.append(
            {
                **asdict(image),
                "rank": rank[image.reason],
                "label_name": plan.class_names[image.label],
            }
        )
        rank[image.reason] += 1
    return rows


def _of_run(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns what a table has where a row is a run."""
    config, trained_at = checkpoint.config, checkpoint.document.get("trained_at")
    return {
        "run": checkpoint.run,
        "setting": setting_words(settings_row(config)),
        "trained_at": trained_at and datetime.fromisoformat(trained_at),
        "config_hash": config.config_hash(),
        "checkpoint_sha256": checkpoint.sha256,
    }


def _lineage(checkpoint: Checkpoint) -> dict[str, Any]:
    document = checkpoint.document
    return {
        **_of_run(checkpoint),
        "train_data_sha256": document["data_sha256"],
        "train_code_version": document["code_version"],
        **document["lineage"],
        "libraries": json.dumps(document["lineage"]["libraries"], sort_keys=True),
    }


def _metrics(plan: Plan, checkpoint: Checkpoint, total: Tally) -> dict[str, Any]:
    return {
        **settings_row(checkpoint.config),
        **asdict(rates(total)),
        **_of_run(checkpoint),
        "grid": plan.config.grid or "",
        "epoch": checkpoint.document["epoch"],
        "code_version": plan.code_version,
    }


def _per_class(plan: Plan, total: Tally) -> dict[str, list[Any]]:
    by_class = {name: values.tolist() for name, values in vars(class_rates(total.confusion)).items()}
    return {"class": list(range(len(plan.class_names))), "class_name": list(plan.class_names), **by_class}


def _rows(plan: Plan, by_run: Sequence[Mapping[str, list[Any]]]) -> list[dict[str, Any]]:
    """Returns the rows of a table from the columns of each run."""
    return [
        {"run": checkpoint.run, **dict(zip(columns, values, strict=True))}
        for checkpoint, columns in zip(plan.checkpoints, by_run, strict=True)
        for values in zip(*columns.values(), strict=True)
    ]


def _confusion(plan: Plan, totals: Sequence[Tally]) -> Iterator[pa.Table]:
    """Yields the confusion table in pieces: with thousands of classes a single run has millions of rows."""
    ids = np.asarray(list(plan.dataset_ids().values()), dtype=object)
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
            **plan.facts("confusion"),
            "run": runs[run],
            "dataset_id": ids[run],
            "label": label,
            "label_name": names[label],
            "predicted_label": predicted,
            "predicted_label_name": names[predicted],
            "count": count,
        }
        yield plan.table("confusion", columns)
