"""Computes and stores the effects of a grid's settings."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from mnist_ray.analysis.effects import ADDITIVE, Axes, Effect, blocks_of_effects, effects
from mnist_ray.analysis.estimates import MARGIN
from mnist_ray.analysis.sizes import Sizes
from mnist_ray.report.comparison_report import store_rows
from mnist_ray.report.evaluated_settings import EvaluatedSettings, left_out, repeated_words
from mnist_ray.report.size_report import report_sizes
from mnist_ray.results.columns import setting_in
from mnist_ray.results.evaluation_folder import EvaluationFolder
from mnist_ray.results.grid_folder import GridFolder


@dataclass(frozen=True)
class GridReport:
    """The effects of an evaluation's grid.

    Attributes:
      grid: name of the grid; None if no grid was evaluated, or it is missing.
      effects: main effects and interactions; empty without a grid, or with only one setting.
      axes: the grid's settings that vary.
      seconds_per_seed: that one worker trained the settings for one seed; None if unknown.
      uri: of the stored table effects; None without effects.
      note: why there are no effects, or what they leave out; None if neither.
      sizes: accuracy against training images; None without an axis over their number.
    """

    grid: str | None
    effects: list[Effect] = field(default_factory=list)
    axes: Axes = Axes({})  # noqa: RUF009 - frozen
    seconds_per_seed: float | None = None
    uri: str | None = None
    note: str | None = None
    sizes: Sizes | None = None


def report_grid(folder: EvaluationFolder, evaluated: EvaluatedSettings, *, margin: float = MARGIN) -> GridReport:
    """Computes the effects of an evaluation's grid and stores them in the folder of its report.

    Args:
      margin: smaller differences of accuracy, a fraction, don't matter.

    Raises:
      CheckpointError: its grid is damaged.
      StorageError: the storage can't be read or written.
    """
    grid = folder.grid
    if grid is None:
        note = "effects: the evaluation is not of a grid; they need mnist-ray evaluate --grid NAME"
        return GridReport(None, note=note)
    folder_of_grid = GridFolder(folder.storage, grid)
    document = folder_of_grid.document()
    if document is None:
        # An evaluation may be copied without its grid; only the effects need it.
        note = f"effects: grid {grid!r}, which defines the axes, is not in {folder.storage.uri}"
        return GridReport(None, note=note)
    settings = folder_of_grid.settings()
    axes = Axes(settings.axes, settings.ranges, (document["search"] or {}).get("kind") == "optuna")
    # A scheduler stops runs depending on the others, so stopped runs would not be a fair comparison.
    whole = evaluated.where(lambda row: not row["was_stopped"])
    computed: list[Effect] = []
    sizes: Sizes | None = None
    without: str | None = None
    if len(whole.scores) > 1:
        firsts = [next(iter(runs.values())) for runs in whole.groups.values()]
        values = [{axis: setting_in(row, axis) for axis in (*axes.levels, *axes.ranges)} for row in firsts]
        blocks = blocks_of_effects(whole.blocks, values, axes)
        computed, without = effects(blocks, values, axes, margin=margin), left_out(blocks)
        sizes = report_sizes(whole, blocks, axes)
    said = _note(len(evaluated.rows) - len(whole.rows), computed, whole, axes, without)
    uri = store_rows(folder, "effects", _columns(computed, grid)) if computed else None
    seconds = [row["seconds"] for row in folder_of_grid.read_runs()]
    per_seed = fmean(seconds) * len(evaluated.groups) if seconds else None
    return GridReport(grid, computed, axes, per_seed, uri, said, sizes)


def _note(
    num_stopped: int, computed: Sequence[Effect], whole: EvaluatedSettings, axes: Axes, without: str | None
) -> str | None:
    """Returns what the effects leave out or assume; None if nothing."""
    stopped = "run that was" if num_stopped == 1 else f"{num_stopped} runs that were"
    clauses = [f"without the {stopped} stopped early"] if num_stopped else []
    if computed and without:
        clauses.append(f"without {without}, because not all settings have all seeds")
    if whole.num_repeated:
        clauses.append(f"{repeated_words(whole.num_repeated)}; the first by name counts")
    if any(effect.model == ADDITIVE for effect in computed):
        lack = "a search draws from ranges" if axes.ranges else "not all combinations have all their runs"
        clauses.append(f"an additive model without interactions, because {lack}")
    if axes.follows_results and computed:
        clauses.append("the settings were chosen by results, so the effects are descriptive only")
    if not computed and len(whole.scores) > 1:
        clauses.append("none, because the settings with all their runs don't separate the axes")
    return f"effects: {'; '.join(clauses)}" if clauses else None


def _columns(computed: Sequence[Effect], grid: str) -> dict[str, Any]:
    """Returns effects as columns of the effects table, without the evaluation's columns."""
    rows = effect_rows(computed)
    return {"grid": grid, **{name: [row[name] for row in rows] for name in rows[0]}}


def effect_rows(effects: Sequence[Effect]) -> list[dict[str, Any]]:
    """Returns effects as rows of the effects table, without the columns of the evaluation and the grid."""
    return [
        {
            "kind": effect.term.kind,
            "model": effect.model,
            "metric": effect.metric,
            "num_settings": effect.num_settings,
            **asdict(effect.term),
            **asdict(effect.estimate),
        }
        for effect in effects
    ]
