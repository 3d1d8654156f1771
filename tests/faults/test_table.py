"""The table in docs/reliability.md is written by the tests."""

from tests.faults.conftest import HEAD, PAGE, Row, with_rows


def test_rows_are_written_into_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.count(HEAD) == 1
    made = {row.fault: row.line for row in (Row(fault="a", recorded="ok", seconds=1.26),)}
    alone = with_rows(page, made, update=False)
    assert f"{HEAD}| a | ok | 1.3 s |\n\n" in alone
    both = with_rows(alone, {"b": "| b | lost |  |"}, update=True)
    assert f"{HEAD}| a | ok | 1.3 s |\n| b | lost |  |\n\n" in both
    changed = with_rows(both, {"a": "| a | oom |  |"}, update=True)
    assert f"{HEAD}| a | oom |  |\n| b | lost |  |\n\n" in changed
    assert changed.partition(HEAD)[0] == page.partition(HEAD)[0]
    assert changed.endswith(page.partition(HEAD)[2].partition("\n\n")[2])
