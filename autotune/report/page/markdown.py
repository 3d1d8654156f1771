"""The report of a run as Markdown, for a README or a pull request."""

from collections.abc import Iterator

from autotune.report.facts import RunFacts, notices, state
from autotune.report.page.content import sections, title
from autotune.report.page.sections import Section, Table
from autotune.report.plan import headline

# Below the heading of a column: how its cells are aligned.
_LEFT, _RIGHT = "-" * 3, "-" * 3 + ":"


def markdown_report(facts: RunFacts) -> str:
    """The report without its charts and long tables."""
    lines = [f"# {title(facts)}", "", headline(facts.space), "", state(facts), ""]
    for notice in notices(facts):
        lines += [f"**{_escaped(notice)}**", ""]
    for section in sections(facts):
        if section.in_text:
            lines += _section(section)
    return "\n".join(lines).rstrip() + "\n"


def _section(section: Section) -> Iterator[str]:
    yield f"## {section.title}"
    yield ""
    for sentence in section.sentences:
        yield _escaped(sentence)
        yield ""
    for point in section.points:
        yield f"- {_escaped(point)}"
    if section.points:
        yield ""
    for table in section.tables:
        if not table.long:
            yield from _table(table)
            yield ""


def _table(table: Table) -> Iterator[str]:
    if table.caption:
        yield f"{_escaped(table.caption)}:"
        yield ""
    yield _row(table.columns)
    yield _row([_RIGHT if name in table.numeric else _LEFT for name in table.columns])
    for row in table.rows:
        yield _row([_escaped(cell) for cell in row])


def _row(cells: object) -> str:
    assert isinstance(cells, list | tuple)
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """The text as Markdown shows it, in one line."""
    one_line = " ".join(text.split())
    for character in "\\|*_`<":
        one_line = one_line.replace(character, f"\\{character}")
    return one_line
