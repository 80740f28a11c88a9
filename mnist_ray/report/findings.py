"""Everything that an evaluation's report says about its settings, computed once."""

from dataclasses import dataclass

from mnist_ray.analysis.estimates import MARGIN
from mnist_ray.report.answer import answer
from mnist_ray.report.comparison_report import ComparisonReport, report_comparisons
from mnist_ray.report.evaluated_settings import EvaluatedSettings, read_settings
from mnist_ray.report.grid_report import GridReport, report_grid
from mnist_ray.results.evaluation_folder import EvaluationFolder


@dataclass(frozen=True)
class Findings:
    """The settings of an evaluation, their comparison, the effects of their grid, and the answer in sentences."""

    evaluated: EvaluatedSettings
    comparison: ComparisonReport
    grid: GridReport
    answer: list[str]


def find(folder: EvaluationFolder, *, baseline: str | None = None, margin: float = MARGIN) -> Findings:
    """Computes the findings; stores the table comparisons, and effects for a grid.

    Args:
      baseline: see `report_comparisons`.
      margin: smaller differences of accuracy, a fraction, don't matter.

    Raises:
      CheckpointError: the evaluation's grid is damaged.
      ConfigError: no such baseline.
      DataError: the evaluation is damaged.
      StorageError: the storage can't be read or written.
    """
    evaluated = read_settings(folder)
    comparison = report_comparisons(folder, evaluated, baseline=baseline, margin=margin)
    grid = report_grid(folder, evaluated, margin=margin)
    return Findings(evaluated, comparison, grid, answer(comparison, grid, evaluated.groups))
