"""The charts of a page, from its settings and the tables of the evaluation; the best setting comes first."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.report import limits, plots
from mnist_ray.report.charts import Chart
from mnist_ray.report.page_settings import PageSetting

# Rows of a table.
_Rows = Sequence[Mapping[str, Any]]


def accuracy_chart(settings: Sequence[PageSetting], *, split: str) -> Chart:
    """Returns the chart of each seed's accuracy on a split, with the mean and its interval."""
    shown = settings[: limits.SETTINGS]
    return plots.accuracies(
        {one.label: [row["accuracy"] for row in one.runs.values()] for one in shown},
        intervals={one.label: (one.summary["accuracy_low"], one.summary["accuracy_high"]) for one in shown},
        split=split,
        covers="other seeds and other examples" if len(settings[0].runs) > 1 else "other examples",
    )


def gap_chart(settings: Sequence[PageSetting]) -> Chart:
    """Returns the chart of training and validation accuracy at the kept epoch."""
    shown = settings[: limits.SETTINGS]
    return plots.gaps({one.label: (one.kept_mean("train_accuracy"), one.kept_mean("val_accuracy")) for one in shown})


def loss_charts(settings: Sequence[PageSetting], curves: _Rows) -> list[Chart]:
    """Returns a chart of the losses by epoch for each setting, all on one scale."""
    shown = settings[: limits.CURVES]
    of_settings = [_losses(setting, curves) for setting in shown]
    losses = np.concatenate([values.ravel() for epochs in of_settings for values in epochs.values()])
    # A logarithmic scale has no zero.
    low, high = max(float(np.nanmin(losses)), 1e-4), float(np.nanmax(losses))
    return [
        plots.learning_curves(
            f"loss-{place:02d}",
            setting.label,
            epochs,
            best=fmean(row["epoch"] for row in setting.kept),
            limits=(low / 1.15, high * 1.15),
        )
        for place, (setting, epochs) in enumerate(zip(shown, of_settings, strict=True))
    ]


def _losses(setting: PageSetting, curves: _Rows) -> dict[str, NDArray[np.float64]]:
    """Returns train_loss and val_loss, float64 [seeds, epochs], NaN after a run's last epoch."""
    of_runs = [[row for row in curves if row["run"] == run] for run in setting.run_names]
    epochs = {}
    for name in ("train_loss", "val_loss"):
        epochs[name] = np.full((len(of_runs), max(map(len, of_runs))), np.nan)
        for seed, rows in enumerate(of_runs):
            epochs[name][seed, : len(rows)] = [row[name] for row in rows]
    return epochs


def confusion_charts(
    settings: Sequence[PageSetting],
    confusions: Sequence[NDArray[np.int64]],
    class_names: Sequence[str],
    *,
    places: Sequence[int],
) -> list[Chart]:
    """Returns the confusion matrices of some settings, side by side: all as counts, then all as shares.

    Args:
      confusions: int64 [classes, classes] of each setting.
      places: indices of the classes to show.
    """
    return [
        plots.confusion(
            f"confusion-{number}-{kind}", setting.label, counts, class_names, places=places, normalized=kind == "shares"
        )
        for kind in ("counts", "shares")
        for number, (setting, counts) in enumerate(zip(settings, confusions, strict=True))
    ]


def reliability_charts(settings: Sequence[PageSetting], calibration: _Rows) -> list[Chart]:
    """Returns the accuracy by confidence of some settings, from the rows of the table calibration."""
    charts = []
    for number, setting in enumerate(settings):
        bins: dict[float, list[Mapping[str, Any]]] = {}
        for row in calibration:
            if row["run"] in setting.run_names:
                bins.setdefault(row["confidence_low"], []).append(row)
        pooled = [_pooled(rows) for _, rows in sorted(bins.items())]
        charts.append(plots.reliability(f"reliability-{number}", setting.label, pooled, setting.mean("ece")))
    return charts


def _pooled(rows: _Rows) -> dict[str, Any]:
    """Returns one bin of the calibration, all runs together."""
    count = sum(row["count"] for row in rows)
    filled = [row for row in rows if row["count"]]
    return {
        **{name: rows[0][name] for name in ("confidence_low", "confidence_high")},
        "count": count,
        **{
            name: sum(row["count"] * row[name] for row in filled) / count if count else None
            for name in ("mean_confidence", "accuracy")
        },
    }
