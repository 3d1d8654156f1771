"""The shell commands of the documentation: fenced `sh` blocks, divided into simple commands."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import REPOSITORY

PAGES = (
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs").rglob("*.md")),
)

_SEPARATORS = frozenset({"|", "||", "&", "&&", ";", "(", ")"})
_REDIRECTIONS = frozenset({">", ">>", "<", ">&", "&>"})
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=.*", re.DOTALL)
# Commands that run the rest of their words.
_BEFORE_A_COMMAND = frozenset({"nohup", "exec", "time"})


def scripts(page: Path) -> list[str]:
    """The text of each `sh` block of a page."""
    return re.findall(r"```sh\n(.*?)```", page.read_text("utf-8"), flags=re.DOTALL)


def simple_commands(script: str) -> Iterator[list[str]]:
    """The words of each command: no comments, redirections, assignments, `nohup` and the like."""
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        skip = False
        for word in [*lexer, ";"]:
            if skip:
                skip = False
            elif word in _REDIRECTIONS:
                skip = True
                if words and words[-1].isdigit():
                    words.pop()  # the descriptor
            elif word in _SEPARATORS:
                yield from _bare(words)
                words = []
            else:
                words.append(word)


def _bare(words: list[str]) -> Iterator[list[str]]:
    while words and (_ASSIGNMENT.fullmatch(words[0]) or words[0] in _BEFORE_A_COMMAND):
        words = words[1:]
    if words:
        yield words


def documented() -> dict[str, list[str]]:
    """Every command of all pages, each once, by how it reads."""
    return {
        shlex.join(words): words
        for page in PAGES
        for script in scripts(page)
        for words in simple_commands(script)
    }
