"""Makes docs/report.png and docs/report-phone.png: a grid's report in a headless Chromium. `make screenshots` runs it.

    python docs/screenshots.py [REPORT.html]

Without a report it trains and evaluates the grid `regularization` on scikit-learn's digits, three seeds, first.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

FOLDER = Path(__file__).parent
# Picture -> width and height of the window.
SIZES = {"report.png": (1280, 1480), "report-phone.png": (390, 844)}


def make_report(storage: str) -> Path:
    """Returns the page of a grid that is trained and evaluated for it."""
    common = ["--dataset", "digits", "--storage", storage]
    launcher = [sys.executable, "-m", "mnist_ray"]
    subprocess.run([*launcher, "tune", "--grid", "regularization", "--seeds", "3", "--name", "g", *common], check=True)
    command = [*launcher, "evaluate", "--grid", "g", *common, "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Path(json.loads(done.stdout)["report"])


def take(page: Path) -> None:
    """Writes the top of a page as PNGs of 256 colours."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("needs Chromium (on Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        for name, (width, height) in SIZES.items():
            window = browser.new_page(viewport={"width": width, "height": height})
            window.goto(page.absolute().as_uri())
            window.screenshot(path=FOLDER / name)
            with Image.open(FOLDER / name) as taken:
                taken.convert("RGB").quantize(256).save(FOLDER / name, optimize=True)
        browser.close()


def main() -> None:
    """Makes the pictures."""
    if len(sys.argv) > 1:
        take(Path(sys.argv[1]))
        return
    with tempfile.TemporaryDirectory() as storage:
        take(make_report(storage))


if __name__ == "__main__":
    main()
