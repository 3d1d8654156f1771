"""Reads the results in a run directory: `autotune.load`."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from autotune.errors import InputError
from autotune.inputs import validated
from autotune.layout import LAYOUT_COLUMNS, Layout
from autotune.request import Request
from autotune.store.record import PRUNED_SCHEMA, STEP_SCHEMA, TRACE_SCHEMA, TRIAL_SCHEMA
from autotune.store.run_directory import open_run
from autotune.store.tables import read_rows, read_table
from autotune.store.trial_rows import ranks_of_rows
from autotune.trial.trace import RankTrace
from autotune.trial.trial import Outcome


class Run:
    """A search that is finished, interrupted or running. Tables are read on first access.

    `docs/schema.md` describes the columns; `.to_pandas()` converts a table to a data frame.
    """

    def __init__(self, directory: str | Path) -> None:
        """Raises InputError where `directory` holds no run."""
        self.directory = Path(directory)
        self._store = open_run(self.directory)
        self.request: Request = self._store.request
        """The request of the search."""

    @property
    def best(self) -> dict[str, Any] | None:
        """The content of best.json: the best layout and its figures; None where no layout ran."""
        return self._store.best()

    @property
    def best_layout(self) -> Layout | None:
        """The best layout; None where no layout ran."""
        best = self.best
        if best is None:
            return None
        return self._layout(best["layout"], what=f"{str(self.directory / 'best.json')!r}")

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
        return self._layout(columns, what=f"trial {trial_id}")

    def _layout(self, columns: Mapping[str, Any], *, what: str) -> Layout:
        layout = validated(Layout, columns, what=what)
        if reason := self.request.why_not(layout):
            raise InputError(f"{what}: the layout must be of the search: {reason}")
        return layout

    @functools.cached_property
    def trials(self) -> pa.Table:
        """A row per finished trial, in the order in which they finished."""
        return self._table("trials", TRIAL_SCHEMA)

    @functools.cached_property
    def steps(self) -> pa.Table:
        """A row per step and rank of every finished trial."""
        return self._table("steps", STEP_SCHEMA)

    def steps_of(self, trial_id: str) -> pa.Table:
        """The rows of `steps` of one finished trial; none where there is no such trial."""
        file = self.directory / "steps" / f"{trial_id}.parquet"
        return self._read(file, STEP_SCHEMA) if file.exists() else STEP_SCHEMA.empty_table()

    @functools.cached_property
    def traces(self) -> pa.Table:
        """A row per pass and message of each traced step, by rank; empty where none was traced."""
        return self._table("traces", TRACE_SCHEMA)

    def trace_of(self, trial_id: str) -> tuple[RankTrace, ...]:
        """The traced steps of every rank of a trial; empty where none was traced. Raises InputError
        where they cannot be read."""
        file = self.directory / "traces" / f"{trial_id}.parquet"
        if not file.exists():
            return ()
        rows = read_rows(file, TRACE_SCHEMA, self._store.run_id, dict)
        what = f"{str(file)!r}"
        return tuple(validated(RankTrace, fields, what=what) for fields in ranks_of_rows(rows))

    @functools.cached_property
    def pruned(self) -> pa.Table:
        """A row per layout that was ruled out by a result, with the reason."""
        file = self.directory / "pruned.parquet"
        return self._read(file, PRUNED_SCHEMA) if file.exists() else PRUNED_SCHEMA.empty_table()

    def _table(self, folder: str, schema: pa.Schema) -> pa.Table:
        files = (self.directory / folder).glob("*.parquet")
        in_order = sorted(files, key=lambda file: (len(file.stem), file.stem))
        tables = [self._read(file, schema) for file in in_order]
        return pa.concat_tables(tables) if tables else schema.empty_table()

    def _read(self, file: Path, schema: pa.Schema) -> pa.Table:
        table = read_table(file, schema, self._store.run_id)
        # Nullable in every table, because older runs lack some columns.
        return table.cast(pa.schema([field.with_nullable(True) for field in schema]))

    def __repr__(self) -> str:
        return f"Run({str(self.directory)!r})"


def load(directory: str | Path) -> Run:
    """Open the run directory of a search. Raises InputError where it holds none."""
    return Run(directory)
