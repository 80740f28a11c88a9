"""An evaluation's settings as its page shows them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from mnist_ray.analysis.comparisons import Comparison
from mnist_ray.report.comparison_report import ComparisonReport


@dataclass(frozen=True)
class PageSetting:
    """A setting on the page; means are over its seeds, rates are fractions.

    Attributes:
      runs: its rows of the metrics table, by seed.
      kept: for each of its runs, the row of learning_curves of the kept epoch.
      against: its comparison with the reference; None for the reference itself and without a common seed.
      summary: its row of ComparisonReport.settings.
    """

    label: str
    runs: Mapping[int, Mapping[str, Any]]
    kept: Sequence[Mapping[str, Any]]
    against: Comparison | None
    summary: Mapping[str, Any]

    def mean(self, name: str) -> float:
        """Returns the mean of a column of the metrics table."""
        return fmean(row[name] for row in self.runs.values())

    def kept_mean(self, name: str) -> float:
        """Returns the mean of a column of learning_curves at the kept epochs."""
        return fmean(row[name] for row in self.kept)

    @property
    def run_names(self) -> list[str]:
        """Names of the runs, in the order of the seeds."""
        return [row["run"] for row in self.runs.values()]


def page_settings(
    groups: Mapping[str, Mapping[int, Mapping[str, Any]]],
    curves: Sequence[Mapping[str, Any]],
    compared: ComparisonReport,
) -> list[PageSetting]:
    """Returns the settings by validation accuracy, then loss, as in the leaderboard.

    If validation can't choose among them, the order is that of ComparisonReport.settings.

    Args:
      groups: label of a setting -> seed -> row of the metrics table; the first setting is the reference.
      curves: rows of the table learning_curves.
    """
    # The reference is the first, and the second of all its pairs.
    pairs = compared.pairs.rows(np.flatnonzero(compared.pairs.seconds == 0)) if compared.pairs else []
    against = {pair.first: pair for pair in pairs}
    kept = {(row["run"], row["epoch"]): row for row in curves}
    summaries = {row["setting"]: row for row in compared.settings}
    settings = [
        PageSetting(
            label, runs, [kept[row["run"], row["epoch"]] for row in runs.values()], against.get(label), summaries[label]
        )
        for label, runs in groups.items()
    ]
    if compared.selection is None:
        return sorted(settings, key=lambda one: list(summaries).index(one.label))
    return sorted(settings, key=lambda one: (-one.mean("best_val_accuracy"), one.mean("best_val_loss"), one.label))
