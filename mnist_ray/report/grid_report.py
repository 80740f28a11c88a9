"""Computes, stores and prints the effects of a grid's settings."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mnist_ray.analysis.effects import Effect, effects, level_text, missing_runs
from mnist_ray.report.comparison_report import group_settings, store_rows
from mnist_ray.report.evaluated_runs import evaluated_runs
from mnist_ray.results.columns import setting_in
from mnist_ray.results.evaluation_folder import EvaluationFolder
from mnist_ray.results.grid_folder import GridFolder
from mnist_ray.text.tables import print_table

_SHOWN_INTERACTIONS = 10


@dataclass(frozen=True)
class GridReport:
    """The effects of an evaluation's grid.

    Attributes:
      grid: name of the grid; None if no grid was evaluated, or it is missing.
      metrics: the evaluation's runs, see `evaluated_runs`.
      effects: main effects and interactions; empty without a grid, or with only one setting.
      uri: of the stored effects.parquet; None without effects.
      note: why there are no effects, or what they leave out; None if neither.
    """

    grid: str | None
    metrics: list[dict[str, Any]]
    effects: list[Effect]
    uri: str | None
    note: str | None = None


def report_grid(folder: EvaluationFolder) -> GridReport:
    """Computes the effects of an evaluation's grid and stores them as reports/<evaluation>/effects.parquet.

    Raises:
      CheckpointError: its grid is damaged.
      StorageError: the storage can't be read or written.
    """
    grid, metrics = folder.grid, evaluated_runs(folder)
    if grid is None:
        why = "effects: the evaluation is not of a grid; they need mnist-ray evaluate --grid NAME"
        return GridReport(None, metrics, [], None, why)
    folder_of_grid = GridFolder(folder.storage, grid)
    if folder_of_grid.document() is None:
        # An evaluation may be copied without its grid; only the effects need it.
        why = f"effects: grid {grid!r}, which defines the axes, is not in {folder.storage.uri}"
        return GridReport(None, metrics, [], None, why)
    settings = folder_of_grid.settings()
    if settings.ranges:
        reason = f"effects: grid {grid!r} is a search over ranges ({', '.join(settings.ranges)}): effects need levels"
        return GridReport(grid, metrics, [], None, reason)
    # A scheduler stops runs depending on the others, so stopped runs would not be a fair comparison.
    whole = [
        {**row, **{axis: setting_in(row, axis) for axis in settings.axes}} for row in metrics if not row["was_stopped"]
    ]
    axes = evaluated_levels(settings.axes, whole)
    note = _left_out(metrics, whole, missing_runs(whole, axes))
    computed = effects(whole, axes)
    if not computed:
        return GridReport(grid, metrics, [], None, note)
    uri = store_rows(folder, "effects", [{**asdict(effect), "grid": grid} for effect in computed])
    return GridReport(grid, metrics, computed, uri, note)


def _left_out(
    metrics: Sequence[Mapping[str, Any]], whole: Sequence[Mapping[str, Any]], missing: str | None
) -> str | None:
    """Returns what the effects leave out; None if nothing."""
    num_stopped = len(metrics) - len(whole)
    num_repeated = len(whole) - sum(map(len, group_settings(whole).values()))
    stopped = f"without the {num_stopped} runs that were stopped early" if num_stopped else None
    repeated = f"{num_repeated} runs repeat the settings and seed of another; the first by name counts"
    clauses = [clause for clause in (stopped, missing, repeated if num_repeated else None) if clause]
    return f"effects: {'; '.join(clauses)}" if clauses else None


def evaluated_levels(axes: Mapping[str, Sequence[Any]], rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Returns the levels of each axis that occur in the rows: the grid may have grown since its evaluation.

    Args:
      axes: setting -> the levels that the grid has now, in order.
      rows: of the metrics table, with each axis as a column.
    """
    seen = {axis: {level_text(row[axis]) for row in rows} for axis in axes}
    return {axis: [level for level in levels if level_text(level) in seen[axis]] for axis, levels in axes.items()}


def print_effects(all_effects: Sequence[Effect]) -> None:
    """Prints the effects on accuracy, in points: main effects setting by setting, then the largest interactions."""
    accuracies = [effect for effect in all_effects if effect.metric == "accuracy"]
    losses = {_key(effect): effect for effect in all_effects if effect.metric == "log_loss"}
    main = [effect for effect in accuracies if effect.kind == "main"]
    interactions = sorted(
        (effect for effect in accuracies if effect.kind == "interaction"), key=lambda effect: -abs(effect.effect)
    )
    names = ["effect of", "against", "accuracy, points", "95 % interval", "p (Holm)", "log loss", "seeds", "pairs"]
    for title, rows in (
        ("Main effects", main),
        ("Interactions: how much the first effect changes with the second", interactions[:_SHOWN_INTERACTIONS]),
    ):
        if rows:
            print_table(names, [_line(effect, losses[_key(effect)]) for effect in rows], title=title)
    if len(interactions) > _SHOWN_INTERACTIONS:
        print(f"{len(interactions) - _SHOWN_INTERACTIONS} smaller interactions are in effects.parquet.")
    if accuracies and accuracies[0].num_seeds < 2:
        print("One seed gives no intervals; use --seeds 5 or more.")
    else:
        print(
            "Intervals: paired t over seeds, for this test set; p: over all effects of the metric, Holm's correction."
        )


def _key(effect: Effect) -> tuple[object, ...]:
    return effect.axis, effect.level, effect.second_axis, effect.second_level


def _line(effect: Effect, loss: Effect) -> list[str]:
    what, against = f"{effect.axis}={effect.level}", effect.reference_level
    if effect.second_axis is not None:
        what += f" x {effect.second_axis}={effect.second_level}"
        against += f" x {effect.second_reference_level}"
    interval = "-"
    if effect.effect_low is not None and effect.effect_high is not None:
        interval = f"{100 * effect.effect_low:+.2f} to {100 * effect.effect_high:+.2f}"
    p_value = "-" if effect.p_adjusted is None else f"{effect.p_adjusted:.3g}"
    return [
        what,
        against,
        f"{100 * effect.effect:+.2f}",
        interval,
        p_value,
        f"{loss.effect:+.4f}",
        str(effect.num_seeds),
        str(effect.num_pairs),
    ]
