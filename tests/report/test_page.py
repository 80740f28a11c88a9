"""The report's page: what it says, how it is written, and how it looks in a real browser."""

import contextlib
import io
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
import pytest
from PIL import Image

from mnist_ray.cli.main import run_command
from mnist_ray.report.findings import find
from mnist_ray.report.page import report_evaluation
from mnist_ray.results.evaluation_folder import open_evaluation
from mnist_ray.storage.storage import open_storage
from tests.support.doing_lines import without_doing
from tests.support.report_evaluations import evaluate_grid, evaluate_runs

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HOSTILE = ["<script>alert(1)</script>", "a&b", '"quoted"', "'single'", "$x$", "ünï", "6", "7", "8", "</svg>"]
FOREIGN = ["猫", "قطة", "बिल्ली", "🦄", "bell\x07", "_x", "L" * 300]
# As many classes as EMNIST has; the digits fill ten of them.
MANY_CLASSES = [*HOSTILE, *FOREIGN, *(f"class {number}" for number in range(17, 47))]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("storage"))


@pytest.fixture(scope="module")
def evaluation(storage: str) -> str:
    return evaluate_grid(storage, {"weight_decay": [0.0, 1e-4]})


@pytest.fixture(scope="module")
def page(storage: str, evaluation: str) -> str:
    return Path(report_evaluation(open_evaluation(open_storage(storage), evaluation)).uri).read_text()


def compare_answer(storage: str, evaluation: str) -> list[str]:
    return find(open_evaluation(open_storage(storage), evaluation)).answer


class Elements(HTMLParser):
    """The elements of a page: tag and attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_the_page_says_what_the_tables_say(storage: str, evaluation: str, page: str) -> None:
    folder = open_evaluation(open_storage(storage), evaluation)
    metrics = {row["run"]: row for row in folder.rows("metrics")}
    curves = {(row["run"], row["epoch"]): row for row in folder.rows("learning_curves")}
    settings: dict[tuple[Any, ...], list[str]] = {}
    for run, row in metrics.items():
        settings.setdefault((row["dropout"], row["batch_norm"], row["weight_decay"]), []).append(run)
    assert len(settings) == 8
    kept = {setting: [curves[run, metrics[run]["epoch"]] for run in runs] for setting, runs in settings.items()}

    def rank(setting: tuple[Any, ...]) -> tuple[float, float]:
        return -fmean(row["val_accuracy"] for row in kept[setting]), fmean(row["val_loss"] for row in kept[setting])

    best = min(kept, key=rank)
    accuracy = fmean(metrics[run]["accuracy"] for run in settings[best])
    decay = f"{best[2]:g}" if best[2] else ""
    named = [
        *(["bn"] if best[1] else []),
        *([f"dropout {best[0]:g}"] if best[0] else []),
        *([f"wd {decay}"] if decay else []),
    ]
    chosen = ", ".join(named) or "dropout 0, no bn, wd 0"
    assert f'chosen by validation: {chosen}</dt><dd class="figure">{100 * accuracy:.2f} <small>%</small>' in page
    assert "Each setting against <b>dropout 0, no bn, wd 0</b>" in page
    for sentence in compare_answer(storage, evaluation):
        assert f'<p class="lead">{sentence}</p>' in page.replace("&#39;", "'")
    for run, row in metrics.items():
        assert f"<code>{run}</code>" in page
        assert row["checkpoint_sha256"][:16] in page


def test_every_chart_and_picture_has_a_text_and_nothing_is_loaded_from_elsewhere(page: str) -> None:
    elements = Elements(page)
    plots = [attributes for attributes in elements.of("div") if attributes.get("role") == "img"]
    # Accuracy, gap, 8 loss curves, confusion and reliability of one or two settings, 2 of effects, 3 heat maps.
    assert len(plots) in (18, 21)
    assert len(elements.of("svg")) == len(plots)
    for attributes in plots:
        assert re.search(r"\d", attributes["aria-label"] or "")
    pictures = elements.of("img")
    assert len(pictures) > 20
    for attributes in pictures:
        assert (attributes["alt"] or "").startswith("Example ")
        assert (attributes["src"] or "").startswith("data:image/png;base64,")
    assert elements.of("script") == elements.of("link") == []
    fetched = re.findall(r"(?:src|href|xlink:href)=\"([^\"]*)\"|url\(([^)]*)\)", page)
    assert all(a.startswith(("#", "data:")) or b.startswith("#") for a, b in fetched)


def test_ids_are_unique_and_links_lead_somewhere(page: str) -> None:
    ids = [attributes["id"] for _, attributes in Elements(page).found if "id" in attributes]
    assert len(ids) == len(set(ids))
    for target in re.findall(r"(?:href=\"|url\()#([^\")]+)", page):
        assert target in ids


def test_the_report_command_says_where_the_page_is_and_the_same_tables_give_the_same_bytes(
    storage: str, evaluation: str, page: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(storage) / "reports" / evaluation
    before = {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert len(before) == 3 + 2 * page.count('role="img"')
    shutil.rmtree(folder)
    assert run_command(["report", evaluation, "--storage", storage]) == 0
    assert capsys.readouterr().out.split()[-2:] == ["report:", f"{folder}/report.html"]
    assert {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The page of one setting with 47 classes, and what was said on stderr."""
    storage = str(tmp_path_factory.mktemp("many"))
    overrides = {"dropout": 0.2, "batch_norm": True, "epochs": 1}
    evaluation = evaluate_grid(storage, overrides, seeds="1", class_names=MANY_CLASSES)
    with contextlib.redirect_stderr(io.StringIO()) as said:
        page = Path(report_evaluation(open_evaluation(open_storage(storage), evaluation)).uri)
    return page, said.getvalue()


@pytest.fixture(scope="module")
def many_classes(reported: tuple[Path, str]) -> Path:
    return reported[0]


def test_what_the_font_lacks_is_said_in_one_line(reported: tuple[Path, str]) -> None:
    page, said = reported
    assert re.fullmatch(
        r"report: the charts' font has no glyphs for 3 of 47 class names, the first is '猫'; .*\n", without_doing(said)
    )
    for name in ["猫", "قطة", "बिल्ली", "🦄", r"bell\x07", "_x", "L" * 300]:
        assert f"<td>{name}</td>" in page.read_text()


def test_hostile_class_names_are_shown_as_they_are(many_classes: Path) -> None:
    page = many_classes.read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    elements = Elements(page)
    assert elements.of("script") == []
    assert len(elements.of("svg")) == page.count("</svg>")


def test_a_matrix_of_many_classes_is_wide_and_the_others_are_not(many_classes: Path, page: str) -> None:
    def titles(page: str) -> list[str]:
        return re.findall(r'<figure class="chart wide">\s*<figcaption class="title">([^<]*)<', page)

    assert titles(many_classes.read_text()) == ["baseline, counts", "baseline, shares"]
    assert titles(page) == []


def test_the_hardest_images_are_wrong_in_more_than_half_of_the_runs(storage: str, evaluation: str, page: str) -> None:
    folder = open_evaluation(open_storage(storage), evaluation)
    hardest = [row for row in folder.rows("images") if row["reason"] == "hardest"]
    shown = page.partition('<section id="hardest">')[2].partition("</section>")[0]
    expected = [row["example_index"] for row in hardest if row["num_runs_wrong"] > 8]
    assert [int(found) for found in re.findall(r", #(\d+)", shown)] == expected
    assert len(expected) > 0
    votes = Counter(
        row["predicted_label_name"]
        for row in folder.table("predictions").filter(pc.field("example_index") == expected[0]).to_pylist()
    )
    first = shown.partition("<br>read as ")[2].partition("<br>")[0]
    assert first == ", ".join(f"{name}&#160;by&#160;{count}" for name, count in votes.most_common(4))


@pytest.fixture(scope="module")
def of_one_run(storage: str, evaluation: str) -> str:
    """The name of an evaluation of one run of the grid."""
    return evaluate_runs(storage, open_evaluation(open_storage(storage), evaluation).runs[:1])


@pytest.fixture(scope="module")
def page_of_one_run(storage: str, of_one_run: str) -> str:
    return Path(report_evaluation(open_evaluation(open_storage(storage), of_one_run)).uri).read_text()


def test_one_run_of_no_grid_has_a_page(page_of_one_run: str) -> None:
    assert "chosen by validation" not in page_of_one_run
    assert "one seed; 95 % interval for other examples" in page_of_one_run
    assert 'id="pairs"' not in page_of_one_run
    assert 'id="grid"' not in page_of_one_run
    assert "The images on which the runs disagree" not in page_of_one_run


@pytest.mark.s3
def test_a_report_is_made_from_s3(storage: str, of_one_run: str, page_of_one_run: str, s3_uri: str) -> None:
    source, target = open_storage(storage), open_storage(s3_uri)
    folder = open_evaluation(source, of_one_run)
    for entry in source.list_files(f"runs/{folder.runs[0]}"):
        target.write_bytes(entry.path, source.read_bytes(entry.path))
    pending = target.pending_folder(folder.path)
    names = [name for names in folder.files().values() for name in names]
    files = [pending.write(name, source.read_committed(folder.path, name)) for name in names]
    pending.commit(files, {name: value for name, value in folder.manifest.items() if name != "files"})
    made = report_evaluation(open_evaluation(target, of_one_run))
    assert made.uri == f"{s3_uri}/reports/{of_one_run}/report.html"
    assert target.read_bytes(f"reports/{of_one_run}/report.html").decode() == page_of_one_run


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    if CHROMIUM is None:
        pytest.skip("needs Chromium (on Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium refuses its sandbox to root.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield started
        started.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("kind", ["grid", "many classes"])
def test_a_browser_shows_all_of_it_without_a_complaint(
    browser: "Browser", storage: str, evaluation: str, page: str, many_classes: Path, kind: str, width: int, scheme: Any
) -> None:
    window = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    said: list[str] = []
    window.on("console", lambda message: said.append(message.text))
    window.on("pageerror", lambda error: said.append(str(error)))
    window.on("requestfailed", lambda request: said.append(request.url))
    file = Path(storage, "reports", evaluation, "report.html") if kind == "grid" else many_classes
    window.goto(file.as_uri())
    assert said == []
    assert window.evaluate("document.scrollingElement.scrollWidth <= window.innerWidth")
    assert window.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    # Nothing but what scrolls by itself is wider than the window.
    wide = """[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, svg') &&
        e.getBoundingClientRect().right > window.innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
    assert window.evaluate(wide) == []
    ink, paper = window.evaluate("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
    assert contrast(ink, paper) > 7
    drawn = window.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
    assert contrast(drawn, paper) > 7
    # However many classes and whatever the width: a number in a matrix is as tall as small print.
    heights = "[...document.querySelectorAll('#confusion svg text')].map(e => e.getBoundingClientRect().height)"
    assert min(height for height in window.evaluate(heights) if height) > 6
    window.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_table_that_is_wider_than_a_phone_shows_that_it_scrolls(
    browser: "Browser", storage: str, evaluation: str, page: str, scheme: Any
) -> None:
    window = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    window.goto(Path(storage, "reports", evaluation, "report.html").as_uri())
    table = window.locator('[aria-label="Table of settings"]')
    assert table.evaluate("e => e.scrollWidth > e.clientWidth")

    def shade() -> float:
        """How much the right edge differs from the paper, where no text is: between two rows."""
        with Image.open(io.BytesIO(table.screenshot())) as picture:
            pixels = np.asarray(picture.convert("L"), dtype=float)
        paper = np.median(pixels)
        return float(np.median(np.abs(pixels[:, -2] - paper)))

    assert shade() > 30
    table.evaluate("e => { e.scrollLeft = e.scrollWidth }")
    assert shade() < 2
    window.close()


def contrast(first: str, second: str) -> float:
    """The contrast ratio of two CSS colours, by WCAG 2.1."""
    low, high = sorted(luminance(color) for color in (first, second))
    return (high + 0.05) / (low + 0.05)


def luminance(color: str) -> float:
    channels = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
