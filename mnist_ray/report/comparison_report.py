"""Computes and stores the verdicts on an evaluation's settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mnist_ray.analysis.blocks import Scores
from mnist_ray.analysis.comparisons import Comparisons, compare
from mnist_ray.analysis.estimates import MARGIN, Estimates
from mnist_ray.analysis.mean_interval import mean_interval
from mnist_ray.analysis.selection import Selection, select
from mnist_ray.report.evaluated_runs import read_validations, share_validation
from mnist_ray.report.evaluated_settings import EvaluatedSettings, left_out
from mnist_ray.report.setting_names import find_setting
from mnist_ray.results import parquet
from mnist_ray.results.code_version import code_version
from mnist_ray.results.evaluated_data import trained_elsewhere
from mnist_ray.results.evaluation_folder import EvaluationFolder
from mnist_ray.results.paths import part_path, report_path
from mnist_ray.results.schemas import TABLES


@dataclass(frozen=True)
class ComparisonReport:
    """The comparison of an evaluation's settings.

    Attributes:
      settings: one row per setting, the best mean accuracy first: setting, may_be_best, num_seeds, num_stopped (of
        these, ended early by a scheduler), accuracy_mean, accuracy_low and accuracy_high (see `accuracy_interval`),
        accuracy_std, log_loss_mean, val_accuracy_mean.
      pairs: all pairs, or all pairs with the baseline, judged together; None with one setting.
      left_out: settings and seeds without which no run is missing, in words; None if nothing is left out.
      num_repeated: runs left out because another run of the same setting has the same seed.
      selection: None with one setting, or if the runs were validated on different examples.
      trained_on: message about runs that were trained on another data set; None if there are none.
      num_earlier: earlier evaluations of the same split in the storage.
      uri: of the stored table comparisons, None without pairs.
    """

    num_examples: int
    settings: list[dict[str, Any]]
    pairs: Comparisons | None
    num_pairs: int
    left_out: str | None
    num_repeated: int
    selection: Selection | None
    trained_on: str | None
    num_earlier: int
    uri: str | None


def report_comparisons(
    folder: EvaluationFolder, evaluated: EvaluatedSettings, *, baseline: str | None = None, margin: float = MARGIN
) -> ComparisonReport:
    """Compares the settings of an evaluation and stores all pairs in the folder of its report.

    Args:
      baseline: a setting's name, or its variant: returns only the pairs with it, as a family of their own.
      margin: smaller differences of accuracy, a fraction, don't matter.

    Raises:
      ConfigError: no such baseline.
      StorageError: the storage can't be read or written.
    """
    groups, rows = evaluated.groups, evaluated.rows
    against = None if baseline is None else list(groups).index(find_setting(groups, baseline))
    pairs = compare(evaluated.blocks, margin=margin) if len(groups) > 1 else None
    chosen = pairs if against is None or pairs is None else compare(evaluated.blocks, margin=margin, baseline=against)
    return ComparisonReport(
        num_examples=folder.num_examples,
        settings=_setting_rows(evaluated, pairs),
        pairs=chosen,
        num_pairs=0 if pairs is None else len(pairs),
        left_out=None if pairs is None else left_out(evaluated.blocks),
        num_repeated=evaluated.num_repeated,
        selection=_selection(folder, evaluated) if len(groups) > 1 else None,
        trained_on=trained_elsewhere([row["train_dataset"] for row in rows], folder.dataset),
        num_earlier=len(folder.earlier_evaluations),
        uri=store_rows(folder, "comparisons", comparison_columns(pairs, folder.num_examples)) if pairs else None,
    )


def _selection(folder: EvaluationFolder, evaluated: EvaluatedSettings) -> Selection | None:
    """Returns what validation chooses; None if the runs were validated on different examples."""
    validations = read_validations(folder.storage, evaluated.rows)
    if not share_validation(evaluated.rows, validations.values()):
        return None
    return select(evaluated.groups, {run: validation.correct for run, validation in validations.items()})


def _setting_rows(evaluated: EvaluatedSettings, pairs: Comparisons | None) -> list[dict[str, Any]]:
    best = [True] * len(evaluated.scores) if pairs is None or pairs.may_be_best is None else pairs.may_be_best.tolist()
    rows = [
        {**_setting_row(list(evaluated.groups[scores.label].values()), scores), "may_be_best": may_be_best}
        for scores, may_be_best in zip(evaluated.scores, best, strict=True)
    ]
    return sorted(rows, key=lambda row: (-row["accuracy_mean"], row["log_loss_mean"]))


def _setting_row(runs: Sequence[Mapping[str, Any]], scores: Scores) -> dict[str, Any]:
    accuracies = [row["accuracy"] for row in runs]
    low, high = accuracy_interval(runs, scores)
    return {
        "setting": scores.label,
        "num_seeds": len(runs),
        "num_stopped": sum(row["was_stopped"] for row in runs),
        "accuracy_mean": fmean(accuracies),
        "accuracy_low": low,
        "accuracy_high": high,
        "accuracy_std": stdev(accuracies) if len(runs) > 1 else None,
        "log_loss_mean": fmean(row["log_loss"] for row in runs),
        "val_accuracy_mean": fmean(row["best_val_accuracy"] for row in runs),
    }


def accuracy_interval(runs: Sequence[Mapping[str, Any]], scores: Scores) -> tuple[float, float]:
    """Returns the 95 % interval of a setting's mean accuracy.

    With several seeds, it is `mean_interval`, which covers other seeds and other examples. With one seed, or if nothing
    varies because all answers are right or all are wrong, it is Wilson's interval, which covers other examples.

    Args:
      runs: rows of the metrics table.
      scores: of the same runs.
    """
    if len(runs) == 1 or scores.correct.all() or not scores.correct.any():
        return runs[0]["accuracy_low"], runs[0]["accuracy_high"]
    return mean_interval(scores.correct)


def store_rows(folder: EvaluationFolder, table: str, columns: Mapping[str, Any]) -> str:
    """Stores columns of an evaluation in the folder of its report and returns the URI."""
    columns = {**columns, **folder.facts}
    path = report_path(folder.name, part_path(table))
    made = parquet.make_table(table, columns, code_version=code_version())
    folder.storage.write_bytes(path, parquet.to_parquet_bytes(made))
    return folder.storage.uri_of(path)


def comparison_columns(pairs: Comparisons, num_examples: int) -> dict[str, Any]:
    """Returns pairs as columns of the comparisons table, accuracy first, without the evaluation's columns."""
    labels = np.array(pairs.labels, dtype=object)
    of_pairs = {"first": labels[pairs.firsts], "second": labels[pairs.seconds]}
    of_pairs["num_examples"] = np.full(len(pairs), num_examples)
    counts = {"first_right": pairs.first_right, "second_right": pairs.second_right, "mcnemar_p": pairs.mcnemar_p()}
    of_metrics = [
        _metric_columns("accuracy", pairs.accuracy, pairs.first_accuracy) | of_pairs | counts,
        _metric_columns("log_loss", pairs.log_loss, pairs.first_log_loss)
        | of_pairs
        | {name: np.ma.array(values, mask=True) for name, values in counts.items()},
    ]
    return {name: _joined([columns[name] for columns in of_metrics]) for name in of_metrics[0]}


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    joined: NDArray[Any] = np.ma.concatenate(parts)  # type: ignore[no-untyped-call]  # numpy has no types for it
    return joined


def _metric_columns(metric: str, estimates: Estimates, first_mean: NDArray[np.float64]) -> dict[str, Any]:
    means = {"first_mean": first_mean, "second_mean": first_mean - estimates.difference}
    return {"metric": np.full(len(estimates), metric, dtype=object), **means, **estimates.columns()}


def comparisons_table(folder: EvaluationFolder, pairs: Comparisons | None) -> pa.Table:
    """Returns pairs as the table comparisons; no rows without pairs."""
    if not pairs:
        return TABLES["comparisons"].schema(code_version=code_version()).empty_table()
    columns = {**comparison_columns(pairs, folder.num_examples), **folder.facts}
    return parquet.make_table("comparisons", columns, code_version=code_version())


def comparison_rows(pairs: Comparisons, num_examples: int) -> list[dict[str, Any]]:
    """Returns pairs as rows of the comparisons table, accuracy first, without the evaluation's columns."""
    columns = {name: values.tolist() for name, values in comparison_columns(pairs, num_examples).items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
