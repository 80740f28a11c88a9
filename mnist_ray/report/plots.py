"""The charts of a report, as SVG for the page and files of their own; from plain numbers alone."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

# Okabe and Ito's colours, told apart by the colour-blind too, in an order of contrast on white and on black; lines
# and markers differ as well: https://jfly.uni-koeln.de/color/
BLUE, VERMILION, GREY = "#0072b2", "#d55e00", "#8c8c8c"
_INK, _GRID, _CELL = "#1a1b1e", "#d4d6db", "#0073b3"
# On a page, in light and in dark, each of them is what the page says.
_PAGE_COLORS = {
    _INK: "currentColor",
    _GRID: "var(--grid)",
    _CELL: "var(--cell)",
    BLUE: "var(--blue)",
    VERMILION: "var(--vermilion)",
}
# Points; a chart is drawn as wide as a phone shows it, so its text is legible there.
_WIDTH, _HEIGHT, _FONT = 3.9, 2.75, 7.5
_STYLE = {
    "font.size": _FONT,
    "font.family": "sans-serif",
    "axes.titlesize": _FONT,
    "axes.labelsize": _FONT,
    "legend.fontsize": _FONT,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "legend.frameon": False,
    "svg.fonttype": "none",
}
_PNG_DPI = 200
_CLASSES_IN_TENTHS = 15
# Ids that nothing refers to, and which every figure has.
_IDLE_ID = re.compile(r' id="[A-Za-z][A-Za-z0-9.]*_[0-9]+"')


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
      name: of its files, such as loss-baseline.
      title: what it shows.
      alternative: the same in words and numbers, for those who can't see it.
      caption: what its marks mean.
      width: in inches; up to the default one it fits a phone, a wider one must scroll there.
      svg: the image, with the figure's own colours.
      png: the same on white.
    """

    name: str
    title: str
    alternative: str
    caption: str
    width: float
    svg: bytes
    png: bytes

    @property
    def is_wide(self) -> bool:
        """Whether it is wider than a phone's screen."""
        return self.width > 1.2 * _WIDTH

    def inline_svg(self) -> str:
        """Returns the SVG element for a page, in the page's colours of light and dark."""
        text = self.svg.decode()
        text = _IDLE_ID.sub("", text[text.index("<svg") :])
        for color, variable in _PAGE_COLORS.items():
            text = text.replace(color, variable)
        return re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)


def draw(
    name: str,
    title: str,
    paint: Callable[[Figure], None],
    *,
    alternative: str,
    caption: str = "",
    size: tuple[float, float] = (_WIDTH, _HEIGHT),
) -> Chart:
    """Draws a chart; equal input gives equal bytes.

    Args:
      name: of its files.
      title: what it shows.
      paint: puts axes into the figure.
      alternative: the chart in words.
      caption: what its marks mean.
      size: width and height in inches.
    """
    # The salt makes the ids of clip paths and markers differ between the charts of a page.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        svg, png = io.BytesIO(), io.BytesIO()
        figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
        figure.savefig(png, format="png", dpi=_PNG_DPI, facecolor="white", metadata={"Software": None})
    return Chart(name, title, alternative, caption, size[0], svg.getvalue(), png.getvalue())


def learning_curves(
    name: str, setting: str, epochs: Mapping[str, NDArray[np.float64]], *, best: float, limits: tuple[float, float]
) -> Chart:
    """Draws the training and validation loss of a setting on a logarithmic scale, with a band over its seeds.

    Args:
      name: of the files.
      setting: its label.
      epochs: train_loss and val_loss, float64 [seeds, epochs], NaN after a run's last epoch.
      best: mean over the seeds of the epoch whose weights are kept.
      limits: of the scale, nats; the same for all settings that stand side by side.
    """
    num_seeds, num_epochs = epochs["val_loss"].shape
    x = np.arange(1, num_epochs + 1)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        kinds = (("train_loss", "training", BLUE, "-", "o"), ("val_loss", "validation", VERMILION, "--", "s"))
        for key, words, color, style, marker in kinds:
            values = epochs[key]
            mean, low, high = (reduce(values, axis=0) for reduce in (np.nanmean, np.nanmin, np.nanmax))
            axes.plot(x, mean, style, color=color, marker=marker, markersize=3, label=words)
            if num_seeds > 1:
                axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
        axes.axvline(best, color=GREY, linewidth=0.8, linestyle=":")
        _whole_ticks(axes, num_epochs)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="y", which="minor", length=0)
        axes.set(xlabel="epoch", ylabel="cross-entropy, nats (log scale)", ylim=limits)
        axes.legend(loc="upper right")

    last = {key: float(np.nanmean(values[:, -1])) for key, values in epochs.items()}
    lowest = float(np.nanmin(np.nanmean(epochs["val_loss"], axis=0)))
    band = f"Lines: mean of {num_seeds} seeds; bands: lowest to highest seed." if num_seeds > 1 else "One seed."
    return draw(
        name,
        setting,
        paint,
        alternative=f"Loss of {setting} over {num_epochs} epochs: training ends at {last['train_loss']:.3f} nats, "
        f"validation at {last['val_loss']:.3f}, its lowest mean is {lowest:.3f}.",
        caption=f"{band} Dotted: the epoch that is kept (mean {best:.1f}).",
    )


def accuracies(
    name: str,
    title: str,
    values: Mapping[str, Sequence[float]],
    *,
    intervals: Mapping[str, tuple[float, float]],
    caption: str,
) -> Chart:
    """Draws one row a setting, with a dot a seed, their mean, and its interval.

    Args:
      name: of the files.
      title: what it shows.
      values: setting -> accuracy of each seed, fractions; the first setting at the top.
      intervals: setting -> ends of the interval of the mean.
      caption: what the marks mean.
    """

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for row, (setting, seeds) in enumerate(values.items()):
            low, high = intervals[setting]
            axes.plot([100 * low, 100 * high], [row, row], color=GREY, linewidth=1.2, zorder=1)
            shown = 100 * np.asarray(seeds)
            axes.plot(shown, np.full(len(shown), row), "o", color=BLUE, alpha=0.55, markersize=4, markeredgewidth=0)
            axes.plot([shown.mean()], [row], "|", color=VERMILION, markersize=13, markeredgewidth=2)
        _rows(axes, list(values))
        axes.set(xlabel="accuracy, %")

    said = "; ".join(
        f"{setting} {100 * float(np.mean(seeds)):.2f} ({100 * intervals[setting][0]:.2f} to "
        f"{100 * intervals[setting][1]:.2f})"
        for setting, seeds in values.items()
    )
    return draw(
        name, title, paint, alternative=f"{title}, mean and interval in percent: {said}.", caption=caption,
        size=_tall(len(values)),
    )  # fmt: skip


def gaps(name: str, values: Mapping[str, tuple[float, float]]) -> Chart:
    """Draws the training and the validation accuracy of each setting, joined by a line.

    Args:
      name: of the files.
      values: setting -> mean training and validation accuracy at the kept epoch, fractions.
    """

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for row, (train, val) in enumerate(values.values()):
            axes.plot([100 * train, 100 * val], [row, row], color=GREY, linewidth=1.2, zorder=1)
            axes.plot([100 * train], [row], "o", color=BLUE, markersize=5, label="" if row else "training")
            axes.plot([100 * val], [row], "s", color=VERMILION, markersize=5, label="" if row else "validation")
        _rows(axes, list(values))
        axes.set(xlabel="accuracy, %")
        figure.legend(loc="outside upper center", ncols=2)

    said = "; ".join(f"{name} {100 * (train - val):+.2f}" for name, (train, val) in values.items())
    return draw(
        name,
        "Over- and under-fitting",
        paint,
        alternative=f"Training less validation accuracy, in points: {said}.",
        caption="At the kept epoch, mean over seeds. Training accuracy is taken as the weights move, with dropout and "
        "augmentation on: it can be below validation. Far above it: over-fitting; both low: under-fitting.",
        size=_tall(len(values)),
    )


def confusion(name: str, setting: str, counts: NDArray[np.int64], classes: Sequence[str], *, normalized: bool) -> Chart:
    """Draws a confusion matrix: rows are true classes, columns predicted ones.

    Args:
      name: of the files.
      setting: whose it is.
      counts: int64 [classes, classes].
      classes: their names.
      normalized: show each row's shares, in percent, rather than counts.
    """
    support = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shown = 100 * counts / support if normalized else counts
    # Cells of many classes are too narrow for tenths.
    text = "{:.1f}" if normalized and len(classes) <= _CLASSES_IN_TENTHS else "{:.0f}"
    # The diagonal would outshine everything, and what is of interest are the mistakes: they alone are painted.
    is_mistake = ~np.eye(len(classes), dtype=bool) & (counts > 0)
    most = float(shown[is_mistake].max()) if is_mistake.any() else 1.0
    side = max(_WIDTH, 0.245 * len(classes) + 0.6)

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for row, column in np.argwhere(is_mistake):
            strength = 0.1 + 0.5 * shown[row, column] / most
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color=_CELL, alpha=strength, linewidth=0))
        for row, column in np.argwhere(counts > 0):
            weight = "bold" if row == column else "normal"
            value = text.format(shown[row, column])
            axes.text(column, row, value, ha="center", va="center", fontsize=6, fontweight=weight)
        ends = (-0.5, len(classes) - 0.5)
        axes.set(xlim=ends, ylim=ends[::-1], aspect="equal", xlabel="predicted class", ylabel="true class")
        _matrix_ticks(axes, classes, classes)
        edges = np.arange(len(classes) + 1) - 0.5
        axes.set_xticks(edges, minor=True)
        axes.set_yticks(edges, minor=True)
        axes.grid(which="minor", visible=True)
        axes.tick_params(which="minor", length=0)

    right = 100 * counts.trace() / max(counts.sum(), 1)
    unit = "percent of the true class" if normalized else "examples"
    return draw(
        name,
        f"{setting}, {'shares' if normalized else 'counts'}",
        paint,
        alternative=f"Confusion matrix of {setting}, {unit}: {right:.2f} % on the diagonal. {_worst(counts, classes)}",
        caption=f"Rows: true class, columns: predicted; {unit}, all seeds together. Painted: the mistakes, the "
        "stronger the more.",
        size=(side, min(side, 0.45 * len(classes) + 1.4)),
    )


def _worst(counts: NDArray[np.int64], classes: Sequence[str]) -> str:
    found = confusions(counts, classes)[:3]
    said = ", ".join(f"{label} taken for {predicted} {count} times" for label, predicted, count in found)
    return f"The most frequent mistakes: {said}." if found else "No mistakes."


def confusions(counts: NDArray[np.int64], classes: Sequence[str]) -> list[tuple[str, str, int]]:
    """Returns true class, predicted class and count of every kind of mistake, the most frequent first."""
    found = [
        (classes[row], classes[column], int(counts[row, column]))
        for row, column in np.ndindex(*counts.shape)
        if row != column and counts[row, column]
    ]
    return sorted(found, key=lambda mistake: -mistake[2])


def reliability(name: str, title: str, bins: Sequence[Mapping[str, Any]], ece: float) -> Chart:
    """Draws accuracy against confidence, with the number of examples in each bin below.

    Args:
      name: of the files.
      title: whose it is.
      bins: confidence_low, confidence_high, mean_confidence, accuracy and count of each bin.
      ece: mean expected calibration error, a fraction.
    """
    filled = [row for row in bins if row["count"]]

    def paint(figure: Figure) -> None:
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        edges = [row["confidence_low"] for row in bins]
        width = bins[0]["confidence_high"] - bins[0]["confidence_low"]
        above.plot([0, 1], [0, 1], ":", color=GREY, linewidth=1, label="perfectly calibrated")
        above.plot(
            [row["mean_confidence"] for row in filled], [row["accuracy"] for row in filled],
            "-o", color=BLUE, markersize=4, label="accuracy of a bin",
        )  # fmt: skip
        above.set(ylabel="accuracy, fraction", ylim=(-0.03, 1.03))
        above.legend(loc="upper left")
        below.bar(edges, [row["count"] for row in bins], width=width, align="edge", color=BLUE, linewidth=0)
        below.set_yscale("symlog", linthresh=1)
        below.set(xlabel="confidence (probability of the predicted class)", ylabel="examples", xlim=(0, 1))

    said = "; ".join(f"{row['mean_confidence']:.2f}: {row['accuracy']:.2f} of {row['count']}" for row in filled)
    return draw(
        name,
        title,
        paint,
        alternative=f"Accuracy by mean confidence of {title}: {said}. Expected calibration error {ece:.4f}.",
        caption=f"{len(bins)} bins of the confidence, all seeds together; expected calibration error {ece:.4f}. "
        "Below: examples in each bin, logarithmic.",
        size=(_WIDTH, 3.4),
    )


def effect_intervals(
    name: str, title: str, rows: Sequence[tuple[str, float, float | None, float | None]], *, split: str, caption: str
) -> Chart:
    """Draws effects on accuracy in points, with their intervals.

    Args:
      name: of the files.
      title: what it shows.
      rows: label, effect, lower and upper end of each; None without an interval.
      split: of the examples that the accuracy is measured on.
      caption: what the marks mean.
    """

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axvline(0, color=_INK, linewidth=0.8)
        for row, (_, effect, low, high) in enumerate(rows):
            if low is not None and high is not None:
                clear = low > 0 or high < 0
                axes.plot([low, high], [row, row], color=BLUE if clear else GREY, linewidth=2.2)
            axes.plot([effect], [row], "o", color=VERMILION, markersize=4.5)
        _rows(axes, [label for label, *_ in rows])
        axes.set(xlabel=f"change of {split} accuracy, points")

    said = "; ".join(
        f"{label} {effect:+.2f}" + ("" if low is None or high is None else f" ({low:+.2f} to {high:+.2f})")
        for label, effect, low, high in rows
    )
    return draw(name, title, paint, alternative=f"{title}: {said}.", caption=caption, size=_tall(len(rows)))


def heat_map(
    name: str,
    values: NDArray[np.float64],
    *,
    rows: tuple[str, Sequence[str]],
    columns: tuple[str, Sequence[str]],
    split: str,
    caption: str,
) -> Chart:
    """Draws the mean accuracy over two settings.

    Args:
      name: of the files.
      values: float64 [rows, columns], percent, NaN where there is no run.
      rows: name and levels of the setting of the rows.
      columns: likewise.
      split: of the examples that the accuracy is measured on.
      caption: what is averaged.
    """
    title = f"{rows[0]} × {columns[0]}"

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        image = axes.imshow(values, cmap="cividis", aspect="auto")
        low, high = image.get_clim()
        for place in np.ndindex(*values.shape):
            if np.isfinite(values[place]):
                ink = "#000000" if values[place] > (low + high) / 2 else "#ffffff"
                axes.text(place[1], place[0], f"{values[place]:.2f}", ha="center", va="center", color=ink)
        _matrix_ticks(axes, rows[1], columns[1])
        axes.set(xlabel=columns[0], ylabel=rows[0])
        figure.colorbar(image, ax=axes, label=f"{split} accuracy, %").outline.set_visible(False)

    best = tuple(int(place) for place in np.unravel_index(np.nanargmax(values), values.shape))
    return draw(
        name,
        title,
        paint,
        alternative=f"Mean {split} accuracy by {title}: from {np.nanmin(values):.2f} % to {np.nanmax(values):.2f} %, "
        f"highest at {rows[0]}={rows[1][best[0]]}, {columns[0]}={columns[1][best[1]]}.",
        caption=caption,
        size=(max(_WIDTH, 0.55 * len(columns[1]) + 1.6), max(1.6, 0.42 * len(rows[1]) + 0.9)),
    )


def _tall(num_rows: int) -> tuple[float, float]:
    return _WIDTH, max(1.3, 0.24 * num_rows + 0.85)


def _rows(axes: Any, labels: Sequence[str]) -> None:
    names, shown = _without_names(labels)
    axes.set_yticks(range(len(labels)), [_short(label) for label in shown])
    axes.set_ylabel(names)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def _matrix_ticks(axes: Any, rows: Sequence[str], columns: Sequence[str]) -> None:
    # Letters that fit below the cells.
    room = 6.5 * axes.figure.get_figwidth()
    is_long = max(map(len, columns)) * len(columns) > room
    axes.set_xticks(range(len(columns)), [_short(name) for name in columns], rotation=60 if is_long else 0)
    axes.set_yticks(range(len(rows)), [_short(name) for name in rows])
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _whole_ticks(axes: Any, num_epochs: int) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(0.7 if num_epochs > 1 else 0.5, num_epochs + (0.3 if num_epochs > 1 else 0.5))


def _without_names(labels: Sequence[str]) -> tuple[str, Sequence[str]]:
    """Splits labels such as dropout=0 batch_norm=no, if all name the same settings, into these names and the values."""
    parts = [[part.partition("=") for part in label.split(" ")] for label in labels]
    names = {tuple(name for name, _, _ in label) for label in parts}
    if len(labels) < 2 or len(names) > 1 or not all(sign for label in parts for _, sign, _ in label):
        return "", labels
    return " · ".join(names.pop()), [" · ".join(value for _, _, value in label) for label in parts]


def _short(label: str) -> str:
    shown = label.replace("$", r"\$")
    return shown if len(shown) <= 34 else f"{shown[:16]}…{shown[-17:]}"
