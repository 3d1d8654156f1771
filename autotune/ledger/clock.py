"""Wall clock for timestamps, and monotonic clock for durations.

The wall clock may jump when it is corrected, so no duration and no order is derived from it.
"""

import datetime
import time
from typing import Protocol


class Clock(Protocol):
    """The clock of the ledger; tests replace it."""

    def now(self) -> datetime.datetime:
        """Wall-clock time in UTC."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never decreases."""


class SystemClock:
    """The clock of this machine. A `Clock`."""

    def now(self) -> datetime.datetime:
        """Wall-clock time in UTC."""
        return datetime.datetime.now(datetime.UTC)

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never decreases."""
        return time.monotonic()
