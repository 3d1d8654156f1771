"""The site in a real browser: it loads completely, by itself, and can be read by everybody."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import (
    DESKTOP,
    PHONE,
    browser,
    is_wider_than_its_window,
    violations,
    watched_page,
)

BROKEN_PICTURES = """
[...document.images].filter(image => image.complete && !image.naturalWidth).map(image => image.src)
"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as started:
        yield started


def test_every_page_loads_by_itself(chromium: Any, address: str, site: Path) -> None:
    with watched_page(chromium) as page:
        refused: list[str] = []
        page.on("response", lambda r: refused.append(r.url) if r.status >= 400 else None)
        for file in sorted(site.rglob("*.html")):
            page.goto(f"{address}/{file.relative_to(site)}", wait_until="load")
            assert page.locator("h1").count() == 1, file
            assert page.evaluate(BROKEN_PICTURES) == [] and refused == [], file


def test_the_search_finds_a_page(chromium: Any, address: str) -> None:
    with watched_page(chromium) as page:
        page.goto(f"{address}/index.html")
        page.locator("input.md-search__input").fill("micro-batch")
        found = page.locator("a.md-search-result__link")
        found.first.wait_for(state="attached", timeout=20_000)
        assert any("concepts.html" in (link.get_attribute("href") or "") for link in found.all())


@pytest.mark.parametrize(("scheme", "palette"), [("light", "default"), ("dark", "slate")])
@pytest.mark.parametrize("window", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_everybody_can_read_it(
    chromium: Any, address: str, window: dict[str, int], scheme: str, palette: str
) -> None:
    with watched_page(chromium, viewport=window, color_scheme=scheme) as page:
        for name in ("index.html", "concepts.html"):
            page.goto(f"{address}/{name}")
            assert page.locator("body").get_attribute("data-md-color-scheme") == palette
            assert violations(page) == [], name
            assert not is_wider_than_its_window(page), name
