"""Paths of each kind of result, relative to the storage.

<storage>/runs/<run>/            see RunFolder
          grids/<grid>/          see GridFolder
          evaluations/<name>/    see EvaluationFolder
          reports/<evaluation>/  report.html, plots/, comparisons.parquet, effects.parquet
          predictions/<name>/    the parts, _manifest.json, _SUCCESS
"""

RUNS, GRIDS, EVALUATIONS, REPORTS, PREDICTIONS = "runs", "grids", "evaluations", "reports", "predictions"


def run_path(run: str, *parts: str) -> str:
    """Returns a path in a run's folder."""
    return "/".join((RUNS, run, *parts))


def grid_path(grid: str, *parts: str) -> str:
    """Returns a path in a grid's folder."""
    return "/".join((GRIDS, grid, *parts))


def evaluation_path(evaluation: str, *parts: str) -> str:
    """Returns a path in an evaluation's folder."""
    return "/".join((EVALUATIONS, evaluation, *parts))


def report_path(evaluation: str, *parts: str) -> str:
    """Returns a path in the folder of an evaluation's report."""
    return "/".join((REPORTS, evaluation, *parts))


def prediction_path(name: str, *parts: str) -> str:
    """Returns a path in a prediction's folder."""
    return "/".join((PREDICTIONS, name, *parts))
