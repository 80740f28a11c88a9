"""Paths of each kind of result, relative to the storage.

<storage>/runs/<run>/            see RunFolder
          grids/<grid>/          see GridFolder
          evaluations/<name>/    see EvaluationFolder
          reports/<evaluation>/  report.html, plots/, and a folder for each of the tables comparisons and effects
          predictions/<name>/    a folder for each of its tables, _manifest.json, _SUCCESS
"""

# In the folder of a run or grid: where trackers have it.
LOGGED = "logged"
# In a local storage: the tables of `mnist-ray publish`, which no listing of results reads.
LAKE = "lake"
# Names the evaluation that began last, where one is asked for.
LATEST = "latest"
# The page of a report.
PAGE = "report.html"
RUNS, GRIDS, EVALUATIONS, REPORTS, PREDICTIONS = "runs", "grids", "evaluations", "reports", "predictions"


def part_path(table: str, number: str = "0") -> str:
    """Returns the path of a part of a table in the folder of what it belongs to; each table has a folder."""
    return f"{table}/part-{number}.parquet"


def part_of_shard(table: str, shard: int) -> str:
    """Returns the path of a shard's part of a table; the parts sort as the shards do."""
    return part_path(table, f"{shard:05d}")


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
