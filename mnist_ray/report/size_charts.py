"""The charts of accuracy against training images."""

import json

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from mnist_ray.analysis.sizes import Levels, Line, Sizes
from mnist_ray.report import limits
from mnist_ray.report.charts import BLUE, GREY, HEIGHT, INK, VERMILION, WIDTH, Chart, draw, short
from mnist_ray.results.setting_words import value_words, words

# Colour, style and marker of each line; the reference comes first.
_LOOKS = (
    (GREY, "-", "o"), (BLUE, "-", "s"), (VERMILION, "-", "^"),
    (INK, ":", "D"), (BLUE, "--", "v"), (VERMILION, "--", "P"),
)  # fmt: skip
_TITLE = "Accuracy against training images"
# Of the width of the scale: between the bars of two lines, and between two numbers below it.
_STEP, _LEAST_GAP = 0.012, 0.13
# Letters of a name in one column of the legend, and in one of two.
_LONGEST, _LONGEST_OF_TWO = 50, 22


def size_charts(sizes: Sizes | None, *, split: str) -> list[Chart]:
    """Returns one chart with a line for each combination of the other axes' levels, or a chart for each axis."""
    if sizes is None:
        return []
    several = len(sizes.drawn) > 1
    return [_chart(number, sizes, lines, several, split) for number, lines in enumerate(sizes.drawn)]


def _chart(number: int, sizes: Sizes, lines: list[Line], several: bool, split: str) -> Chart:
    shown = lines[: limits.LINES]
    title = f"{_TITLE}: {words(next(iter(lines[0].levels)))}" if several else _TITLE
    columns = 1 if any(len(_name(line.levels)) > _LONGEST_OF_TWO for line in shown) else 2
    bars = ""
    if len(shown) > 1:
        covers = "other seeds and other examples" if sizes.num_seeds > 1 else "other examples"
        bars = f" Bars: 95 % intervals of the difference from {_name(lines[0].levels)} with as many images, which "
        bars += f"hold jointly, for {covers}."
    left_out = f"{len(shown)} of {len(lines)} levels; the table metrics has all. " if len(shown) < len(lines) else ""
    averaged = "the seeds and the other settings" if several else "the seeds"
    return draw(
        f"sizes-{number}",
        title,
        lambda figure: _paint(figure, sizes, shown, columns, split),
        alternative=f"{title}, mean in percent: {'; '.join(_line_words(sizes, line) for line in shown)}.",
        caption=f"{left_out}Mean over {averaged}; images that were trained on, without those held out.{bars}",
        size=(WIDTH, HEIGHT + 0.16 * len(shown) / columns),
    )


def _paint(figure: Figure, sizes: Sizes, lines: list[Line], columns: int, split: str) -> None:
    axes = figure.subplots()
    over = np.log(sizes.num_images)
    width = over[-1] - over[0]
    for place, (line, (color, style, marker)) in enumerate(zip(lines, _LOOKS, strict=False)):
        x = np.exp(over + _STEP * width * (place - (len(lines) - 1) / 2))
        name = short(_name(line.levels), _LONGEST)
        axes.plot(x, 100 * line.means, style, color=color, marker=marker, markersize=4, label=name)
        if line.against:
            # The differences with as many images, drawn around the line.
            ends = (lines[0].means + np.diag(end) for end in (line.against.low, line.against.high))
            low, high = (100 * np.clip(end, 0, 1) for end in ends)
            axes.vlines(x, low, high, color=color, linewidth=1.1)
    ticks = [sizes.num_images[-1]]
    for images in sizes.num_images[-2::-1]:
        if np.log(ticks[-1] / images) >= _LEAST_GAP * width:
            ticks.append(images)
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{images:,}" for images in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(xlabel="training images (log scale)", ylabel=f"{split} accuracy, %")
    if len(lines) > 1:
        figure.legend(loc="outside upper center", ncols=columns)


def _line_words(sizes: Sizes, line: Line) -> str:
    parts = [f"{100 * mean:.2f} with {images:,}" for images, mean in zip(sizes.num_images, line.means, strict=True)]
    if line.against:
        ends = (np.diag(end) for end in (line.against.mean, line.against.low, line.against.high))
        parts = [
            f"{part} ({100 * mean:+.2f}, {100 * low:+.2f} to {100 * high:+.2f})"
            for part, mean, low, high in zip(parts, *ends, strict=True)
        ]
    return f"{_name(line.levels)} {', '.join(parts)}"


def _name(levels: Levels) -> str:
    return ", ".join(value_words(axis, json.loads(text)) for axis, text in levels.items()) or "all settings"
