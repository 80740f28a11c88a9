"""The settings of a grid, ranked by validation accuracy over their seeds."""

import json
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from mnist_ray.config import TrainConfig
from mnist_ray.printing import print_table
from mnist_ray.tables import config_columns

_SETTINGS = tuple(name for name in config_columns([TrainConfig()]) if name != "seed")


def leaderboard(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Groups the rows of a runs table by all settings but the seed.

    Args:
      rows: rows of a runs table.
      columns: the settings that are shown, such as the axes of the grid.

    Returns:
      A row for each group: the shown settings; num_runs and num_done (with a best checkpoint); mean and standard
      deviation (of a sample; None for one run) of best_val_accuracy, and the means of best_val_loss and best_epoch,
      over the runs that are done. The highest mean accuracy comes first, then the lowest loss; groups without any
      run that is done come last.
    """
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(_text([row[name] for name in _SETTINGS]), []).append(row)
    board = [_summary(group, columns) for group in groups.values()]
    return sorted(board, key=lambda row: _rank(row, columns))


def _summary(group: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> dict[str, Any]:
    done = [row for row in group if row["checkpoint"] is not None]
    accuracies = [row["best_val_accuracy"] for row in done]
    return {
        **{name: group[0][name] for name in columns},
        "num_runs": len(group),
        "num_done": len(done),
        "num_diverged": sum(row["status"] == "diverged" for row in group),
        "val_accuracy_mean": fmean(accuracies) if done else None,
        "val_accuracy_std": stdev(accuracies) if len(done) > 1 else None,
        "val_loss_mean": fmean(row["best_val_loss"] for row in done) if done else None,
        "best_epoch_mean": fmean(row["best_epoch"] for row in done) if done else None,
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
    board: Sequence[Mapping[str, Any]], columns: Sequence[str], *, limit: int = 20, more: Sequence[str] = ()
) -> None:
    """Prints the best settings.

    Args:
      board: rows of leaderboard().
      columns: the settings that are shown.
      limit: most rows.
      more: further columns of the board, printed as they are.
    """
    names = ["", *columns, "runs", "val accuracy", "val loss", "best epoch", *more]
    lines = [
        [
            str(place),
            *(setting_text(row[name]) for name in columns),
            _runs_text(row),
            mean_text(row["val_accuracy_mean"], row["val_accuracy_std"]),
            "-" if row["val_loss_mean"] is None else f"{row['val_loss_mean']:.4f}",
            "-" if row["best_epoch_mean"] is None else f"{row['best_epoch_mean']:.1f}",
            *(str(row[name]) for name in more),
        ]
        for place, row in enumerate(board[:limit], start=1)
    ]
    print_table(names, lines)
    rest = f"; {len(board) - limit} more settings follow" if len(board) > limit else ""
    print(f"Ranked by mean validation accuracy of the best epochs; +- is the standard deviation over seeds{rest}.")


def setting_text(value: Any) -> str:
    """Returns a setting as a person would write it on the command line."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def mean_text(mean: float | None, deviation: float | None) -> str:
    """Returns '0.9812 +- 0.0012', without the deviation where there is none."""
    if mean is None:
        return "-"
    return f"{mean:.4f}" if deviation is None else f"{mean:.4f} +- {deviation:.4f}"


def _runs_text(row: Mapping[str, Any]) -> str:
    done = f"{row['num_done']}/{row['num_runs']}" if row["num_done"] < row["num_runs"] else str(row["num_runs"])
    return f"{done}, {row['num_diverged']} diverged" if row["num_diverged"] else done
