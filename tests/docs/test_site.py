"""The site that mkdocs builds: complete, rendered, and without anything from the network."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from tests.docs.shell import PAGES

# What a browser loads when it opens a page; links that a reader may follow are not among it.
_LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src"}
_LOADED_LINKS = frozenset({"stylesheet", "icon", "preload", "modulepreload", "preconnect"})


class _Page(HTMLParser):
    """What a page loads, and the text of its paragraphs."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.paragraphs: list[str] = []
        self._in_paragraph = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "link" and _LOADED_LINKS & set((values.get("rel") or "").split()):
            self.loaded.append(values.get("href") or "")
        elif tag in _LOADED and values.get(_LOADED[tag]):
            self.loaded.append(values[_LOADED[tag]] or "")
        elif tag == "p":
            self.paragraphs.append("")
            self._in_paragraph = True

    def handle_endtag(self, tag: str) -> None:
        self._in_paragraph = self._in_paragraph and tag != "p"

    def handle_data(self, data: str) -> None:
        if self._in_paragraph:
            self.paragraphs[-1] += data


def pages(site: Path) -> Iterator[tuple[str, _Page]]:
    for file in sorted(site.rglob("*.html")):
        yield str(file.relative_to(site)), _Page(file.read_text("utf-8"))


def test_every_page_is_there(site: Path) -> None:
    for page in PAGES:
        if page.name != "README.md":  # whose subject the quickstart has
            folder = page.parent.name if page.parent.name == "results" else ""
            assert (site / folder / page.name).with_suffix(".html").is_file(), page


def test_nothing_is_loaded_from_the_network(site: Path) -> None:
    found = dict(pages(site))
    assert all(page.loaded for page in found.values())
    for name, page in found.items():
        assert [url for url in page.loaded if re.match(r"\w+:|//", url)] == [], name
    for sheet in site.rglob("*.css"):
        text = re.sub(r"url\(data:[^)]*\)", "", sheet.read_text("utf-8"))
        assert not re.search(r"(url\(|@import)\s*[\"']?(\w+:)?//", text), sheet


def test_lists_and_tables_are_rendered(site: Path) -> None:
    """What is a list or a table on GitHub may be a paragraph to mkdocs: it wants an empty line."""
    for name, page in pages(site):
        for paragraph in page.paragraphs:
            for line in paragraph.splitlines():
                assert not re.match(r"\s*(- |\* |\d+\. |\||```|:::)", line), (name, line)


def test_every_public_name_has_its_description(site: Path) -> None:
    text = (site / "api.html").read_text("utf-8")
    assert "Where and how a search runs" in text  # of Place
    assert "Ranks that each weight matrix is split over." in text  # a field of Layout
