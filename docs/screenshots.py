"""Makes docs/report.png: the report of a grid as a headless Chromium shows it. `make screenshots` runs it.

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
WIDTH, HEIGHT = 1280, 1480


def make_report(storage: str) -> Path:
    """Returns the page of a grid that is trained and evaluated for it."""
    common = ["--dataset", "digits", "--storage", storage]
    launcher = [sys.executable, "-m", "mnist_ray"]
    subprocess.run([*launcher, "tune", "--grid", "regularization", "--seeds", "3", "--name", "g", *common], check=True)
    command = [*launcher, "evaluate", "--grid", "g", *common, "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Path(json.loads(done.stdout)["report"])


def take(page: Path, picture: Path) -> None:
    """Writes the first screen and a half of a page as a PNG of 256 colours."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("needs Chromium (on Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        window = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
        window.goto(page.absolute().as_uri())
        window.screenshot(path=picture)
        browser.close()
    with Image.open(picture) as taken:
        taken.convert("RGB").quantize(256).save(picture, optimize=True)


def main() -> None:
    """Makes the picture."""
    if len(sys.argv) > 1:
        take(Path(sys.argv[1]), FOLDER / "report.png")
        return
    with tempfile.TemporaryDirectory() as storage:
        take(make_report(storage), FOLDER / "report.png")


if __name__ == "__main__":
    main()
