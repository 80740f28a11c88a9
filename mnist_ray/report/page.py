"""Writes an evaluation's report as one HTML file, and its charts as files, only from the evaluation's tables."""

import json
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup
from numpy.typing import NDArray

from mnist_ray.analysis.estimates import MARGIN, UNRESOLVED
from mnist_ray.config.settings import TrainConfig
from mnist_ray.evaluation.metrics import class_rates
from mnist_ray.report import glyphs, limits, page_charts
from mnist_ray.report.answer import to_resolve
from mnist_ray.report.charts import Chart
from mnist_ray.report.classification import confused_classes, confusions, frequent_mistakes, weakest_classes
from mnist_ray.report.comparison_text import evidence, family_words, interval_text, p_text, remarks
from mnist_ray.report.effect_charts import effect_charts, heat_maps
from mnist_ray.report.findings import Findings, find
from mnist_ray.report.page_settings import PageSetting, page_settings
from mnist_ray.report.pictures import read_pictures
from mnist_ray.report.setting_names import varying_settings
from mnist_ray.report.size_charts import size_charts
from mnist_ray.results.columns import column_of
from mnist_ray.results.evaluation_folder import EvaluationFolder
from mnist_ray.results.paths import PAGE, report_path
from mnist_ray.results.setting_words import setting_text
from mnist_ray.setting import settings_where
from mnist_ray.text.escape import printable, say_line
from mnist_ray.text.sizes import is_or_are


@dataclass(frozen=True)
class Report:
    """The written report of an evaluation: its findings, and the page's URI."""

    findings: Findings
    uri: str


def report_evaluation(folder: EvaluationFolder, *, margin: float = MARGIN) -> Report:
    """Writes reports/<evaluation>/: report.html, plots/, the table comparisons, and effects for a grid.

    Args:
      margin: see `find`.

    Raises:
      CheckpointError: its grid is damaged.
      DataError: the evaluation is damaged.
      StorageError: the storage can't be read or written.
    """
    findings = find(folder, margin=margin)
    say_line("drawing the report")
    view = View(folder, findings)
    page = view.render().encode()
    if (line := glyphs.note(folder.class_names)) is not None:
        say_line(line)
    # Plots of an earlier report may have other names.
    folder.storage.delete_folder(report_path(folder.name, "plots"))
    for chart in view.charts:
        for suffix, content in ((".svg", chart.svg), (".png", chart.png)):
            folder.storage.write_bytes(report_path(folder.name, "plots", f"{chart.name}{suffix}"), content)
    # Written last, so a page always has its plots.
    folder.storage.write_bytes(report_path(folder.name, PAGE), page)
    return Report(findings, folder.storage.uri_of(report_path(folder.name, PAGE)))


class View:
    """The content of the page, computed once."""

    def __init__(self, folder: EvaluationFolder, findings: Findings) -> None:
        self.folder, self.findings = folder, findings
        self.compared, self.grid = findings.comparison, findings.grid
        self.rows, self.groups = findings.evaluated.rows, findings.evaluated.groups
        self.reference = next(iter(self.groups))
        curves = folder.rows("learning_curves")
        self.settings = page_settings(self.groups, curves, self.compared)
        self.chosen = self.settings[0]
        # Side by side: the chosen setting and the reference.
        self.pictured = [self.chosen, *(one for one in self.settings[1:] if one.label == self.reference)]
        self.class_names = folder.class_names
        self.confusions = confusions(folder, [setting.run_names for setting in self.pictured])
        self.classes_in_table = weakest_classes(self.confusions[0], limits.CLASSES_IN_TABLE)
        self.accuracy_chart = page_charts.accuracy_chart(self.settings, split=folder.split)
        self.gap_chart = page_charts.gap_chart(self.settings)
        self.loss_charts = page_charts.loss_charts(self.settings, curves)
        classes_in_matrix = confused_classes(np.sum(self.confusions, axis=0), limits.CLASSES_IN_MATRIX)
        self.confusion_charts = page_charts.confusion_charts(
            self.pictured, self.confusions, self.class_names, places=classes_in_matrix
        )
        self.reliability_charts = page_charts.reliability_charts(self.pictured, folder.rows("calibration"))
        self.effect_charts = effect_charts(self.grid.effects, split=folder.split)
        self.effect_charts += size_charts(self.grid.sizes, split=folder.split)
        whole = [row for row in self.rows if not row["was_stopped"]]
        self.heat_maps = heat_maps(whole, self.grid.axes.levels, split=folder.split)

    @property
    def charts(self) -> list[Chart]:
        """Every chart of the page."""
        charts = [self.accuracy_chart, self.gap_chart, *self.loss_charts, *self.confusion_charts]
        return [*charts, *self.reliability_charts, *self.effect_charts, *self.heat_maps]

    def render(self) -> str:
        """Returns the page."""
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("mnist_ray.report"),
            autoescape=True,
            finalize=_shown,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters.update(
            points=lambda fraction: _signed(100 * fraction),
            rate=lambda fraction: f"{100 * fraction:.2f}",
            interval=lambda estimate, *arguments: interval_text(estimate, *arguments).replace("-", "−"),
            signed=_signed,
            svg=lambda chart: Markup(chart.inline_svg()),
            value=setting_text,
            p=p_text,
            are=is_or_are,
        )
        manifest, pairs = self.folder.manifest, self.compared.pairs
        return environment.get_template("report.html").render(
            view=self,
            findings=self.findings,
            most_settings=limits.SETTINGS,
            folder=self.folder,
            manifest=manifest,
            made_by=manifest["volatile"].get("made_by"),
            compared=self.compared,
            remarks=remarks(self.findings),
            grid_note=self.grid.note if self.folder.grid else None,
            reference_words=self._reference_words(),
            to_resolve=self._to_resolve(),
            family=family_words(pairs, self.compared.num_pairs) if pairs else "",
            pairs=pairs.rows(evidence(pairs)[: limits.PAIRS]) if pairs else [],
            num_pairs=len(pairs) if pairs else 0,
            varying=self._varying(),
            per_class=self._per_class(),
            mistakes=[self._mistakes(*each) for each in zip(self.pictured, self.confusions, strict=True)],
            runs=self._runs(),
            gallery=read_pictures(self.folder, self.chosen.run_names),
            lineage=_lineage(self.folder),
        )

    def _reference_words(self) -> str:
        """Returns why the reference was chosen; empty for the baseline."""
        variants = {row["variant"] for row in self.groups[self.reference].values()}
        return "" if "baseline" in variants and len(variants) == 1 else ", the first by the values of its settings"

    def _to_resolve(self) -> str:
        """Returns what would resolve the chosen setting's difference from the reference; empty if nothing is open."""
        against = None if self.chosen.against is None else self.chosen.against.accuracy
        if against is None or against.low is None or against.verdict_words != UNRESOLVED:
            return ""
        return to_resolve([against], self.grid, self.folder.num_examples)

    def _varying(self) -> list[str]:
        """Returns the page's settings that differ among the runs, except those in the settings' names."""
        named = varying_settings(self.rows)
        return [
            name
            for name in map(column_of, settings_where(TrainConfig, lambda setting: setting.is_on_page))
            if len({json.dumps(row[name]) for row in self.rows}) > 1 and name not in named
        ]

    def _mistakes(
        self, setting: PageSetting, confusion: NDArray[np.int64]
    ) -> tuple[str, list[tuple[str, str, int]], int]:
        """Returns label, true class, predicted class and count of the most frequent mistakes, and their number."""
        mistakes, names = frequent_mistakes(confusion), self.class_names
        rows = mistakes[: limits.MISTAKES].tolist()
        return (
            setting.label,
            [(names[label], names[predicted], count) for label, predicted, count in rows],
            len(mistakes),
        )

    def _per_class(self) -> list[dict[str, Any]]:
        """Returns precision, recall and F1 of the shown classes, all seeds of the chosen setting together."""
        rates = class_rates(self.confusions[0])
        num_seeds = len(self.chosen.runs)
        return [
            {
                "name": self.class_names[place],
                "precision": rates.precision[place],
                "recall": rates.recall[place],
                "f1": rates.f1[place],
                "support": int(rates.support[place]) // num_seeds,
            }
            for place in self.classes_in_table
        ]

    def _runs(self) -> list[dict[str, Any]]:
        rates = self.folder.table("per_class")
        class_rows = rates.filter(pc.is_in(rates["class"], pa.array(self.classes_in_table))).to_pylist()
        order = {place: number for number, place in enumerate(self.classes_in_table)}
        classes: dict[str, list[dict[str, Any]]] = {}
        for row in sorted(class_rows, key=lambda row: order[row["class"]]):
            classes.setdefault(row["run"], []).append(row)
        places = {
            run: (place, setting.label) for place, setting in enumerate(self.settings) for run in setting.run_names
        }
        # Runs that repeat another run's setting and seed are in no setting.
        rest = (len(self.settings), "another run's setting again")
        rows = sorted(self.rows, key=lambda row: (places.get(row["run"], rest)[0], row["seed"]))
        return [{**row, "setting": places.get(row["run"], rest)[1], "classes": classes[row["run"]]} for row in rows]


def _lineage(folder: EvaluationFolder) -> list[dict[str, Any]]:
    """Returns each distinct origin of runs, with its runs."""
    makers: dict[str, dict[str, Any]] = {}
    for row in folder.rows("lineage"):
        origin = {
            name: row[name]
            for name in (
                *("command_line", "train_code_version", "python", "libraries", "cpu", "num_cpus", "gpu", "os"),
                *("num_workers", "train_data_sha256"),
            )
        }
        maker = makers.setdefault(json.dumps(origin, sort_keys=True), {**origin, "runs": []})
        maker["runs"].append(row)
    return [{**maker, "libraries": json.loads(maker["libraries"])} for maker in makers.values()]


def _signed(value: float, digits: int = 2) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _shown(value: Any) -> Any:
    # Escapes control characters and direction marks in names; the page's own markup is a Markup, not a str.
    return printable(value) if type(value) is str else value
