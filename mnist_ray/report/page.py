"""Writes an evaluation's report as one HTML file, and its charts as files, only from the evaluation's tables."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from markupsafe import Markup
from numpy.typing import NDArray

from mnist_ray.analysis.comparisons import Comparison
from mnist_ray.analysis.leaderboard import setting_text
from mnist_ray.config.settings import TrainConfig
from mnist_ray.evaluation.metrics import class_rates
from mnist_ray.report import glyphs, limits, plots
from mnist_ray.report.charts import Chart
from mnist_ray.report.classification import confused_classes, confusions, frequent_mistakes, weakest_classes
from mnist_ray.report.comparison_report import ComparisonReport, group_settings, report_comparisons
from mnist_ray.report.comparison_text import evidence, notes, p_text, remarks
from mnist_ray.report.effect_charts import effect_charts, heat_maps
from mnist_ray.report.grid_report import GridReport, report_grid
from mnist_ray.report.pictures import read_pictures
from mnist_ray.results.columns import column_of
from mnist_ray.results.evaluation_folder import EvaluationFolder
from mnist_ray.results.paths import report_path
from mnist_ray.setting import settings_where
from mnist_ray.text.escape import printable, say_line

PAGE = "report.html"
# Label of a setting -> seed -> row of the metrics table.
_Groups = dict[str, dict[int, Mapping[str, Any]]]


@dataclass(frozen=True)
class Report:
    """The written report of an evaluation.

    Attributes:
      grid: the effects of a grid's settings.
      uri: of the page.
    """

    grid: GridReport
    uri: str


def report_evaluation(folder: EvaluationFolder) -> Report:
    """Writes reports/<evaluation>/: report.html, plots/, comparisons.parquet, and effects.parquet for a grid.

    Raises:
      CheckpointError: its grid is damaged.
      DataError: the evaluation is damaged.
      StorageError: the storage can't be read or written.
    """
    grid = report_grid(folder)
    view = View(folder, report_comparisons(folder), grid)
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
    return Report(grid, folder.storage.uri_of(report_path(folder.name, PAGE)))


@dataclass(frozen=True)
class _Setting:
    """A setting on the page; means are over its seeds, rates are fractions.

    Attributes:
      label: of the setting.
      runs: its rows of the metrics table, by seed.
      kept: for each of its runs, the row of learning_curves of the kept epoch.
      against: its comparison with the reference; None for the reference itself and without a common seed.
      group: group of ties, see tie_groups.
      interval: ends of the 95 % interval of its accuracy, see accuracy_interval.
    """

    label: str
    runs: Mapping[int, Mapping[str, Any]]
    kept: Sequence[Mapping[str, Any]]
    against: Comparison | None
    group: int
    interval: tuple[float, float]

    def mean(self, name: str) -> float:
        return fmean(row[name] for row in self.runs.values())

    def kept_mean(self, name: str) -> float:
        return fmean(row[name] for row in self.kept)

    @property
    def accuracy_std(self) -> float | None:
        values = [row["accuracy"] for row in self.runs.values()]
        return stdev(values) if len(values) > 1 else None

    @property
    def num_stopped(self) -> int:
        """Runs that a scheduler ended early."""
        return sum(row["was_stopped"] for row in self.runs.values())

    @property
    def run_names(self) -> list[str]:
        return [row["run"] for row in self.runs.values()]


class View:
    """The content of the page, computed once."""

    def __init__(self, folder: EvaluationFolder, compared: ComparisonReport, grid: GridReport) -> None:
        self.folder, self.compared, self.grid = folder, compared, grid
        self.curves = folder.rows("learning_curves")
        self.rows = grid.metrics
        self.groups: _Groups = group_settings(self.rows)
        self.reference = next(iter(self.groups))
        self.settings = self._settings()
        self.chosen = self.settings[0]
        self.calibration = folder.rows("calibration")
        self.loss_charts = self._loss_charts(self.settings[: limits.CURVES])
        self.accuracy_chart = self._accuracy_chart()
        self.gap_chart = plots.gaps(
            "gap",
            {
                setting.label: (setting.kept_mean("train_accuracy"), setting.kept_mean("val_accuracy"))
                for setting in self.settings[: limits.SETTINGS]
            },
        )
        self.pictured = [self.chosen]
        if self.reference != self.chosen.label:
            self.pictured.append(next(setting for setting in self.settings if setting.label == self.reference))
        self.class_names = folder.class_names
        self.confusions = confusions(folder, [setting.run_names for setting in self.pictured])
        self.classes_in_matrix = confused_classes(np.sum(self.confusions, axis=0), limits.CLASSES_IN_MATRIX)
        self.classes_in_table = weakest_classes(self.confusions[0], limits.CLASSES_IN_TABLE)
        # Side by side for the chosen setting and the reference.
        self.confusion_charts = [
            self._confusion_chart(setting, kind) for kind in ("counts", "shares") for setting in self.pictured
        ]
        self.reliability_charts = [self._reliability_chart(setting) for setting in self.pictured]
        self.effect_charts = effect_charts(grid.effects, split=folder.split)
        whole = [row for row in self.rows if not row["was_stopped"]]
        self.heat_maps = heat_maps(whole, grid.effects, split=folder.split)

    @property
    def accuracy_shown(self) -> int:
        """Maximum number of settings in a chart."""
        return limits.SETTINGS

    @property
    def charts(self) -> list[Chart]:
        """Every chart of the page."""
        return [
            self.accuracy_chart,
            self.gap_chart,
            *self.loss_charts,
            *self.confusion_charts,
            *self.reliability_charts,
            *self.effect_charts,
            *self.heat_maps,
        ]

    def render(self) -> str:
        """Returns the page."""
        loader = jinja2.PackageLoader("mnist_ray.report")
        environment = jinja2.Environment(
            loader=loader,
            autoescape=True,
            finalize=_shown,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters.update(
            points=_points, rate=_rate, interval=_interval, signed=_signed, svg=_svg, value=setting_text, p=p_text
        )
        manifest = self.folder.manifest
        return environment.get_template("report.html").render(
            view=self,
            folder=self.folder,
            manifest=manifest,
            made_by=manifest["volatile"].get("made_by"),
            compared=self.compared,
            notes=notes(self.compared.comparisons) if self.compared.comparisons else [],
            remarks=remarks(self.compared),
            grid_note=self.grid.note if self.folder.grid else None,
            verdict_words=self._verdict_words(),
            reference_words=self._reference_words(),
            pairs=self._pairs(),
            num_hidden_pairs=max(0, len(self.compared.comparisons) - limits.PAIRS),
            varying=self._varying(),
            per_class=self._per_class(),
            mistakes=[(setting.label, *self._mistakes(setting)) for setting in self.pictured],
            runs=self._runs(),
            gallery=read_pictures(self.folder, self.chosen.run_names),
            lineage=_lineage(self.folder),
        )

    def _settings(self) -> list[_Setting]:
        """Returns the settings by validation accuracy, then loss, as in the leaderboard."""
        against: dict[str, Comparison] = {}
        for pair in self.compared.comparisons:
            if pair.second == self.reference:
                against[pair.first] = pair
            elif pair.first == self.reference:
                against[pair.second] = pair.reversed()
        kept = {(row["run"], row["epoch"]): row for row in self.curves}
        compared = {row["setting"]: row for row in self.compared.settings}
        settings = [
            _Setting(
                label,
                runs,
                [kept[row["run"], row["epoch"]] for row in runs.values()],
                against.get(label),
                compared[label]["group"],
                (compared[label]["accuracy_low"], compared[label]["accuracy_high"]),
            )
            for label, runs in self.groups.items()
        ]
        return sorted(settings, key=lambda one: (-one.mean("best_val_accuracy"), one.mean("best_val_loss"), one.label))

    def _verdict_words(self) -> str:
        """Returns the verdict on the chosen setting in a sentence; empty if nothing is compared with it."""
        pair = self.chosen.against
        if pair is None:
            return ""
        if pair.is_decided:
            return f"It is {pair.verdict} than {self.reference}."
        words = f"These data do not tell it apart from {self.reference}"
        if pair.num_seeds == 1:
            return f"{words}: one seed says nothing about others."
        low, high = pair.accuracy_difference.low, pair.accuracy_difference.high
        if low is None or high is None or low <= 0 <= high:
            return f"{words}."
        return (
            f"{words}: the interval of the difference excludes zero, but among {self.compared.num_pairs} pairs, one "
            "may do so by chance."
        )

    @property
    def num_compared(self) -> int:
        """Number of settings that share a seed with the chosen setting and are compared with it."""
        return len(self._decided())

    @property
    def ties(self) -> list[str]:
        """Settings that the verdicts don't tell apart from the chosen setting, the best first."""
        decided = self._decided()
        return [one.label for one in self.settings if decided.get(one.label) is False]

    def _decided(self) -> dict[str, bool]:
        """Returns other setting -> whether its pair with the chosen setting is decided."""
        pairs = [(pair, {pair.first, pair.second}) for pair in self.compared.comparisons]
        chosen = {self.chosen.label}
        return {(labels - chosen).pop(): pair.is_decided for pair, labels in pairs if labels & chosen}

    def _reference_words(self) -> str:
        """Returns why the reference was chosen; empty for the baseline."""
        variants = {row["variant"] for row in self.groups[self.reference].values()}
        return "" if "baseline" in variants and len(variants) == 1 else ", the first by the values of its settings"

    def _varying(self) -> list[str]:
        """Returns the page's settings that differ among the runs, except those in the labels."""
        return [
            name
            for name in map(column_of, settings_where(TrainConfig, lambda setting: setting.is_on_page))
            if len({json.dumps(row[name]) for row in self.rows}) > 1
            and not any(f"{name}=" in label for label in self.groups)
        ]

    def _pairs(self) -> list[Comparison]:
        return sorted(self.compared.comparisons, key=evidence)[: limits.PAIRS]

    def _accuracy_chart(self) -> Chart:
        settings = self.settings[: limits.SETTINGS]
        covers = "other seeds and other examples" if len(self.chosen.runs) > 1 else "other examples"
        return plots.accuracies(
            "accuracy",
            f"Accuracy on {self.folder.split} examples",
            {setting.label: [row["accuracy"] for row in setting.runs.values()] for setting in settings},
            intervals={setting.label: setting.interval for setting in settings},
            caption=f"Dots: seeds; bar: their mean; line: its 95 % interval over {covers}. Ordered by validation "
            "accuracy.",
        )

    def _loss_charts(self, settings: Sequence[_Setting]) -> list[Chart]:
        of_settings = [self._losses(setting) for setting in settings]
        losses = np.concatenate([values.ravel() for epochs in of_settings for values in epochs.values()])
        # A logarithmic scale has no zero.
        low, high = max(float(np.nanmin(losses)), 1e-4), float(np.nanmax(losses))
        return [
            plots.learning_curves(
                f"loss-{place:02d}",
                setting.label,
                epochs,
                best=fmean(row["epoch"] for row in setting.kept),
                limits=(low / 1.15, high * 1.15),
            )
            for place, (setting, epochs) in enumerate(zip(settings, of_settings, strict=True))
        ]

    def _losses(self, setting: _Setting) -> dict[str, NDArray[np.float64]]:
        """Returns train_loss and val_loss, float64 [seeds, epochs], NaN after a run's last epoch."""
        of_runs = [[row for row in self.curves if row["run"] == run] for run in setting.run_names]
        num_epochs = max(map(len, of_runs))
        epochs = {}
        for name in ("train_loss", "val_loss"):
            epochs[name] = np.full((len(of_runs), num_epochs), np.nan)
            for seed, rows in enumerate(of_runs):
                epochs[name][seed, : len(rows)] = [row[name] for row in rows]
        return epochs

    def _confusion_chart(self, setting: _Setting, kind: str) -> Chart:
        return plots.confusion(
            f"confusion-{self.pictured.index(setting)}-{kind}",
            setting.label,
            self._confusion(setting),
            self.class_names,
            places=self.classes_in_matrix,
            normalized=kind == "shares",
        )

    def _confusion(self, setting: _Setting) -> NDArray[np.int64]:
        return self.confusions[self.pictured.index(setting)]

    def _mistakes(self, setting: _Setting) -> tuple[list[tuple[str, str, int]], int]:
        """Returns true class, predicted class and count of the most frequent mistakes, and the number of kinds."""
        mistakes, names = frequent_mistakes(self._confusion(setting)), self.class_names
        rows = mistakes[: limits.MISTAKES].tolist()
        return [(names[label], names[predicted], count) for label, predicted, count in rows], len(mistakes)

    def _per_class(self) -> list[dict[str, Any]]:
        """Returns precision, recall and F1 of the shown classes, all seeds of the chosen setting together."""
        rates = class_rates(self._confusion(self.chosen))
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

    def _reliability_chart(self, setting: _Setting) -> Chart:
        bins: dict[float, list[Mapping[str, Any]]] = {}
        for row in self.calibration:
            if row["run"] in setting.run_names:
                bins.setdefault(row["confidence_low"], []).append(row)
        place = self.pictured.index(setting)
        pooled = [_pooled(rows) for _, rows in sorted(bins.items())]
        return plots.reliability(f"reliability-{place}", setting.label, pooled, setting.mean("ece"))


def _pooled(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns one bin of the calibration, all runs together."""
    count = sum(row["count"] for row in rows)
    filled = [row for row in rows if row["count"]]
    return {
        "confidence_low": rows[0]["confidence_low"],
        "confidence_high": rows[0]["confidence_high"],
        "count": count,
        **{
            name: sum(row["count"] * row[name] for row in filled) / count if count else None
            for name in ("mean_confidence", "accuracy")
        },
    }


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


def _points(fraction: float) -> str:
    return _signed(100 * fraction)


def _rate(fraction: float, digits: int = 2) -> str:
    return f"{100 * fraction:.{digits}f}"


def _interval(interval: Any, factor: float = 100, digits: int = 2) -> str:
    if interval.low is None:
        return "unknown"
    return f"{_signed(factor * interval.low, digits)} to {_signed(factor * interval.high, digits)}"


def _shown(value: Any) -> Any:
    # Escapes control characters and direction marks in names; the page's own markup is a Markup, not a str.
    return printable(value) if type(value) is str else value


def _svg(chart: Chart) -> Markup:
    return Markup(chart.inline_svg())
