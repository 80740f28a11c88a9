"""The settings of an evaluation with their runs and predictions, as the statistics need them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mnist_ray.analysis.blocks import Blocks, Scores, make_blocks
from mnist_ray.errors import DataError
from mnist_ray.report.evaluated_runs import evaluated_runs
from mnist_ray.report.setting_names import Runs, group_settings
from mnist_ray.results.evaluation_folder import EvaluationFolder
from mnist_ray.text.sizes import count_text


@dataclass(frozen=True)
class EvaluatedSettings:
    """The settings of an evaluation.

    Attributes:
      rows: the runs, see `evaluated_runs`.
      groups: name of a setting -> seed -> row, see `group_settings`; the first is the reference.
      scores: of the same settings, in the same order.
    """

    rows: list[dict[str, Any]]
    groups: Mapping[str, Runs]
    scores: list[Scores]

    @cached_property
    def blocks(self) -> Blocks:
        """The settings and seeds of which no run is missing."""
        return make_blocks(self.scores)

    @property
    def num_repeated(self) -> int:
        """Runs left out because another run of the same setting has the same seed."""
        return len(self.rows) - sum(map(len, self.groups.values()))

    def where(self, is_used: Callable[[Mapping[str, Any]], bool]) -> "EvaluatedSettings":
        """Returns the settings of some of the runs."""
        rows = [row for row in self.rows if is_used(row)]
        if len(rows) == len(self.rows):
            return self
        groups, scores = {}, []
        for (label, runs), of_setting in zip(self.groups.items(), self.scores, strict=True):
            used = [place for place, row in enumerate(runs.values()) if is_used(row)]
            if used:
                scores.append(of_setting.take(used))
                groups[label] = {seed: runs[seed] for seed in scores[-1].seeds}
        return EvaluatedSettings(rows, groups, scores)


def left_out(blocks: Blocks) -> str | None:
    """Returns the settings and seeds outside the blocks, in words; None if nothing is left out."""
    settings, seeds = blocks.settings_left_out, blocks.seeds_left_out
    parts = [f"{count_text(len(settings), 'setting')} ({_some(settings)})"] if settings else []
    parts += [f"seed{'s' if len(seeds) > 1 else ''} {_some(seeds)}"] if seeds else []
    return " and ".join(parts) or None


def repeated_words(num_repeated: int) -> str:
    """Returns how many runs repeat another one, such as `2 runs repeat the settings and seed of another run`."""
    verb = "repeats" if num_repeated == 1 else "repeat"
    return f"{count_text(num_repeated, 'run')} {verb} the settings and seed of another run"


def _some(names: Sequence[object]) -> str:
    return "; ".join(map(str, names[:5])) + ("; ..." if len(names) > 5 else "")


def read_settings(folder: EvaluationFolder) -> EvaluatedSettings:
    """Reads the settings of an evaluation, and the part files of its predictions one by one.

    Raises:
      DataError: the evaluation is damaged.
      StorageError: it can't be read.
    """
    rows = evaluated_runs(folder)
    groups = group_settings(rows)
    places = {run: place for place, run in enumerate(folder.runs)}
    shape = len(places), folder.num_examples
    correct: NDArray[np.bool_] = np.zeros(shape, dtype=np.bool_)
    loss: NDArray[np.float32] = np.full(shape, np.nan, dtype=np.float32)
    read = np.zeros(shape, dtype=np.bool_)
    for part in folder.parts("predictions", columns=["run", "example_index", "correct", "loss"]):
        runs = part["run"].combine_chunks()
        places_of_runs = np.array([places[run] for run in runs.dictionary.to_pylist()], dtype=np.int64)
        where = places_of_runs[runs.indices.to_numpy()], part["example_index"].to_numpy()
        correct[where], loss[where], read[where] = part["correct"].to_numpy(), part["loss"].to_numpy(), True
    if missing := int((~read).sum()):
        raise DataError(f"{folder.uri}: {missing} predictions of {read.size} are missing; evaluate again")
    of_settings = {label: [places[row["run"]] for row in runs.values()] for label, runs in groups.items()}
    scores = [Scores(label, tuple(groups[label]), correct[some], loss[some]) for label, some in of_settings.items()]
    return EvaluatedSettings(rows, groups, scores)
