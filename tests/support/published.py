"""Small committed evaluations, of any number of classes, and what a lake has of them."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import torch
from deltalake import DeltaTable
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.table import Table

from mnist_ray.config.settings import TrainConfig
from mnist_ray.evaluation import metrics
from mnist_ray.lake.tables import LAKE_TABLES
from mnist_ray.results import parquet
from mnist_ray.results.columns import SCHEMA_VERSION, config_columns
from mnist_ray.results.paths import part_of_shard, part_path
from mnist_ray.storage.storage import open_storage
from tests.support.sample_tables import AT, EPOCHS, IMAGES, LINEAGE, RATES

RUNS = ("a", "b")


def commit_evaluation(
    uri: str, name: str, *, num_classes: int = 3, num_examples: int = 40, seed: int = 0, runs: Sequence[str] = RUNS,
    dataset: str = "digits", more: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Commits an evaluation of two runs with random answers, in two parts; `more` are columns of its metrics."""
    storage = open_storage(uri)
    pending = storage.pending_folder(f"evaluations/{name}")
    data = {"evaluation": name, "dataset": dataset, "split": "test"}
    tables = _tables(
        data | {"dataset_id": f"{dataset} in hex"}, runs, _answers(num_classes, num_examples, seed), more or {}
    )
    predictions = tables.pop("predictions")
    half = predictions.num_rows // 2
    parts = {part_of_shard("predictions", i): predictions.slice(i * half, half) for i in (0, 1)}
    parts |= {part_path(table): rows for table, rows in tables.items()}
    files = [pending.write(path, parquet.to_parquet_bytes(rows)) for path, rows in parts.items()]
    document = {
        "schema_version": SCHEMA_VERSION,
        "config": {"dataset": dataset, "split": "test", "grid": None},
        "data_sha256": "ab",
        "runs": list(runs),
        "num_examples": num_examples,
        "class_names": [str(number) for number in range(num_classes)],
        "volatile": {"evaluated_at": AT.isoformat()},
    }
    assert pending.commit(files, document)


def _answers(num_classes: int, num_examples: int, seed: int) -> list[metrics.Predictions]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (num_examples,), generator=generator)
    logits = [torch.randn(num_examples, num_classes, generator=generator) for _ in RUNS]
    return [metrics.predictions(torch.log_softmax(values, dim=1), labels) for values in logits]


def _tables(
    data: dict[str, str], runs: Sequence[str], answers: list[metrics.Predictions], more: Mapping[str, Any]
) -> dict[str, pa.Table]:
    totals = [metrics.tally(answer, num_bins=15) for answer in answers]
    num_classes = len(totals[0].confusion)
    names = np.array([str(number) for number in range(num_classes)])
    labels, predicted = np.indices((num_classes, num_classes)).reshape(2, -1)

    def labelled(label: Any, predicted_label: Any) -> dict[str, Any]:
        named = {"label_name": names[label], "predicted_label_name": names[predicted_label]}
        return {"label": label, "predicted_label": predicted_label, **named}

    def answered(answer: metrics.Predictions) -> dict[str, Any]:
        columns = dataclasses.asdict(answer)
        del columns["label_rank"]
        return {**columns, **labelled(answer.label, answer.predicted_label), "example_index": range(len(answer.label))}

    settings = config_columns([TrainConfig(seed=seed) for seed in range(len(runs))])
    times = {"setting": "baseline", "trained_at": AT, "evaluated_at": AT}
    rates = [dataclasses.asdict(metrics.rates(total)) for total in totals]
    of_runs = {
        "predictions": map(answered, answers),
        "per_class": [
            {"class": range(num_classes), "class_name": names, **dataclasses.asdict(metrics.class_rates(t.confusion))}
            for t in totals
        ],
        "confusion": [{**labelled(labels, predicted), "count": t.confusion.reshape(-1)} for t in totals],
        "calibration": map(metrics.calibration, totals),
        "learning_curves": [{**EPOCHS, **{rate: [0.5, 0.25] for rate in RATES}} for _ in runs],
        "lineage": [
            {**{key: value[:1] if isinstance(value, list) else value for key, value in LINEAGE.items()}, **times}
            for _ in runs
        ],
        "metrics": [
            {
                **{column: values[place : place + 1] for column, values in settings.items()},
                **{rate: [value] for rate, value in rates[place].items()},
                **times,
                **dict.fromkeys(("grid", "config_hash", "checkpoint_sha256", "code_version"), "ab"),
                "epoch": [1],
                **more,
            }
            for place in range(len(runs))
        ],
    }

    def made(table: str, columns: dict[str, Any]) -> pa.Table:
        known = {name: data[name] for name in data if table != "predictions" or name != "dataset_id"}
        return parquet.make_table(table, {**columns, **known}, code_version="1")

    tables = {
        table: pa.concat_tables(
            made(table, {**columns, "run": run}) for run, columns in zip(runs, of_each, strict=True)
        )
        for table, of_each in of_runs.items()
    }
    return {**tables, "images": made("images", IMAGES)}


def rows_in_files(uri: str, table: str) -> pa.Table:
    """The table of all evaluations, by DuckDB from the files, without the code under test."""
    return duckdb.sql(
        f"FROM read_parquet('{uri}/evaluations/*/{table}/*.parquet', union_by_name=true) ORDER BY ALL"
    ).to_arrow_table()


def iceberg_table(uri: str, table: str) -> Table:
    """An Iceberg table of the catalog in a storage."""
    folder = f"{uri}/lake/iceberg"
    catalog = SqlCatalog("mnist_ray", uri=f"sqlite:///{folder}/catalog.db", warehouse=folder)
    return catalog.load_table(f"mnist_ray.{table}")


def delta_table(uri: str, table: str) -> DeltaTable:
    """A Delta table of a storage."""
    return DeltaTable(f"{uri}/lake/delta/{table}")


def published_rows(kind: str, uri: str, table: str) -> pa.Table:
    """What the kind's own reader says of a table."""
    if kind == "iceberg":
        return iceberg_table(uri, table).scan().to_arrow()
    return delta_table(uri, table).to_pyarrow_table()


def counts(kind: str, uri: str) -> dict[str, dict[str, int]]:
    """Table -> evaluation -> rows, of the tables that the lake has."""
    counted = {}
    for table in LAKE_TABLES:
        column = published_rows(kind, uri, table)["evaluation"]
        counted[table] = dict(Counter(column.to_pylist()))
    return counted
