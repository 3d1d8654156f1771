"""The time at which a search ends: as stated, or that of its Slurm job."""

import contextlib
import dataclasses
import datetime
import math
import os
from collections.abc import Mapping

from autotune.errors import InputError
from autotune.ledger.clock import Clock

_LONGEST_SECONDS = 1e7
# Set by Slurm in recent versions: seconds since 1970.
_SLURM_END = "SLURM_JOB_END_TIME"
# For ending the ranks and Ray, and for writing the result.
_SLURM_MARGIN_SECONDS = 60.0


@dataclasses.dataclass(frozen=True, slots=True)
class Deadline:
    """When a search ends."""

    at: float
    """Time of the clock's `monotonic`, seconds."""
    stated: str
    """The time of day, as it is shown."""


def deadline_of(
    until: str | float | None, clock: Clock, environment: Mapping[str, str] = os.environ
) -> Deadline | None:
    """The deadline that `until` states, or that of the Slurm job; None where there is neither.

    `until` is a number of seconds from now, or a local time in ISO format: ``18:30`` (of today),
    ``2026-12-01T18:30``, with an optional UTC offset. Raises InputError for others and past times.
    """
    if until is None:
        return _deadline_of_slurm(clock, environment)
    seconds = _seconds_from_now(until, clock)
    return _after(seconds, clock)


def _after(seconds: float, clock: Clock, note: str = "") -> Deadline:
    time = clock.now().astimezone() + datetime.timedelta(seconds=seconds)
    return Deadline(at=clock.monotonic() + seconds, stated=f"{time:%Y-%m-%d %H:%M:%S}{note}")


def _seconds_from_now(until: str | float, clock: Clock) -> float:
    rule = (
        "must be a time such as 18:30 or 2026-12-01T18:30, or a number of seconds above 0 and at "
        f"most {_LONGEST_SECONDS:g}, got {until!r}"
    )
    with contextlib.suppress(ValueError, TypeError):
        seconds = float(until)
        if not 0 < seconds <= _LONGEST_SECONDS or isinstance(until, bool) or math.isnan(seconds):
            raise InputError(rule, field="until")
        return seconds
    try:
        seconds = (_time_of(str(until), clock) - clock.now()).total_seconds()
    except (ValueError, OverflowError):
        raise InputError(rule, field="until") from None
    if seconds <= 0:
        now = f"{clock.now().astimezone():%Y-%m-%dT%H:%M:%S}"
        raise InputError(f"must be in the future, got {until!r} (it is {now})", field="until")
    return seconds


def _time_of(text: str, clock: Clock) -> datetime.datetime:
    """The time that an ISO text states, with its offset or the local one. Raises ValueError."""
    try:
        time_of_day = datetime.time.fromisoformat(text)
    except ValueError:
        return datetime.datetime.fromisoformat(text).astimezone()
    today = clock.now().astimezone(time_of_day.tzinfo).date()
    return datetime.datetime.combine(today, time_of_day).astimezone()


def _deadline_of_slurm(clock: Clock, environment: Mapping[str, str]) -> Deadline | None:
    try:
        end = datetime.datetime.fromtimestamp(int(environment[_SLURM_END]), datetime.UTC)
    except (KeyError, ValueError, OverflowError, OSError):
        return None
    seconds = (end - clock.now()).total_seconds() - _SLURM_MARGIN_SECONDS
    note = f", {_SLURM_MARGIN_SECONDS:g} s before the end of the Slurm job"
    return _after(seconds, clock, note)
