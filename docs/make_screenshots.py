"""Writes docs/images: the Ray dashboard during a real search on this machine's CPUs.

Needs Chromium; takes about a minute.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

REPOSITORY = Path(__file__).resolve().parent.parent
IMAGES = REPOSITORY / "docs" / "images"
_WIDTH, _HEIGHT = 1300, 2400
_MENU_WIDTH = 70
_UNFOLDING_MS = 1000
_TIMEOUT_MS = 60_000
# Sections of a job's page that say nothing about a search.
_FOLDED = ("Logs", "Task Timeline (beta)", "Cluster status and autoscaler")
_UNFOLDED = ("Task Table", "Actor Table", "Placement Group Table")


def picture_dashboard(page: Page, url: str, file: Path) -> None:
    """Write a part of the page of the first job: running tasks, actors and placement groups."""
    page.goto(f"{url}/#/jobs/01000000", wait_until="domcontentloaded")
    for section in (*_FOLDED, *_UNFOLDED):
        # The last: the menu has such words, too.
        page.get_by_text(section, exact=True).last.click(timeout=_TIMEOUT_MS)
    page.get_by_label("State").first.click(timeout=_TIMEOUT_MS)
    page.get_by_role("option", name="RUNNING").click(timeout=_TIMEOUT_MS)
    expect(page.get_by_text("ckpt=").first).to_be_visible(timeout=_TIMEOUT_MS)
    expect(page.get_by_text("node 1 (127.0.0.1)").first).to_be_visible(timeout=_TIMEOUT_MS)
    page.wait_for_timeout(_UNFOLDING_MS)
    top = page.get_by_text("Task Table", exact=True).bounding_box()
    last_row = page.get_by_text("CREATED", exact=True).last.bounding_box()
    assert top is not None and last_row is not None
    clip = {"x": _MENU_WIDTH, "y": top["y"] - 10, "width": _WIDTH - _MENU_WIDTH}
    page.screenshot(path=file, clip={**clip, "height": last_row["y"] + 60 - clip["y"]})


def main() -> None:
    """Begin a search, picture its dashboard after some trials, and interrupt it."""
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("error: chromium must be installed")
    IMAGES.mkdir(exist_ok=True)
    command = ["-m", "autotune.run", "--space", "tiny", "--max-trials", "30", "--seed", "3"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"}
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [sys.executable, *command], cwd=folder, env=environment, text=True,
            stdout=subprocess.PIPE,
        ) as search,
    ):  # fmt: skip
        assert search.stdout is not None
        url = ""
        for line in search.stdout:
            url = url or line.strip().partition("Ray dashboard: ")[2]
            if line.startswith("[   3/"):
                break
        try:
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(
                    executable_path=chromium,
                    args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
                )
                page = browser.new_page(viewport={"width": _WIDTH, "height": _HEIGHT})
                picture_dashboard(page, url, IMAGES / "ray-dashboard.png")
                browser.close()
        finally:
            search.send_signal(signal.SIGINT)
            search.communicate()


if __name__ == "__main__":
    main()
