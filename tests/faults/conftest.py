"""The table of the fault suite: tests add rows, and pytest prints them at the end of its output.

With FAULTS_TABLE=replace, as of `make faults`, they are written into docs/reliability.md; with
FAULTS_TABLE=update those of the same faults are replaced there, and new ones added.
"""

import dataclasses
import itertools
import os
from collections.abc import Callable, Mapping

import pytest

from tests.conftest import REPOSITORY

PAGE = REPOSITORY / "docs" / "reliability.md"
HEAD = "| fault | on record | noticed after |\n|---|---|---|\n"
ROWS = pytest.StashKey[list["Row"]]()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """Effect of one fault, for the table in docs/reliability.md."""

    fault: str
    recorded: str
    """Outcome and reason, or exit status and sentence."""
    seconds: float | None = None
    """Until it was noticed."""

    @property
    def line(self) -> str:
        """The row in Markdown."""
        seconds = "" if self.seconds is None else f"{self.seconds:.1f} s"
        return f"| {self.fault} | {self.recorded} | {seconds} |"


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Callable[[Row], None]:
    """Adds a row to the table."""
    return request.config.stash.setdefault(ROWS, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows = terminalreporter.config.stash.get(ROWS, [])
    if not rows:
        return
    made = {row.fault: row.line for row in rows}
    terminalreporter.section("faults")
    for line in made.values():
        terminalreporter.line(line)
    how = os.environ.get("FAULTS_TABLE")
    if how is not None:
        assert how in ("replace", "update"), "all rows, or those of the same faults"
        text = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(with_rows(text, made, update=how == "update"), encoding="utf-8")


def with_rows(page: str, made: Mapping[str, str], *, update: bool) -> str:
    """The page with the rows in its table; `update` keeps the rows of other faults."""
    before, _, rest = page.partition(HEAD)
    assert rest, "the page has the table"
    lines = rest.split("\n")
    old = list(itertools.takewhile(lambda line: line.startswith("| "), lines))
    kept = {line.split(" | ")[0].removeprefix("| "): line for line in old} if update else {}
    return before + HEAD + "\n".join([*{**kept, **made}.values(), *lines[len(old) :]])
