"""Two clocks: what time it is, for people; and how much of it has passed, for durations.

The first may jump, by a correction or by hand, so no duration and no order is ever taken from it.
"""

import datetime
import time
from typing import Protocol


class Clock(Protocol):
    """What the ledger reads time from; a test brings its own."""

    def now(self) -> datetime.datetime:
        """The time of day, in UTC."""

    def monotonic(self) -> float:
        """Seconds since some moment; never runs backwards."""


class SystemClock:
    """This machine's. A `Clock`."""

    def now(self) -> datetime.datetime:
        """The time of day, in UTC."""
        return datetime.datetime.now(datetime.UTC)

    def monotonic(self) -> float:
        """Seconds since the machine was started."""
        return time.monotonic()
