"""Reads the results in a run directory: `autotune.load`."""

import functools
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from autotune.errors import InputError, first_line
from autotune.layout import Layout
from autotune.request import Request
from autotune.store.record import PRUNED_SCHEMA, STEP_SCHEMA, TRIAL_SCHEMA
from autotune.store.run_directory import open_run


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
        return None if best is None else Layout(**best["layout"])

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
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{str(file)!r} cannot be read: {first_line(error)}") from None
    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(len(table), field.type)
        for field in schema
    ]
    nullable = pa.schema([field.with_nullable(True) for field in schema])
    return pa.table(columns, schema=nullable)
