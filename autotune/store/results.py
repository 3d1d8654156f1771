"""Reads the results in a run directory: `autotune.load`."""

import functools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from autotune.errors import InputError, first_line
from autotune.inputs import validated
from autotune.layout import LAYOUT_COLUMNS, Layout
from autotune.request import Request
from autotune.store.record import PRUNED_SCHEMA, STEP_SCHEMA, TRIAL_SCHEMA
from autotune.store.run_directory import open_run
from autotune.trial.trial import Outcome


class Run:
    """A search that is finished, interrupted or running. Tables are read on first access.

    `docs/schema.md` describes the columns; `.to_pandas()` converts a table to a data frame.
    """

    def __init__(self, directory: str | Path) -> None:
        """Raises InputError where `directory` holds no run."""
        self.directory = Path(directory)
        self.request: Request = open_run(self.directory).request
        """The request of the search."""

    @property
    def best(self) -> dict[str, Any] | None:
        """The content of best.json: the best layout and its figures; None where no layout ran."""
        file = self.directory / "best.json"
        if not file.exists():
            return None
        try:
            content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{str(file)!r} cannot be read: {first_line(error)}") from None
        return content

    @property
    def best_layout(self) -> Layout | None:
        """The best layout; None where no layout ran."""
        best = self.best
        if best is None:
            return None
        layout = best.get("layout") if isinstance(best, dict) else None
        if not isinstance(layout, dict):
            raise InputError(f"{str(self.directory / 'best.json')!r} must name a layout")
        return validated(Layout, layout, what=f"{str(self.directory / 'best.json')!r}")

    def layout_of(self, trial_id: str) -> Layout:
        """The layout of a trial that worked. Raises InputError where there is no such trial."""
        worked = {}
        for row in self.trials.to_pylist():
            if row["outcome"] == Outcome.OK:
                worked[row["trial_id"]] = row
        if trial_id not in worked:
            known = ", ".join(map(str, worked)) or "none"
            raise InputError(
                f"must be a trial that worked ({known}), got {trial_id!r}", field="trial"
            )
        columns = {name: worked[trial_id][name] for name in LAYOUT_COLUMNS}
        return validated(Layout, columns, what=f"trial {trial_id}")

    @functools.cached_property
    def trials(self) -> pa.Table:
        """A row per finished trial, in the order in which they finished."""
        return self._table("trials", TRIAL_SCHEMA)

    @functools.cached_property
    def steps(self) -> pa.Table:
        """A row per step and rank of every finished trial."""
        return self._table("steps", STEP_SCHEMA)

    @functools.cached_property
    def pruned(self) -> pa.Table:
        """A row per layout that was ruled out by a result, with the reason."""
        file = self.directory / "pruned.parquet"
        return _read(file, PRUNED_SCHEMA) if file.exists() else PRUNED_SCHEMA.empty_table()

    def _table(self, folder: str, schema: pa.Schema) -> pa.Table:
        files = (self.directory / folder).glob("*.parquet")
        tables = [_read(f, schema) for f in sorted(files, key=lambda f: (len(f.stem), f.stem))]
        return pa.concat_tables(tables) if tables else schema.empty_table()

    def __repr__(self) -> str:
        return f"Run({str(self.directory)!r})"


def load(directory: str | Path) -> Run:
    """Open the run directory of a search. Raises InputError where it holds none."""
    return Run(directory)


def _read(file: Path, schema: pa.Schema) -> pa.Table:
    """A table with all columns of `schema`; columns that an older run lacks are null."""
    try:
        table = pq.read_table(file)
        columns = [
            table[field.name].cast(field.type)
            if field.name in table.column_names
            else pa.nulls(len(table), field.type)
            for field in schema
        ]
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{str(file)!r} cannot be read: {first_line(error)}") from None
    # The first column names the row, in every table and every version.
    if schema[0].name not in table.column_names:
        raise InputError(f"{str(file)!r} cannot be read: column {schema[0].name} is missing")
    nullable = pa.schema([field.with_nullable(True) for field in schema])
    return pa.table(columns, schema=nullable)
