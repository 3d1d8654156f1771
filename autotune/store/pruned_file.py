"""pruned.parquet: the layouts that were ruled out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from autotune.search.pruning import Pruned
from autotune.store.record import PRUNED_SCHEMA, layout_from_row
from autotune.store.tables import read_rows, table_of, write_table


class PrunedFile:
    """The file with the layouts that were ruled out, which mostly grows at its end."""

    def __init__(self, path: Path, run_id: str | None) -> None:
        """`run_id` is that of the run, None for a run of version 0.1."""
        self._path = path
        self._run_id = run_id
        # What was written, as it was given and as a table: it is not converted again.
        self._written: list[Pruned] = []
        self._table: pa.Table = PRUNED_SCHEMA.empty_table()

    def write(self, pruned: list[Pruned]) -> None:
        """Replace the content. Raises OSError."""
        if pruned[: len(self._written)] != self._written:
            self._written, self._table = [], PRUNED_SCHEMA.empty_table()
        new = pruned[len(self._written) :]
        rows = [{**item.layout.columns(), "reason": item.reason} for item in new]
        added = table_of(rows, PRUNED_SCHEMA, self._run_id)
        self._table = pa.concat_tables([self._table, added]).combine_chunks()
        self._written = list(pruned)
        write_table(self._path, self._table)

    def read(self) -> list[Pruned]:
        """The content; nothing where there is no file. Raises InputError."""
        if not self._path.exists():
            return []
        return read_rows(self._path, PRUNED_SCHEMA, self._run_id, _from_row)


def _from_row(row: Mapping[str, Any]) -> Pruned:
    return Pruned(layout=layout_from_row(row), reason=row["reason"])
