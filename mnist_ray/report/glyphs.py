"""Handles characters without glyphs in the charts' font: SVG readers have their own fonts, a PNG can't show them."""

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.text import Text

from mnist_ray.text.escape import printable

# The first comes with matplotlib, so charts are the same everywhere; the others are for readers of an SVG.
FONTS = ("DejaVu Sans", "Verdana", "Arial")
_MISSING = "\ufffd"


@cache
def _characters() -> frozenset[int]:
    return frozenset(get_font(findfont(FontProperties(family=[FONTS[0]]))).get_charmap())


def lacks_glyphs(text: str) -> bool:
    """Tells whether a text, made printable, has characters that the font lacks."""
    return any(ord(character) not in _characters() for character in printable(text))


def note(class_names: Sequence[str]) -> str | None:
    """Returns a line on how the charts show class names that the font can't write; None if it can write all."""
    places = [place for place, name in enumerate(class_names) if lacks_glyphs(name)]
    if not places:
        return None
    first = printable(class_names[places[0]])
    first = first if len(first) <= 40 else f"{first[:40]}…"
    return (
        f"report: the charts' font has no glyphs for {len(places):,} of {len(class_names):,} class names, the first is "
        f"'{first}'; the PNG charts show its number and {_MISSING}, as in '#{places[0]} {_MISSING}'; the page and the "
        "SVG charts have the names"
    )


def replace_missing(figure: Any) -> None:
    """Replaces characters that the font lacks by one mark, in every text of a laid-out figure."""
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        labels = [label.get_text() for label in axis.get_ticklabels()]
        if any(map(lacks_glyphs, labels)):
            # The axis would overwrite a text that is set on the tick's label.
            axis.set_ticks(axis.get_majorticklocs(), labels=list(map(_without_missing, labels)))
    for text in figure.findobj(Text):
        if lacks_glyphs(text.get_text()):
            text.set_text(_without_missing(text.get_text()))


def _without_missing(text: str) -> str:
    marked = "".join(character if ord(character) in _characters() else _MISSING for character in text)
    return re.sub(f"{_MISSING}([\\s\u200d\ufe0f]*{_MISSING})*", _MISSING, marked)
