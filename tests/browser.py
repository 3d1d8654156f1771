"""A headless Chromium for tests of pages: what it shows, its errors, and its accessibility."""

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, sync_playwright

DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """A browser; skips the test where there is none."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("Chromium is not installed")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=_ARGUMENTS)
        try:
            yield started
        finally:
            started.close()


@contextlib.contextmanager
def watched_page(started: Any, **options: Any) -> Iterator[Page]:
    """A new page; on exit it must have logged no error or warning, and asked no other host."""
    context = started.new_context(**options)
    page = context.new_page()
    problems: list[str] = []
    page.on(
        "console",
        lambda message: problems.append(message.text) if message.type in _BAD else None,
    )
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on(
        "request",
        lambda request: None if _is_local(request.url) else problems.append(request.url),
    )
    try:
        yield page
        assert not problems, problems
    finally:
        context.close()


_BAD = ("error", "warning")


def _is_local(url: str) -> bool:
    return url.startswith(("file:", "data:", "blob:", "http://127.0.0.1", "http://localhost"))


def violations(page: Page) -> list[str]:
    """What axe-core finds wrong on the page, serious or critical, each with the first element."""
    found = Axe().run(page).response["violations"]
    return [
        f"{rule['id']}: {rule['nodes'][0]['html'][:200]}"
        for rule in found
        if rule["impact"] in ("serious", "critical")
    ]


def is_wider_than_its_window(page: Page) -> bool:
    """Whether the page must be scrolled sideways."""
    width = page.viewport_size
    assert width is not None
    shown: int = page.evaluate("document.documentElement.scrollWidth")
    return shown > width["width"]
