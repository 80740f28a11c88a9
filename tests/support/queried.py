"""An evaluation that the tests of `query` ask, and the queries of docs/queries.md."""

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mnist_ray.report.query import query_evaluations
from mnist_ray.results.evaluation_folder import open_evaluation
from mnist_ray.storage.storage import open_storage

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs/queries.md").read_text()
QUERIES = {
    int(number): sql for number, sql in re.findall(r"^## (\d+)\. [^#]*?```sql\n(.*?)```", DOCUMENT, re.DOTALL | re.M)
}
SETTING = ["dropout", "batch_norm", "weight_decay"]


@dataclass(frozen=True)
class Evaluated:
    """A committed evaluation of a grid: 8 settings x 2 seeds on the 355 test digits, in four part files."""

    storage: str
    name: str

    def query(self, sql: str, *more: str) -> pd.DataFrame:
        """Asks this evaluation, and more of the same storage."""
        storage = open_storage(self.storage)
        with query_evaluations(storage, [open_evaluation(storage, name) for name in (self.name, *more)], sql) as answer:
            return pd.DataFrame(list(answer.rows), columns=list(answer.columns))

    def table(self, name: str) -> pd.DataFrame:
        """The table as plain Parquet files, without the code under test."""
        folder = Path(self.storage) / "evaluations" / self.name
        return pd.concat(pd.read_parquet(file) for file in sorted(folder.glob(f"{name}/*.parquet")))

    def joined(self, name: str) -> pd.DataFrame:
        settings = self.table("metrics")[["run", "seed", *SETTING]]
        return self.table(name).astype({"run": str}).merge(settings.astype({"run": str}), on="run")
