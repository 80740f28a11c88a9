"""Computes and stores the verdicts on every pair of an evaluation's settings."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.analysis.comparisons import Comparison, Scores, compare, judge, paired_interval, tie_groups
from mnist_ray.analysis.leaderboard import setting_text
from mnist_ray.analysis.selection import Selection, select
from mnist_ray.config.own_settings import argument_of
from mnist_ray.config.variants import VARIANTS
from mnist_ray.errors import ConfigError, DataError
from mnist_ray.report.evaluated_runs import evaluated_runs, share_validation
from mnist_ray.results import parquet
from mnist_ray.results.code_version import code_version
from mnist_ray.results.columns import SETTING_COLUMNS
from mnist_ray.results.evaluated_data import trained_elsewhere
from mnist_ray.results.evaluation_folder import EvaluationFolder
from mnist_ray.results.paths import report_path

# One setting's runs: seed -> row of the metrics table.
_Runs = Mapping[int, Mapping[str, Any]]


@dataclass(frozen=True)
class ComparisonReport:
    """The comparison of an evaluation's settings.

    Attributes:
      settings: one row per setting, the best mean accuracy first: setting, group (see `tie_groups`), num_seeds,
        num_stopped (of these, ended early by a scheduler), accuracy_mean, accuracy_low and accuracy_high (see
        `accuracy_interval`), accuracy_std, log_loss_mean, val_accuracy_mean.
      comparisons: all pairs, or all pairs against the baseline, judged together.
      unpaired: pairs without a common seed.
      num_repeated: runs left out because another run of the same setting has the same seed.
      selection: None with one setting, or if the runs were validated on different examples.
      trained_on: message about runs that were trained on another data set; None if there are none.
      num_earlier: earlier evaluations of the same split in the storage.
      uri: of the stored comparisons.parquet, None with one setting.
    """

    num_examples: int
    settings: list[dict[str, Any]]
    comparisons: list[Comparison]
    num_pairs: int
    unpaired: list[tuple[str, str]]
    num_repeated: int
    selection: Selection | None
    trained_on: str | None
    num_earlier: int
    uri: str | None


def report_comparisons(folder: EvaluationFolder, *, baseline: str | None = None) -> ComparisonReport:
    """Compares every pair of settings of an evaluation and stores reports/<evaluation>/comparisons.parquet.

    Args:
      baseline: a setting's label, or its variant: returns only the pairs with it, corrected by Holm over these; stores
        all pairs, corrected over all.

    Raises:
      ConfigError: no such baseline.
      DataError: the evaluation is damaged.
      StorageError: the storage can't be read or written.
    """
    rows = evaluated_runs(folder)
    groups = group_settings(rows)
    against = None if baseline is None else find_setting(groups, baseline)
    scores = _scores(folder, groups)
    pairs = compare(scores)
    settings = _setting_rows(groups, scores, pairs)
    chosen = pairs if against is None else _against(against, pairs)
    uri = store_rows(folder, "comparisons", [comparison_row(pair) for pair in pairs]) if pairs else None
    paired = {_labels(pair) for pair in pairs}
    unpaired = [(first, second) for second, first in combinations(groups, 2) if (first, second) not in paired]
    num_repeated = len(rows) - sum(map(len, groups.values()))
    selection = select(groups) if len(groups) > 1 and share_validation(rows) else None
    return ComparisonReport(
        num_examples=folder.num_examples,
        settings=settings,
        comparisons=chosen,
        num_pairs=len(pairs),
        unpaired=unpaired,
        num_repeated=num_repeated,
        selection=selection,
        trained_on=trained_elsewhere([row["train_dataset"] for row in rows], folder.dataset),
        num_earlier=len(folder.earlier_evaluations),
        uri=uri,
    )


def group_settings(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, Mapping[str, Any]]]:
    """Groups the rows of a metrics table by all settings except the seed.

    A label names what varies: the variant, and the settings that differ among the runs of one variant. If two runs have
    the same settings and seed, the first by name counts.

    Returns:
      Label -> seed -> row, the variants in the order of VARIANTS, then by the values.
    """
    by_variant: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_variant.setdefault(row["variant"], []).append(row)
    columns = [*SETTING_COLUMNS, *(name for name in next(iter(rows), {}) if argument_of(name))]
    # The arguments in model_settings have columns of their own; other code is said only where the model doesn't.
    hidden = {"model_settings"} | ({"code_sha256"} if len(_code(rows)) == _num_values("model", rows) else set())
    names = [
        name
        for name in columns
        if name not in hidden and any(_num_values(name, group) > 1 for group in by_variant.values())
    ]
    # Use all digits if six don't tell the values apart.
    texts = {
        name: setting_text if _num_values(name, rows, setting_text) == _num_values(name, rows) else json.dumps
        for name in names
    }
    groups: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: _place(row, names)):
        parts = [row["variant"]] if len(by_variant) > 1 or not names else []
        label = " ".join([*parts, *(f"{name}={texts[name](row[name])}" for name in names)])
        groups.setdefault(label, {}).setdefault(row["seed"], row)
    return groups


def _code(rows: Sequence[Mapping[str, Any]]) -> set[tuple[str, str | None]]:
    """Returns each network with its code."""
    return {(row["model"], row["code_sha256"]) for row in rows}


def _num_values(name: str, rows: Sequence[Mapping[str, Any]], text: Callable[[Any], str] = json.dumps) -> int:
    return len({text(row[name]) for row in rows})


def _place(row: Mapping[str, Any], names: Sequence[str]) -> tuple[Any, ...]:
    order = list(VARIANTS)
    variant = order.index(row["variant"]) if row["variant"] in order else len(order)
    return variant, row["variant"], [_order(row[name]) for name in names], row["seed"], row["run"]


def _order(value: Any) -> tuple[bool, str, Any]:
    # An argument of the user's own network may be a number in one run and text in another.
    is_number = isinstance(value, int | float)
    return value is not None, "" if is_number else type(value).__name__, value


def find_setting(groups: Mapping[str, _Runs], name: str) -> str:
    """Returns the label of the setting with this label, or of the only setting with this variant.

    Raises:
      ConfigError: no such setting, or several.
    """
    if name in groups:
        return name
    matching = [label for label, runs in groups.items() if next(iter(runs.values()))["variant"] == name]
    if len(matching) == 1:
        return matching[0]
    what = f"{len(matching)} settings have this variant" if matching else "no such setting in the evaluation"
    labels = ", ".join(repr(label) for label in matching or groups)
    raise ConfigError(f"--baseline {name!r}: {what}; give one of {labels}")


def _scores(folder: EvaluationFolder, groups: Mapping[str, _Runs]) -> list[Scores]:
    """Reads the part files of the predictions one by one."""
    places = {run: place for place, run in enumerate(folder.runs)}
    shape = len(places), folder.num_examples
    correct: NDArray[np.bool_] = np.zeros(shape, dtype=np.bool_)
    loss: NDArray[np.float32] = np.full(shape, np.nan, dtype=np.float32)
    for part in folder.parts("predictions", columns=["run", "example_index", "correct", "loss"]):
        runs = part["run"].combine_chunks()
        places_of_runs = np.array([places[run] for run in runs.dictionary.to_pylist()], dtype=np.int64)
        where = places_of_runs[runs.indices.to_numpy()], part["example_index"].to_numpy()
        correct[where], loss[where] = part["correct"].to_numpy(), part["loss"].to_numpy()
    if missing := int(np.isnan(loss).sum()):
        raise DataError(f"{folder.uri}: {missing} predictions of {loss.size} are missing; evaluate again")
    rows = {label: [places[row["run"]] for row in runs.values()] for label, runs in groups.items()}
    return [Scores(label, tuple(groups[label]), correct[some], loss[some]) for label, some in rows.items()]


def _setting_rows(
    groups: Mapping[str, _Runs], scores: Sequence[Scores], pairs: Sequence[Comparison]
) -> list[dict[str, Any]]:
    rows = [_setting_row(list(groups[of_setting.label].values()), of_setting) for of_setting in scores]
    rows.sort(key=lambda row: (-row["accuracy_mean"], row["log_loss_mean"]))
    places = tie_groups([row["setting"] for row in rows], pairs)
    return [{"group": places[row["setting"]], **row} for row in rows]


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

    With several seeds, it is the `paired_interval` of the difference from zero, which covers other seeds and other
    examples. With one seed, or if nothing varies because all answers are right or all are wrong, it is Wilson's
    interval, which covers other examples.

    Args:
      runs: rows of the metrics table.
      scores: of the same runs.
    """
    if len(runs) == 1 or scores.correct.all() or not scores.correct.any():
        return runs[0]["accuracy_low"], runs[0]["accuracy_high"]
    interval = paired_interval(scores.correct)
    assert interval.low is not None
    assert interval.high is not None
    return max(interval.low, 0.0), min(interval.high, 1.0)


def _labels(pair: Comparison) -> tuple[str, str]:
    return pair.first, pair.second


def _against(baseline: str, pairs: Sequence[Comparison]) -> list[Comparison]:
    chosen = [pair for pair in pairs if baseline in _labels(pair)]
    return judge([pair if pair.second == baseline else pair.reversed() for pair in chosen])


def store_rows(folder: EvaluationFolder, table: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Stores rows of an evaluation as reports/<evaluation>/<table>.parquet and returns the URI."""
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
    columns |= {"evaluation": folder.name, "dataset": folder.dataset, "split": folder.split}
    path = report_path(folder.name, f"{table}.parquet")
    made = parquet.make_table(table, columns, code_version=code_version())
    folder.storage.write_bytes(path, parquet.to_parquet_bytes(made))
    return folder.storage.uri_of(path)


def comparison_row(pair: Comparison) -> dict[str, Any]:
    """Returns a comparison as a row of the comparisons table, without the evaluation's columns."""
    row: dict[str, Any] = {
        name: getattr(pair, name)
        for name in (
            *("first", "second", "num_seeds", "num_examples", "p_adjusted", "first_right", "second_right"),
            *("mcnemar_p", "mcnemar_p_adjusted", "num_seeds_needed", "verdict"),
        )
    }
    for metric, interval in (("accuracy", pair.accuracy_difference), ("log_loss", pair.log_loss_difference)):
        mean = getattr(pair, metric)
        row |= {f"first_{metric}": mean, f"second_{metric}": mean - interval.difference}
        row |= {f"{metric}_difference": interval.difference}
        row |= {f"{metric}_difference_low": interval.low, f"{metric}_difference_high": interval.high}
    accuracy = pair.accuracy_difference
    return {
        **row,
        "seed_error": accuracy.seed_error,
        "example_error": accuracy.example_error,
        "p_value": accuracy.p_value,
    }
