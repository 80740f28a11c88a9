"""Draws the charts of a report: style, page colours, files and axis labels."""

import io
import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from mnist_ray.report.glyphs import FONTS, lacks_glyphs, replace_missing
from mnist_ray.text.escape import printable

# Okabe and Ito's colours, safe for colour-blind readers and ordered by contrast on white and on black; lines and
# markers differ too: https://jfly.uni-koeln.de/color/
BLUE, VERMILION, GREY = "#0072b2", "#d55e00", "#8c8c8c"
INK, GRID, CELL = "#1a1b1e", "#d4d6db", "#0073b3"
# The page defines these colours for its light and dark modes.
_PAGE_COLORS = {
    INK: "currentColor",
    GRID: "var(--grid)",
    CELL: "var(--cell)",
    BLUE: "var(--blue)",
    VERMILION: "var(--vermilion)",
}
# Inches, and points for the font; a chart is drawn as wide as a phone shows it, so its text is legible there.
WIDTH, HEIGHT, _FONT = 3.9, 2.75, 7.5
_STYLE = {
    "font.size": _FONT,
    "font.family": "sans-serif",
    "font.sans-serif": FONTS,
    "axes.titlesize": _FONT,
    "axes.labelsize": _FONT,
    "legend.fontsize": _FONT,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.3,
    "legend.frameon": False,
    "svg.fonttype": "none",
}
_PNG_DPI = 200
# Maximum characters of a label next to a matrix.
LONGEST_IN_MATRIX = 22
# Ids that every figure repeats and nothing refers to.
_IDLE_ID = re.compile(r' id="[A-Za-z][A-Za-z0-9.]*_[0-9]+"')


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
      name: of its files, such as loss-baseline.
      alternative: the chart in words and numbers, for readers who can't see it.
      caption: meaning of its marks.
      width: in inches; up to the default width, the chart fits a phone, a wider chart scrolls there.
      svg: the image, with the figure's own colours.
      png: the image on white.
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
        """Whether the chart is wider than a phone's screen."""
        return self.width > 1.2 * WIDTH

    def inline_svg(self) -> str:
        """Returns the SVG element for a page, in the page's light and dark colours."""
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
    size: tuple[float, float] = (WIDTH, HEIGHT),
) -> Chart:
    """Draws a chart; equal input gives equal bytes.

    Args:
      paint: puts axes into the figure.
      size: width and height in inches.
    """
    # The salt makes the ids of clip paths and markers differ between the charts of a page.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        paint(figure)
        svg, png = io.BytesIO(), io.BytesIO()
        with warnings.catch_warnings():
            # The SVG's text gets the reader's font and is only measured here; `glyphs.note` reports missing glyphs.
            warnings.filterwarnings("ignore", r"Glyph \d+ ", UserWarning)
            figure.savefig(svg, format="svg", transparent=True, metadata={"Date": None})
        # Lay out only once: layout takes as long as drawing.
        figure.set_layout_engine("none")
        replace_missing(figure)
        figure.savefig(png, format="png", dpi=_PNG_DPI, facecolor="white", metadata={"Software": None})
    return Chart(name, title, alternative, caption, size[0], svg.getvalue(), png.getvalue())


def size_for_rows(num_rows: int) -> tuple[float, float]:
    """Returns the size of a chart with a row for each setting, in inches."""
    return WIDTH, max(1.3, 0.24 * num_rows + 0.85)


def label_rows(axes: Any, labels: Sequence[str]) -> None:
    """Labels the rows of a chart, the first at the top."""
    axes.set_yticks(range(len(labels)), [short(label) for label in labels])
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


def label_matrix(axes: Any, rows: Sequence[str], columns: Sequence[str]) -> None:
    """Labels the rows and columns of a matrix, and removes lines and frame."""
    # Letters that fit below the cells.
    room = 6.5 * axes.figure.get_figwidth()
    is_long = max(map(len, columns)) * len(columns) > room
    # A slanted label ends at its column.
    slant: dict[str, Any] = {"rotation": 60, "ha": "right", "rotation_mode": "anchor"} if is_long else {}
    axes.set_xticks(range(len(columns)), [short(name, LONGEST_IN_MATRIX) for name in columns], **slant)
    axes.set_yticks(range(len(rows)), [short(name, LONGEST_IN_MATRIX) for name in rows])
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def label_epochs(axes: Any, num_epochs: int) -> None:
    """Makes x an axis of epochs from 1, with whole numbers."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(0.7 if num_epochs > 1 else 0.5, num_epochs + (0.3 if num_epochs > 1 else 0.5))


def label_losses(axes: Any, limits: tuple[float, float]) -> None:
    """Makes y a logarithmic axis of losses, with plain numbers."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="y", which="minor", length=0)
    axes.set(ylabel="cross-entropy, nats (log scale)", ylim=limits)


def class_labels(class_names: Sequence[str], places: Sequence[int]) -> list[str]:
    """Returns class names for a matrix, with the number if the font lacks glyphs or two shortened names are equal."""
    names = [class_names[place] for place in places]
    times = Counter(short(name, LONGEST_IN_MATRIX) for name in names)
    return [
        f"#{place} {name}" if lacks_glyphs(name) or times[short(name, LONGEST_IN_MATRIX)] > 1 else name
        for place, name in zip(places, names, strict=True)
    ]


def short(label: str, longest: int = 34) -> str:
    """Shortens a label to fit in one line next to a chart, and escapes formulas."""
    text = printable(label)
    half = longest // 2
    text = text if len(text) <= longest else f"{text[: half - 1]}…{text[-half:]}"
    return text.replace("$", r"\$")
