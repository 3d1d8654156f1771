"""Hooks of mkdocs: pages of the top level of the repository become pages of the site.

Their links to `docs/`, and links of other pages to them, are changed to where they are in the site;
in the repository all of them work as they stand. Links to other files of the repository, which the
site does not have, become their paths.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

TOP_LEVEL = ("CONTRIBUTING.md", "DECISIONS.md", "CHANGELOG.md")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the top level."""
    repository = Path(config.config_file_path).parent
    for name in TOP_LEVEL:
        text = (repository / name).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text.replace("](docs/", "](")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The text of a page with its links out of `docs/` changed."""
    to_root = "../" * page.file.src_uri.count("/")
    link = re.compile(rf"\[([^\]]*)\]\(\.\./{re.escape(to_root)}([^)#]+)(#[^)]*)?\)")

    def changed(found: re.Match[str]) -> str:
        text, target, anchor = found.groups()
        if target in TOP_LEVEL:
            return f"[{text}]({to_root}{target}{anchor or ''})"
        return f"{text} (`{target}`)"

    return link.sub(changed, markdown)
