"""Seconds to publish 20 evaluations as Iceberg and Delta tables, and to read them back.

The evaluations are of one run, trained for an epoch on scikit-learn's digits. Each command has its own process and is
timed from start to exit; the readers are timed in this one, over all rows and columns of predictions:

  publish     mnist-ray publish of all evaluations; again: the same when nothing is new
  scan        pyiceberg's scan into Arrow
  duckdb      DuckDB over the files that the scan names
  deltalake   deltalake's table into Arrow

`python benchmarks/publish.py` prints the table on stdout.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import duckdb
from deltalake import DeltaTable
from pyiceberg.catalog.sql import SqlCatalog


def mnist_ray(*arguments: str) -> float:
    """Runs a command and returns its seconds."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "mnist_ray", *arguments], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def timed(read: Callable[[], int]) -> dict[str, float]:
    """Returns the rows that were read, and the seconds."""
    began = time.perf_counter()
    rows = read()
    return {"rows": rows, "seconds": time.perf_counter() - began}


def measure(storage: str, num_evaluations: int) -> dict[str, Any]:
    """Makes, publishes and reads the evaluations."""
    at = ("--storage", storage)
    mnist_ray("train", "--dataset", "digits", "--epochs", "1", "--name", "run", *at)
    for number in range(num_evaluations):
        mnist_ray("evaluate", "--run", "run", "--name", f"e{number}", "--no-report", *at)
    results: dict[str, Any] = {}
    for kind in ("iceberg", "delta"):
        results[f"{kind}: publish"] = {"seconds": mnist_ray("publish", "--to", kind, *at)}
        results[f"{kind}: again"] = {"seconds": mnist_ray("publish", "--to", kind, *at)}
    lake = f"{storage}/lake"
    catalog = SqlCatalog("mnist_ray", uri=f"sqlite:///{lake}/iceberg/catalog.db", warehouse=f"{lake}/iceberg")
    table = catalog.load_table("mnist_ray.predictions")
    files = [task.file.file_path for task in table.scan().plan_files()]
    results["iceberg: scan"] = timed(lambda: int(table.scan().to_arrow().num_rows))
    connection: Any = duckdb.connect()
    results["iceberg: duckdb"] = timed(lambda: len(connection.sql(f"FROM read_parquet({files})").to_arrow_table()))
    results["delta: deltalake"] = timed(lambda: DeltaTable(f"{lake}/delta/predictions").to_pyarrow_table().num_rows)
    return results


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--evaluations", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = measure(f"{folder}/s", arguments.evaluations)
    if arguments.json:
        print(json.dumps(results))
        return
    for name, figures in results.items():
        print(f"{name:<18}{figures['seconds']:>8.2f} s  {figures.get('rows', ''):>9}")


if __name__ == "__main__":
    main()
