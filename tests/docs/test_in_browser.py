"""The site in a real browser: it loads completely, by itself, and can be read by everybody."""

from pathlib import Path
from typing import Any

import pytest

SIZES = {"desktop": {"width": 1280, "height": 800}, "phone": {"width": 390, "height": 844}}


class Watched:
    """A tab, and everything that went wrong in it."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.page.on("console", self._said)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("requestfailed", self._failed)
        self.page.on("request", lambda request: self._requested(request, address))
        self.page.on("response", self._answered)

    def _said(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.problems.append(message.text)

    def _failed(self, request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":  # by the next page
            self.problems.append(request.url)

    def _requested(self, request: Any, address: str) -> None:
        if not request.url.startswith((address, "data:", "blob:")):
            self.problems.append(f"elsewhere: {request.url}")

    def _answered(self, response: Any) -> None:
        if response.status >= 400:
            self.problems.append(f"{response.status}: {response.url}")


def test_every_page_loads_by_itself(browser: Any, address: str, site: Path) -> None:
    tab = Watched(browser, address)
    for file in sorted(site.rglob("*.html")):
        tab.page.goto(f"{address}/{file.relative_to(site)}", wait_until="load")
        assert tab.page.locator("h1").count() == 1 or file.name == "404.html", file
        broken = tab.page.evaluate(
            "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
        )
        assert broken == [], file
        assert tab.problems == [], file
    tab.context.close()


def test_the_search_finds_a_page(browser: Any, address: str) -> None:
    tab = Watched(browser, address)
    tab.page.goto(f"{address}/index.html")
    tab.page.locator("input.md-search__input").fill("micro-batch")
    found = tab.page.locator("a.md-search-result__link")
    found.first.wait_for(state="attached", timeout=20_000)
    assert any("concepts.html" in (link.get_attribute("href") or "") for link in found.all())
    assert tab.problems == []
    tab.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_everybody_can_read_it(browser: Any, address: str, size: str, scheme: str) -> None:
    from axe_playwright_python.sync_playwright import Axe

    tab = Watched(browser, address, viewport=SIZES[size], color_scheme=scheme)
    for name in ("index.html", "concepts.html"):
        tab.page.goto(f"{address}/{name}")
        wanted = {"light": "default", "dark": "slate"}[scheme]
        assert tab.page.locator("body").get_attribute("data-md-color-scheme") == wanted
        found = Axe().run(tab.page).response["violations"]
        grave = [
            (violation["id"], [node["html"][:200] for node in violation["nodes"]][:4])
            for violation in found
            if violation["impact"] in ("serious", "critical")
        ]
        assert grave == [], name
    assert tab.problems == []
    tab.context.close()
