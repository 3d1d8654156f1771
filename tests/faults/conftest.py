"""The table of the fault suite: tests add rows, and pytest prints it at the end of its output."""

import dataclasses
from collections.abc import Callable

import pytest

ROWS = pytest.StashKey[list["Row"]]()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """Effect of one fault, for the table in docs/reliability.md."""

    fault: str
    recorded: str
    """Outcome and reason, or exit status and sentence."""
    seconds: float | None = None
    """Until it was noticed."""


@pytest.fixture
def row(request: pytest.FixtureRequest) -> Callable[[Row], None]:
    """Adds a row to the table."""
    return request.config.stash.setdefault(ROWS, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    rows = terminalreporter.config.stash.get(ROWS, [])
    if rows:
        terminalreporter.section("faults")
        terminalreporter.line("| fault | on record | noticed after |")
        terminalreporter.line("|---|---|---|")
    for one in rows:
        seconds = "" if one.seconds is None else f"{one.seconds:.1f} s"
        terminalreporter.line(f"| {one.fault} | {one.recorded} | {seconds} |")
