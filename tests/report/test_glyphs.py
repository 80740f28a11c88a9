"""Names that the font of the charts can't write, or that matplotlib or XML take for something else."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from mnist_ray.report import plots
from mnist_ray.report.charts import class_labels
from mnist_ray.report.glyphs import lacks_glyphs, note

NAMES = [
    *("猫と犬", "قطة", "बिल्ली", "🐱🦄", "👩‍👩‍👧", "bell\x07\u202eabc", "a\nb", "\ufffe\uffff"),
    *("_x", "$x$", r"\$x$", "$", "<b>&amp;</b>", "L" * 150 + "a" + "M" * 149, "L" * 150 + "b" + "M" * 149),
]

SVG_TEXT = "{http://www.w3.org/2000/svg}text"


@pytest.mark.parametrize(("text", "lacks"), [("été Ωж قطة", False), ("猫", True), ("a\x07b", False), ("\ufffd", False)])
def test_the_font_says_what_it_lacks(text: str, lacks: bool) -> None:
    assert lacks_glyphs(text) == lacks


def test_one_line_says_how_names_without_glyphs_are_shown() -> None:
    assert note(["cat", "قطة", "$x$"]) is None
    assert note(["cat", "猫\n", "犬"]) == (
        "report: the charts' font has no glyphs for 2 of 3 class names, the first is '猫\\n'; the PNG charts show its "
        "number and �, as in '#1 �'; the page and the SVG charts have the names"
    )


def test_names_that_can_not_be_told_apart_in_a_chart_have_their_numbers() -> None:
    names = ["cat", "猫", "x" * 40 + "y" + "x" * 40, "x" * 40 + "z" + "x" * 40, "other"]
    assert class_labels(names, [0, 1, 2]) == ["cat", "#1 猫", names[2]]
    assert class_labels(names, [2, 3, 4]) == [f"#2 {names[2]}", f"#3 {names[3]}", "other"]


# An error here is a warning of matplotlib's that a user would see, with a path of its source.
@pytest.mark.parametrize("normalized", [False, True])
def test_a_chart_of_any_names_is_drawn_without_a_warning_and_its_svg_has_the_names(normalized: bool) -> None:
    counts = np.arange(len(NAMES) ** 2).reshape(len(NAMES), len(NAMES))
    chart = plots.confusion("c", "s", counts, NAMES, places=range(len(NAMES)), normalized=normalized)
    texts = [element.text or "" for element in ElementTree.fromstring(chart.svg).iter(SVG_TEXT)]
    expected = ["#0 猫と犬", "قطة", "#2 बिल्ली", "#3 🐱🦄", "#4 👩‍👩‍👧", r"bell\x07\u202eabc", r"a\nb", r"\ufffe\uffff"]
    expected += ["_x", "$x$", r"\$x$", "$", "<b>&amp;</b>", "#13 LLLLLL…MMMMMMMMMMM", "#14 LLLLLL…MMMMMMMMMMM"]
    assert [text for text in texts if not re.fullmatch(r"[\d.]+|(true|predicted) class", text)] == 2 * expected
    assert chart.png.startswith(b"\x89PNG")


def test_a_png_shows_the_number_of_a_class_whose_name_it_can_not_write() -> None:
    def png(names: list[str]) -> bytes:
        return plots.confusion("c", "s", np.eye(2, dtype=np.int64), names, places=[0, 1], normalized=False).png

    assert png(["猫", "plain"]) == png(["犬", "plain"])
    assert png(["猫", "plain"]) != png(["plain", "猫"])
