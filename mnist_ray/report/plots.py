"""Draws the charts of a report from plain numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from mnist_ray.report.charts import (
    BLUE,
    CELL,
    GREY,
    INK,
    LONGEST_IN_MATRIX,
    VERMILION,
    WIDTH,
    Chart,
    class_labels,
    draw,
    label_epochs,
    label_losses,
    label_matrix,
    label_rows,
    size_for_rows,
)  # fmt: skip
from mnist_ray.report.classification import frequent_mistakes

# With more classes, cells are too narrow for tenths of a percent.
_CLASSES_IN_TENTHS = 15
# So are cells next to longer names.
_LETTERS_BESIDE_TENTHS = 12


def learning_curves(
    name: str, setting: str, epochs: Mapping[str, NDArray[np.float64]], *, best: float, limits: tuple[float, float]
) -> Chart:
    """Draws the training and validation loss of a setting on a logarithmic scale, with a band over its seeds.

    Args:
      epochs: train_loss and val_loss, float64 [seeds, epochs], NaN after a run's last epoch.
      best: mean over the seeds of the epoch whose weights are kept.
      limits: of the scale, nats; the same for all settings shown side by side.
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
        label_epochs(axes, num_epochs)
        label_losses(axes, limits)
        axes.set(xlabel="epoch")
        axes.legend(loc="upper right")

    last = {key: float(np.nanmean(values[:, -1])) for key, values in epochs.items()}
    lowest = float(np.nanmin(np.nanmean(epochs["val_loss"], axis=0)))
    whose = "the seeds still training" if np.isnan(epochs["val_loss"]).any() else f"{num_seeds} seeds"
    band = f"Lines: mean of {whose}; bands: lowest to highest seed." if num_seeds > 1 else "One seed."
    return draw(
        name,
        setting,
        paint,
        alternative=f"Loss of {setting} over {num_epochs} epochs: training ends at {last['train_loss']:.3f} nats, "
        f"validation at {last['val_loss']:.3f}, its lowest mean is {lowest:.3f}.",
        caption=f"{band} Dotted: the epoch that is kept (mean {best:.1f}).",
    )


def accuracies(
    values: Mapping[str, Sequence[float]], *, intervals: Mapping[str, tuple[float, float]], split: str, covers: str
) -> Chart:
    """Draws one row per setting, with a dot per seed, the mean, and its interval.

    Args:
      values: setting -> accuracy of each seed, fractions; the first setting at the top.
      intervals: setting -> ends of the interval of the mean.
      split: split that the accuracy is measured on.
      covers: what varies in the intervals, in words.
    """
    title = f"Accuracy on {split} examples"

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for row, (setting, seeds) in enumerate(values.items()):
            low, high = intervals[setting]
            axes.plot([100 * low, 100 * high], [row, row], color=GREY, linewidth=1.2, zorder=1)
            rates = 100 * np.asarray(seeds)
            axes.plot(rates, np.full(len(rates), row), "o", color=BLUE, alpha=0.55, markersize=4, markeredgewidth=0)
            axes.plot([rates.mean()], [row], "|", color=VERMILION, markersize=13, markeredgewidth=2)
        label_rows(axes, list(values))
        axes.set(xlabel="accuracy, %")

    summary = "; ".join(
        f"{setting} {100 * float(np.mean(seeds)):.2f} ({100 * intervals[setting][0]:.2f} to "
        f"{100 * intervals[setting][1]:.2f})"
        for setting, seeds in values.items()
    )
    return draw(
        "accuracy",
        title,
        paint,
        alternative=f"{title}, mean and interval in percent: {summary}.",
        caption=f"Dots: seeds; bar: their mean; line: its 95 % interval over {covers}. Ordered by validation accuracy.",
        size=size_for_rows(len(values)),
    )


def gaps(values: Mapping[str, tuple[float, float]]) -> Chart:
    """Draws mean training and validation accuracy of each setting at the kept epoch (fractions), joined by a line."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for row, (train, val) in enumerate(values.values()):
            axes.plot([100 * train, 100 * val], [row, row], color=GREY, linewidth=1.2, zorder=1)
            axes.plot([100 * train], [row], "o", color=BLUE, markersize=5, label="" if row else "training")
            axes.plot([100 * val], [row], "s", color=VERMILION, markersize=5, label="" if row else "validation")
        label_rows(axes, list(values))
        axes.set(xlabel="accuracy, %")
        figure.legend(loc="outside upper center", ncols=2)

    summary = "; ".join(f"{name} {100 * (train - val):+.2f}" for name, (train, val) in values.items())
    return draw(
        "gap",
        "Over- and under-fitting",
        paint,
        alternative=f"Training minus validation accuracy, in points: {summary}.",
        caption="At the kept epoch, mean over seeds. Training accuracy is taken as the weights move, with dropout and "
        "augmentation on: it can be below validation. Far above it: over-fitting; both low: under-fitting.",
        size=size_for_rows(len(values)),
    )


def confusion(
    name: str,
    setting: str,
    all_counts: NDArray[np.int64],
    class_names: Sequence[str],
    *,
    places: Sequence[int],
    normalized: bool,
) -> Chart:
    """Draws a confusion matrix: rows are true classes, columns predicted ones.

    Args:
      all_counts: int64 [classes, classes].
      places: indices of the classes to show.
      normalized: show each row's shares of all examples of the class, in percent, instead of counts.
    """
    counts, classes = all_counts[np.ix_(places, places)], class_labels(class_names, places)
    support = np.maximum(all_counts.sum(axis=1, keepdims=True)[places], 1)
    values = 100 * counts / support if normalized else counts
    longest = min(max(map(len, classes)), LONGEST_IN_MATRIX)
    has_room = len(classes) <= _CLASSES_IN_TENTHS and longest <= _LETTERS_BESIDE_TENTHS
    text = "{:.1f}" if normalized and has_room else "{:.0f}"
    side = max(WIDTH, 0.245 * len(classes) + 0.6 + 0.05 * max(0, longest - 8))
    right = 100 * all_counts.trace() / max(all_counts.sum(), 1)
    left_out = ""
    if len(places) < len(class_names):
        left_out = f"{len(places)} of the {len(class_names):,} classes, those of the most frequent mistakes; "
        left_out += "the table confusion has all. "
    unit = "percent of the true class" if normalized else "examples"
    return draw(
        name,
        f"{setting}, {'shares' if normalized else 'counts'}",
        lambda figure: _paint_matrix(figure, values, classes, text),
        alternative=f"Confusion matrix of {setting}, {unit}: {right:.2f} % on the diagonal. "
        f"{_worst(all_counts, class_names)}",
        caption=f"{left_out}Rows: true class, columns: predicted; {unit}, all seeds together. Coloured: mistakes, "
        "more strongly if more frequent.",
        size=(side, min(side, 0.45 * len(classes) + 1.4)),
    )


def _paint_matrix(figure: Figure, values: NDArray[Any], classes: Sequence[str], text: str) -> None:
    axes = figure.subplots()
    # Only mistakes are coloured: the diagonal would outshine them.
    is_mistake = ~np.eye(len(classes), dtype=bool) & (values > 0)
    most = float(values[is_mistake].max()) if is_mistake.any() else 1.0
    cells = [Rectangle((column - 0.5, row - 0.5), 1, 1) for row, column in np.argwhere(is_mistake)]
    colors = [to_rgba(CELL, 0.1 + 0.5 * share / most) for share in values[is_mistake]]
    axes.add_collection(PatchCollection(cells, facecolors=colors, linewidths=0), autolim=False)
    for row, column in np.argwhere(values > 0):
        weight = "bold" if row == column else "normal"
        value = text.format(values[row, column])
        # The layout needn't measure thousands of numbers inside the axes.
        axes.text(column, row, value, ha="center", va="center", fontsize=6, fontweight=weight, in_layout=False)
    ends = (-0.5, len(classes) - 0.5)
    axes.set(xlim=ends, ylim=ends[::-1], aspect="equal", xlabel="predicted class", ylabel="true class")
    label_matrix(axes, classes, classes)
    edges = np.arange(len(classes) + 1) - 0.5
    axes.set_xticks(edges, minor=True)
    axes.set_yticks(edges, minor=True)
    axes.grid(which="minor", visible=True)
    axes.tick_params(which="minor", length=0)


def _worst(counts: NDArray[np.int64], classes: Sequence[str]) -> str:
    worst = frequent_mistakes(counts)[:3].tolist()
    summary = ", ".join(
        f"{classes[label]} taken for {classes[predicted]} {count} times" for label, predicted, count in worst
    )
    return f"The most frequent mistakes: {summary}." if worst else "No mistakes."


def reliability(name: str, title: str, bins: Sequence[Mapping[str, Any]], ece: float) -> Chart:
    """Draws accuracy against confidence, with the number of examples in each bin below.

    Args:
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

    summary = "; ".join(f"{row['mean_confidence']:.2f}: {row['accuracy']:.2f} of {row['count']}" for row in filled)
    return draw(
        name,
        title,
        paint,
        alternative=f"Accuracy by mean confidence of {title}: {summary}. Expected calibration error {ece:.4f}.",
        caption=f"{len(bins)} bins of the confidence, all seeds together; expected calibration error {ece:.4f}. "
        "Below: examples in each bin, logarithmic.",
        size=(WIDTH, 3.4),
    )


def effect_intervals(
    name: str, title: str, rows: Sequence[tuple[str, float, float | None, float | None]], *, split: str, caption: str
) -> Chart:
    """Draws effects on accuracy in points, with their intervals.

    Args:
      rows: label, effect, lower and upper end of each; None without an interval.
    """

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.axvline(0, color=INK, linewidth=0.8)
        for row, (_, effect, low, high) in enumerate(rows):
            if low is not None and high is not None:
                clear = low > 0 or high < 0
                axes.plot([low, high], [row, row], color=BLUE if clear else GREY, linewidth=2.2)
            axes.plot([effect], [row], "o", color=VERMILION, markersize=4.5)
        label_rows(axes, [label for label, *_ in rows])
        axes.set(xlabel=f"change of {split} accuracy, points")

    summary = "; ".join(
        f"{label} {effect:+.2f}" + ("" if low is None or high is None else f" ({low:+.2f} to {high:+.2f})")
        for label, effect, low, high in rows
    )
    return draw(name, title, paint, alternative=f"{title}: {summary}.", caption=caption, size=size_for_rows(len(rows)))


def heat_map(
    values: NDArray[np.float64], *, rows: tuple[str, Sequence[str]], columns: tuple[str, Sequence[str]], split: str
) -> Chart:
    """Draws the mean accuracy over two settings.

    Args:
      values: float64 [rows, columns], percent, NaN without a run.
      rows: name and levels of the setting of the rows.
      columns: likewise.
      split: split that the accuracy is measured on.
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
        label_matrix(axes, rows[1], columns[1])
        axes.set(xlabel=columns[0], ylabel=rows[0])
        figure.colorbar(image, ax=axes, label=f"{split} accuracy, %").outline.set_visible(False)

    best = tuple(int(place) for place in np.unravel_index(np.nanargmax(values), values.shape))
    return draw(
        f"grid-{rows[0]}-{columns[0]}",
        title,
        paint,
        alternative=f"Mean {split} accuracy by {title}: from {np.nanmin(values):.2f} % to {np.nanmax(values):.2f} %, "
        f"highest at {rows[0]}={rows[1][best[0]]}, {columns[0]}={columns[1][best[1]]}.",
        caption=f"Mean accuracy on {split} examples over the seeds and the other settings.",
        size=(max(WIDTH, 0.55 * len(columns[1]) + 1.6), max(1.6, 0.42 * len(rows[1]) + 0.9)),
    )
