"""Writes the pictures of docs/report.md.

    python docs/make_report_pictures.py [RUN]

They are the report of a real search on this machine, predicted scaling, and the ablation of a
simulated search. RUN is a finished run directory; without it the space `tiny` is searched, which
takes a minute or two. Needs Chromium.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from autotune.report.facts import RunFacts
from autotune.report.page import write_report

IMAGES = Path(__file__).resolve().parent / "images"
# Name, width and height in pixels, palette.
_WINDOWS = (("desktop", 1280, 1650, "light"), ("phone", 390, 1400, "dark"))


def autotune(*arguments: object) -> None:
    """Run a command of this project."""
    words = [sys.executable, "-m", "autotune", *map(str, arguments)]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)


def picture_report(chromium: str, run: Path, folder: Path) -> None:
    """Write the top of the run's report, on a desktop and on a phone."""
    file = folder / "report.html"
    write_report(RunFacts(run), file)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        for name, width, height, palette in _WINDOWS:
            page = browser.new_page(
                viewport={"width": width, "height": height},
                color_scheme=palette,  # type: ignore[arg-type]
            )
            page.goto(file.as_uri())
            page.wait_for_selector("body[data-drawn]")
            page.screenshot(path=IMAGES / f"report-{name}.png")
        browser.close()


def main() -> None:
    """Write all pictures."""
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("error: chromium must be installed")
    IMAGES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = Path(sys.argv[1]) if len(sys.argv) > 1 else folder / "tiny"
        if not run.exists():
            long = ("--training-gpu-hours", "10000")
            autotune("run", "--space", "tiny", "--out", run, *long)
        picture_report(chromium, run, folder)
        scaling = IMAGES / "scaling.svg"
        autotune("scale", "--space", "llm13b", "--nodes", "1,2,4,8,16,32", "--figure", scaling)
        simulated = folder / "llm13b"
        autotune("run", "--space", "llm13b", "--trainable", "simulated", "--out", simulated)
        ablation = IMAGES / "ablation.svg"
        autotune("ablate", simulated, "--out", folder / "ablation", "--figure", ablation)


if __name__ == "__main__":
    main()
