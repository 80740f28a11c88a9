"""The settings of a grid, ranked by validation accuracy over their seeds."""

import json
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from mnist_ray.results.columns import SETTING_COLUMNS, setting_in
from mnist_ray.results.setting_words import setting_text
from mnist_ray.text.tables import READING_WIDTH, print_table, print_text


def leaderboard(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Groups the rows of a runs table by all settings except the seed.

    Args:
      rows: rows of a runs table.
      columns: the settings to show, such as the axes of the grid.

    Returns:
      One row per group: the shown settings; num_runs and num_done (with a best checkpoint); mean and standard deviation
      (of a sample; None for one run) of best_val_accuracy, and the means of best_val_loss and best_epoch, over the done
      runs. The highest mean accuracy comes first, then the lowest loss; groups without a done run come last.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(_text([row[name] for name in SETTING_COLUMNS]), []).append(row)
    board = [_summary(group, columns) for group in groups.values()]
    return sorted(board, key=lambda row: _rank(row, columns))


def test_leaderboard(
    rows: Sequence[Mapping[str, Any]], metrics: Sequence[Mapping[str, Any]], columns: Sequence[str]
) -> list[dict[str, Any]]:
    """Adds an evaluation to the leaderboard, which stays ranked by validation data.

    Args:
      rows: rows of a runs table.
      metrics: rows of the metrics table of an evaluation of the same runs.

    Returns:
      The rows of leaderboard(), with accuracy_mean, accuracy_std and log_loss_mean of the evaluated runs.
    """
    evaluated = {row["run"]: row for row in metrics}
    return leaderboard([{**row, "evaluated": evaluated.get(row["run"])} for row in rows], columns)


def _summary(group: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> dict[str, Any]:
    done = [row for row in group if row["checkpoint"] is not None]
    evaluated = [row["evaluated"] for row in group if row.get("evaluated")]
    return {
        **{name: setting_in(group[0], name) for name in columns},
        "num_runs": len(group),
        "num_done": len(done),
        "num_diverged": sum(row["status"] == "diverged" for row in group),
        "seconds_mean": fmean(row["seconds"] for row in group),
        **_mean_and_std("val_accuracy", [row["best_val_accuracy"] for row in done]),
        **_mean_and_std("val_loss", [row["best_val_loss"] for row in done]),
        **_mean_and_std("best_epoch", [row["best_epoch"] for row in done]),
        **(_mean_and_std("accuracy", [row["accuracy"] for row in evaluated]) if evaluated else {}),
        **(_mean_and_std("log_loss", [row["log_loss"] for row in evaluated]) if evaluated else {}),
    }


def _mean_and_std(name: str, values: Sequence[float]) -> dict[str, float | None]:
    return {
        f"{name}_mean": fmean(values) if values else None,
        f"{name}_std": stdev(values) if len(values) > 1 else None,
    }


def _rank(row: Mapping[str, Any], columns: Sequence[str]) -> tuple[bool, float, float, str]:
    return (
        not row["num_done"],
        -(row["val_accuracy_mean"] or 0.0),
        row["val_loss_mean"] or 0.0,
        _text([row[name] for name in columns]),
    )


def _text(values: Sequence[Any]) -> str:
    return json.dumps(values, default=str)


def print_leaderboard(
    board: Sequence[Mapping[str, Any]], columns: Sequence[str], *, title: str | None = None, limit: int = 20
) -> None:
    """Prints the best settings: at most `limit` rows of leaderboard() or test_leaderboard()."""
    has_test = any("accuracy_mean" in row for row in board)
    names = [
        "",
        *(name.replace("_", " ") for name in columns),
        "runs",
        "val accuracy",
        "val loss",
        "best epoch",
        "seconds a run",
    ]
    names += ["test accuracy", "test log loss"] if has_test else []
    lines = [
        [
            str(place),
            *(setting_text(row[name]) for name in columns),
            _runs_text(row),
            _mean_text(row, "val_accuracy"),
            _number_text(row["val_loss_mean"], 4),
            _number_text(row["best_epoch_mean"], 1),
            _number_text(row["seconds_mean"], 1),
            *([_mean_text(row, "accuracy"), _number_text(row.get("log_loss_mean"), 4)] if has_test else []),
        ]
        for place, row in enumerate(board[:limit], start=1)
    ]
    optional = ("runs", "test log loss", "val loss", "best epoch", "seconds a run")
    print_table(names, lines, title=title, width=READING_WIDTH, optional=optional)
    rest = f"; {len(board) - limit} more settings follow" if len(board) > limit else ""
    print_text(f"Ranked by mean validation accuracy of the best epochs; ± is the standard deviation over seeds{rest}.")


def _mean_text(row: Mapping[str, Any], name: str) -> str:
    mean, deviation = row.get(f"{name}_mean"), row.get(f"{name}_std")
    return _number_text(mean, 4) if deviation is None else f"{mean:.4f} ± {deviation:.4f}"


def _number_text(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _runs_text(row: Mapping[str, Any]) -> str:
    done = f"{row['num_done']}/{row['num_runs']}" if row["num_done"] < row["num_runs"] else str(row["num_runs"])
    return f"{done}, {row['num_diverged']} diverged" if row["num_diverged"] else done
