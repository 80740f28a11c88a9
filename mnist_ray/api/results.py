"""What a storage holds, as objects: runs, grids, evaluations and predictions.

An object is a name and a storage, and reads what it is asked for. Those of earlier commands, also of the launcher's,
are made by hand: `Grid("regularization-digits", "s3://bucket/results")`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from mnist_ray.analysis.leaderboard import leaderboard
from mnist_ray.api.calling import call
from mnist_ray.api.checks import check_choice, share_of_points
from mnist_ray.errors import CheckpointError
from mnist_ray.grids.grid import shown_settings
from mnist_ray.results import parquet
from mnist_ray.results.evaluation_folder import EvaluationFolder, find_evaluation, table_files
from mnist_ray.results.grid_folder import GridFolder
from mnist_ray.results.history import EpochResult, best_epoch
from mnist_ray.results.paths import PAGE, grid_path, prediction_path, report_path, run_path
from mnist_ray.results.run_documents import config_in, read_run_document
from mnist_ray.results.run_progress import history_table, read_history
from mnist_ray.results.schemas import EVALUATION_TABLES, REPORT_TABLES, TABLES
from mnist_ray.storage.storage import open_storage

if TYPE_CHECKING:
    from torch import Tensor, nn

STORAGE = "results"


@dataclass(frozen=True)
class Run:
    """A run: one network, trained by one config.

    Attributes:
      name: name of the run.
      storage: URI of the storage that has it.
      code: code of the user's own network, as for --code.
      already_done: whether it was finished before the call that returned it, which trained nothing then.
    """

    name: str
    storage: str = STORAGE
    code: tuple[str, ...] = ()
    already_done: bool = True

    @property
    def uri(self) -> str:
        """URI of the run's folder."""
        return open_storage(self.storage).uri_of(run_path(self.name))

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting of the run, by its name in the config."""
        document = read_run_document(open_storage(self.storage), self.name)
        return config_in(document, f"run {self.name!r}: config.json").model_dump(mode="json")

    @cached_property
    def _epochs(self) -> tuple[EpochResult, ...]:
        epochs = read_history(open_storage(self.storage), self.name)
        if not epochs:
            raise CheckpointError(f"run {self.name!r}: has no epoch in {self.storage}")
        return epochs

    @property
    def _best(self) -> EpochResult:
        return self._epochs[best_epoch(self._epochs) - 1]

    @property
    def history(self) -> pa.Table:
        """The table history: a row per epoch."""
        return history_table(self.name, self._epochs)

    @property
    def best_epoch(self) -> int:
        """The epoch with the lowest validation loss, whose weights are kept."""
        return self._best.epoch

    @property
    def val_accuracy(self) -> float:
        """Validation accuracy of the best epoch, a fraction."""
        return self._best.val_accuracy

    @property
    def val_loss(self) -> float:
        """Validation loss of the best epoch, in nats."""
        return self._best.val_loss

    def state_dict(self) -> "dict[str, Tensor]":
        """Returns the weights of the best epoch, by the names of the plain torch network."""
        from mnist_ray.results.run_folder import RunFolder

        return RunFolder(open_storage(self.storage), self.name).best().model

    def network(self) -> "nn.Module":
        """Returns the network with the weights of the best epoch, in evaluation mode.

        It takes pixels, float32 [batch, channels, height, width] from 0 to 255, normalizes them as in training, and
        returns logits [batch, classes].

        Raises:
          CheckpointError: the run is not finished, or damaged; or the code of its own network has changed.
          ConfigError: the code is not given.
        """
        from mnist_ray.evaluation.inference import load_network
        from mnist_ray.export.formats import PixelNetwork
        from mnist_ray.results.run_folder import RunFolder

        with call(quiet=True, code=self.code):
            checkpoint = RunFolder(open_storage(self.storage), self.name).best()
            mean, std = checkpoint.normalization
            return PixelNetwork(load_network(checkpoint), mean=mean, std=std).eval()


@dataclass(frozen=True)
class Grid:
    """A grid of runs: every combination of some settings' values with every seed, or a search.

    Attributes:
      name: name of the grid.
      storage: URI of the storage that has it.
      code: code of the user's own network, as for --code.
      num_trained: runs that the call that returned it has trained; the others were done before.
      answer: for a grid that grew until it was settled or its budget was used, what came of it, in sentences.
    """

    name: str
    storage: str = STORAGE
    code: tuple[str, ...] = ()
    num_trained: int = 0
    answer: tuple[str, ...] = ()

    @property
    def uri(self) -> str:
        """URI of the grid's folder."""
        return open_storage(self.storage).uri_of(grid_path(self.name))

    @cached_property
    def runs(self) -> pa.Table:
        """The table runs: a row per run, in the grid's order."""
        return GridFolder(open_storage(self.storage), self.name).runs_table()

    @property
    def leaderboard(self) -> pa.Table:
        """A row per setting, ranked by its mean validation accuracy over the seeds."""
        shown = shown_settings(GridFolder(open_storage(self.storage), self.name).settings())
        return table_of(leaderboard(self.runs.to_pylist(), shown))

    @property
    def best_run(self) -> Run:
        """The run with the highest validation accuracy.

        Raises:
          CheckpointError: none is finished.
        """
        done = [row for row in self.runs.to_pylist() if row["checkpoint"] is not None]
        if not done:
            raise CheckpointError(f"grid {self.name!r}: no finished run")
        best = max(done, key=lambda row: (row["best_val_accuracy"], row["run"]))
        return Run(best["run"], self.storage, self.code)


@dataclass(frozen=True)
class Evaluation:
    """A committed evaluation of some runs on one split.

    Attributes:
      name: its name; made by hand, also the beginning of its name, or latest.
      storage: URI of the storage that has it.
      already_done: whether it was there before the call that returned it, which computed nothing then.
    """

    name: str
    storage: str = STORAGE
    already_done: bool = True

    @cached_property
    def _folder(self) -> EvaluationFolder:
        return find_evaluation(open_storage(self.storage), self.name)

    @property
    def uri(self) -> str:
        """URI of its folder, which holds a folder of Parquet files for each table."""
        return self._folder.uri

    @property
    def facts(self) -> dict[str, Any]:
        """Its data set, split, grid, runs and classes, and the number of images."""
        folder = self._folder
        facts = {**folder.facts, "grid": folder.grid, "runs": folder.runs, "class_names": folder.class_names}
        return {**facts, "num_examples": folder.num_examples, "evaluated_at": folder.evaluated_at}

    @property
    def report(self) -> str | None:
        """URI of its page; None if there is none, see write_report."""
        page = report_path(self._folder.name, PAGE)
        return self._folder.storage.uri_of(page) if self._folder.storage.exists(page) else None

    def table(self, name: str, *, columns: Sequence[str] | None = None) -> pa.Table:
        """Returns a table of the evaluation or of its report, checked against its SHA-256 or its checksums.

        Args:
          name: predictions, metrics, per_class, confusion, calibration, learning_curves, images or lineage; effects
            or comparisons, without rows before the evaluation was compared.
          columns: to read; all by default.
        """
        check_choice("table", name, (*EVALUATION_TABLES, *REPORT_TABLES))
        if name in REPORT_TABLES:
            stored = self._folder.reported(name)
            table = TABLES[name].schema(code_version="").empty_table() if stored is None else stored
            return table if columns is None else table.select(list(columns))
        return self._folder.table(name, columns=columns)

    def write_report(self, *, margin: float = 0.5, quiet: bool = True) -> str:
        """Writes the page report.html, its charts and the tables comparisons and effects, and returns the page's URI.

        Args:
          margin: differences of accuracy up to this many points don't matter.
          quiet: see train.
        """
        from mnist_ray.report.page import report_evaluation

        with call(quiet=quiet):
            return report_evaluation(self._folder, margin=share_of_points("margin", margin)).uri


@dataclass(frozen=True)
class Comparison:
    """What an evaluation says about its settings.

    Attributes:
      evaluation: what was compared.
      sentences: the answer: which settings help, by how much and how sure that is, and which may be the best.
      settings: a row per setting, the best mean accuracy first.
      comparisons: the table comparisons: the pairs of settings, each with its verdict.
      effects: the table effects: those of the levels of a grid's axes; no rows without a grid.
      note: what the effects leave out or assume; None if nothing.
    """

    evaluation: Evaluation
    sentences: tuple[str, ...]
    settings: pa.Table
    comparisons: pa.Table
    effects: pa.Table
    note: str | None

    def __str__(self) -> str:
        if self.settings.num_rows == 1:
            return "One setting: nothing to compare."
        return "\n".join(self.sentences)


@dataclass(frozen=True)
class Prediction:
    """Committed predictions for the user's own images.

    Attributes:
      name: their name.
      storage: URI of the storage that has them.
      already_done: whether the same predictions were there before.
    """

    name: str
    storage: str = STORAGE
    already_done: bool = True

    @property
    def uri(self) -> str:
        """URI of their folder."""
        return open_storage(self.storage).uri_of(prediction_path(self.name))

    @cached_property
    def _manifest(self) -> Mapping[str, Any]:
        manifest = open_storage(self.storage).read_manifest(prediction_path(self.name))
        if manifest is None:
            raise CheckpointError(f"predictions {self.name!r}: not in {self.storage}")
        return manifest

    @property
    def facts(self) -> dict[str, Any]:
        """Its run, images and classes, the numbers of images, and the accuracy where all images are labelled."""
        hidden = ("files", "volatile", "content_hash", "predictions")
        return {name: value for name, value in self._manifest.items() if name not in hidden}

    def table(self, name: str = "image_predictions") -> pa.Table:
        """Returns the table image_predictions, a row per image, or image_errors, a row per unreadable one."""
        check_choice("table", name, files := table_files(self._manifest))
        storage, folder = open_storage(self.storage), prediction_path(self.name)
        parts = (parquet.read_parquet(storage.read_committed(folder, file), source=file) for file in files[name])
        return pa.concat_tables(parts)


def table_of(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Returns rows as an Arrow table."""
    # The arguments of own networks may be of several types.
    mixed = {name for name in (rows[0] if rows else ()) if len({type(row[name]) for row in rows} - {type(None)}) > 1}
    return pa.Table.from_pylist(
        [{name: json.dumps(value) if name in mixed else value for name, value in row.items()} for row in rows]
    )
