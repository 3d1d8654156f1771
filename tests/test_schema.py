"""docs/schema.md is what docs/make_schema.py makes of the code."""

import runpy

from autotune.store.record import PRUNED_SCHEMA, STEP_SCHEMA, TRACE_SCHEMA, TRIAL_SCHEMA
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "schema.md").read_text(encoding="utf-8")


def test_the_page_is_up_to_date() -> None:
    made = runpy.run_path(str(REPOSITORY / "docs" / "make_schema.py"))["page"]()
    assert made == PAGE, "run: python docs/make_schema.py"


def test_every_column_has_a_meaning_and_every_quantity_a_unit() -> None:
    for schema in (TRIAL_SCHEMA, STEP_SCHEMA, TRACE_SCHEMA, PRUNED_SCHEMA):
        for field in schema:
            (row, *_) = [line for line in PAGE.splitlines() if line.startswith(f"| {field.name} |")]
            _, kind, unit, _, meaning = (cell.strip() for cell in row.strip("|").split("|", 4))
            assert meaning.endswith("."), row
            if kind == "double" and field.name not in ("loss", "final_loss", "grad_norm"):
                assert unit, row
