"""Parquet files of a run directory: every row has the run's id, every file a digest.

Files are written without dictionaries and statistics: that makes a file of one row half as large,
and a third faster to read.
"""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import pydantic

from autotune.errors import InputError, first_line
from autotune.inputs import LARGEST_TABLE, first_problem, opened, shown
from autotune.store.files import (
    BLANK_DIGEST,
    DIGEST,
    check_digest,
    sealed,
    write_atomically,
)

T = TypeVar("T")

# Columns that must have a value, but that runs of version 0.1 lack.
_ADDED_LATER = frozenset({"measured_micro_batches"})


def table_of(rows: Sequence[Mapping[str, Any]], schema: pa.Schema, run_id: str | None) -> pa.Table:
    """The rows as a table, each with the run's id."""
    return pa.Table.from_pylist([{**row, "run_id": run_id} for row in rows], schema=schema)


def write_table(path: Path, table: pa.Table) -> None:
    """Write the table atomically. Raises OSError."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(
        buffer, table.schema, store_schema=False, use_dictionary=False, write_statistics=False
    ) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({DIGEST: BLANK_DIGEST})
    content = sealed(buffer.getvalue())
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def read_table(path: Path, schema: pa.Schema, run_id: str | None) -> pa.Table:
    """A table with all columns of `schema`; columns that an older run lacks are null.

    `run_id` is that of the run directory, None for a run of version 0.1, whose files have neither
    an id nor a digest. Raises InputError where the file was changed, is damaged, or is of another
    run.
    """
    with opened(path, largest=LARGEST_TABLE) as file:
        content = file.read()
    try:
        return _table(content, schema, run_id)
    except (pa.ArrowException, OSError, ValueError) as error:  # OSError: of Arrow's decoders
        raise InputError(f"{str(path)!r} cannot be read: {first_line(error)}") from None


def read_rows(
    path: Path, schema: pa.Schema, run_id: str | None, from_row: Callable[[Mapping[str, Any]], T]
) -> list[T]:
    """Read a table and convert each row. Raises InputError as `read_table`, and for an invalid
    row."""
    table = read_table(path, schema, run_id)
    try:
        return [from_row(row) for row in table.to_pylist()]
    except pydantic.ValidationError as error:
        problem = first_problem(error)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        problem = first_line(error)
    raise InputError(f"{str(path)!r} cannot be read: {problem}")


def _table(content: bytes, schema: pa.Schema, run_id: str | None) -> pa.Table:
    check_digest(content, required=run_id is not None)
    with pq.ParquetFile(pa.BufferReader(content)) as file:
        table = file.read(use_threads=False)
    stored = set(table.column_names)
    for field in (field for field in schema if field.name not in stored):
        if not (field.nullable or field.name in _ADDED_LATER):
            raise ValueError(f"column {field.name} is missing")
        table = table.append_column(field.name, pa.nulls(len(table), field.type))
    table = table.select(schema.names)
    if table.schema.types != schema.types:
        table = table.cast(pa.schema([field.with_nullable(True) for field in schema]))
    for found in set(table["run_id"].to_pylist()) - {run_id}:
        raise ValueError(f"run_id must be that of the run, {run_id}, got {shown(found)}")
    return table
