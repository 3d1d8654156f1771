"""Reads stored trials, and checks that they can be those of the search that they are read for."""

from collections.abc import Mapping
from pathlib import Path

from autotune.errors import InputError
from autotune.inputs import shown
from autotune.request import Request
from autotune.store.record import TRIAL_SCHEMA, TrialRecord, record_from_row
from autotune.store.tables import read_rows


def stored_trial(file: Path, run_id: str | None) -> TrialRecord:
    """The record in the file of a trial. Raises InputError."""
    records = read_rows(file, TRIAL_SCHEMA, run_id, record_from_row)
    if [record.trial_id for record in records] != [file.stem]:
        found = shown(", ".join(record.trial_id for record in records) or "no row")
        raise InputError(f"{str(file)!r} must hold the one row of trial {file.stem}, got {found}")
    return records[0]


def check_trials(records: Mapping[Path, TrialRecord], request: Request) -> None:
    """Raise InputError for the first record that cannot be of this search.

    That is, its trainable is another, its layout is not in the search, or it repeats an earlier
    trial. Records are in the order of the trials' numbers.
    """
    seen: dict[tuple[object, bool], str] = {}
    for file, record in records.items():
        if record.trainable != request.trainable:
            raise _wrong(file, f"trainable must be {request.trainable}, got {record.trainable}")
        if reason := request.why_not(record.layout):
            raise _wrong(file, f"its layout must be of the search: {reason}")
        confirms = record.purpose == "confirm"
        purpose = "confirms" if confirms else "explores"
        earlier = seen.setdefault((record.layout, confirms), record.trial_id)
        if earlier != record.trial_id:
            raise _wrong(file, f"its layout must be new, got that which trial {earlier} {purpose}")


def _wrong(file: Path, problem: str) -> InputError:
    return InputError(f"{str(file)!r} cannot be read: {problem}")
