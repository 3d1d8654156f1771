"""Write docs/schema.md from the code: the run directory's tables, with the meaning of each column.

    python docs/make_schema.py

Types are those of the Parquet schemas, meanings the docstrings of the fields that the columns hold,
and units follow from the columns' names.
"""

import ast
import inspect
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from autotune.layout import Layout
from autotune.search import Prediction, Pruned
from autotune.store.record import (
    PRUNED_SCHEMA,
    STEP_SCHEMA,
    TRACE_SCHEMA,
    TRIAL_SCHEMA,
    TrialRecord,
)
from autotune.trial.measurement import Measurement
from autotune.trial.trace import RankTrace, Traced
from autotune.trial.trial import RankStep

PAGE = Path(__file__).with_name("schema.md")

UNITS = {
    "tokens_per_second_per_gpu": "tokens/s",
    "gpu_seconds": "GPU seconds",
    "seconds": "s",
    "seconds_iqr": "s",
    "gib": "GiB",
    "mfu": "share, 0 to 1",
    "flops_utilisation": "share, 0 to 1",
    "probability": "share, 0 to 1",
    "drift": "share",
    "at": "UTC",
}
"""By the end of the name; the first that fits."""

# Columns that are no field of a dataclass.
OWN_MEANINGS = {
    "world_size": "Ranks of the layout.",
    "measured_data_parallel": "Replicas that the trial ran with: the layout's.",
    "run_id": "Random id of the run, in all its files; null in runs of version 0.1.",
    "micro_batches": "Micro-batches of the step; fewer than the layout's in a reduced trial.",
}

HEAD = """\
# The run directory
Made by `python docs/make_schema.py` from the code; a test compares them. A run directory holds

| file | content |
|---|---|
| `run.json` | the frozen request, the run's id, versions of the software, the nodes as found |
| `trials/TRIAL.parquet` | one row: a finished trial |
| `steps/TRIAL.parquet` | a row per step and rank of that trial |
| `traces/TRIAL.parquet` | what each rank did when in the traced steps (`run --trace-steps`) |
| `pruned.parquet` | a row per layout that a result ruled out, with the reason |
| `best.json` | the best layout, its figures, the runner-up, why the search ended, a warning |
| `logs/TRIAL/rank-N.log` | output of each rank |
| `report.html` | a page about the search |
| `status.json` | what the search is doing, for `autotune watch`; nothing depends on it |
| `export/` | the best layout for other programs |

`autotune.load(DIR)` reads them: `.trials`, `.steps`, `.traces` and `.pruned` are PyArrow tables
(with `.to_pandas()`), `.best` is best.json, `.request` what was searched. **A number that was not
measured is null**, never filled in; columns marked "null" may be null. Rows of older versions lack
some columns: `load` gives null there.

The JSON and Parquet files but `status.json` have the SHA-256 of their content, under the key
`sha256` of the JSON object or of Parquet's
metadata: the digest of the file's bytes with its own 64 digits taken as zeros. A file that was
changed or damaged, or that belongs to another run, is refused when it is read.
"""


def attribute_docs(kind: type) -> dict[str, str]:
    """The docstrings below the fields of a class, and those of its properties, by name."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    docs = {}
    for field, after in zip(tree.body, [*tree.body[1:], None], strict=True):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            docs[field.target.id] = " ".join(str(after.value.value).split())
    return docs


def unit_of(column: str) -> str:
    """The unit that a column's name tells; empty where it is a count or a word."""
    return next((unit for end, unit in UNITS.items() if column.endswith(end)), "")


def table(title: str, schema: pa.Schema, meanings: Mapping[str, str]) -> str:
    """A section of the page. Raises KeyError for a column without a meaning."""
    lines = [f"\n## {title}", "| column | type | unit | null | meaning |", "|---|---|---|---|---|"]
    for field in schema:
        null = "null" if field.nullable else ""
        meaning = meanings[field.name].replace("|", "\\|")
        lines.append(
            f"| {field.name} | {field.type} | {unit_of(field.name)} | {null} | {meaning} |"
        )
    return "\n".join(lines) + "\n"


def page() -> str:
    """The whole page."""
    layout = attribute_docs(Layout)
    predicted = {f"predicted_{n}": text for n, text in attribute_docs(Prediction).items()}
    trials = {
        **attribute_docs(TrialRecord),
        **attribute_docs(Measurement),
        **layout,
        **predicted,
        **OWN_MEANINGS,
    }
    steps = {"trial_id": trials["trial_id"], **attribute_docs(RankStep), **OWN_MEANINGS}
    traces = {
        "trial_id": trials["trial_id"],
        "stage": "Pipeline stage of the rank, from 0.",
        **attribute_docs(RankTrace),
        **attribute_docs(Traced),
        **OWN_MEANINGS,
    }
    return "".join(
        (
            HEAD,
            table("trials", TRIAL_SCHEMA, trials),
            table("steps", STEP_SCHEMA, steps),
            table("traces", TRACE_SCHEMA, traces),
            table("pruned", PRUNED_SCHEMA, {**layout, **attribute_docs(Pruned), **OWN_MEANINGS}),
        )
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.exit(0)
