"""Ranking of the measured layouts, and the content of best.json."""

import bisect
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

from autotune.layout import Layout
from autotune.ledger.plausibility import FinalLoss, FinalLosses, final_loss
from autotune.ledger.search_setup import CONFIRMED
from autotune.request import Request
from autotune.store.record import TrialRecord
from autotune.trial.trial import Outcome

_LONGEST_REASON = 100
# Outcomes of a confirmation that do not count as a failure of the layout.
_NOT_A_FAILURE = frozenset({Outcome.OK, Outcome.TIMEOUT, Outcome.LOST})


class Ranking:
    """The finished trials of a search and the order of their layouts.

    The order is kept, not made anew: a trial is added in a time that does not grow with their
    number, unless its final loss changes which of the earlier ones are wrong.
    """

    def __init__(self, precision: str, *, comparable_losses: bool = True) -> None:
        """`precision` is that of the trials, and `comparable_losses` says whether all of them train
        the same model on the same data (`TrainableDescription.comparable_losses`)."""
        self._comparable_losses = comparable_losses
        self.records: list[TrialRecord] = []
        """All trials, oldest first."""
        self.final_losses = FinalLosses(precision)
        """The losses of the trials, and which are wrong."""
        self._forget_order()

    def add(self, record: TrialRecord) -> None:
        """Add a finished trial."""
        self.records.append(record)
        loss = self.comparable_loss(record)
        if loss is not None and self.final_losses.add(loss):
            self._forget_order()
            for earlier in self.records:
                self._place(earlier)
        else:
            self._place(record)

    def comparable_loss(self, record: TrialRecord) -> FinalLoss | None:
        """The final loss of a record; None where it is not comparable."""
        return final_loss(record) if self._comparable_losses else None

    def in_order(self, *, up_to_seconds: float = math.inf) -> Iterator[TrialRecord]:
        """Records of the layouts that ran: confirmed ones first, then by step time.

        Trials with a wrong loss are left out. So are layouts that failed their confirmation, unless
        no layout was confirmed: then they come last. A confirmation that ended by a timeout or a
        lost node does not count as a failure. Step times above `up_to_seconds` are left out.
        """

        def in_time(records: Iterable[TrialRecord]) -> Iterator[TrialRecord]:
            return itertools.takewhile(lambda r: _step_seconds(r) <= up_to_seconds, records)

        yield from in_time(sorted(self._confirmed.values(), key=_by_time))
        for record in in_time(self._explored):
            if record.layout not in self._confirmed and record.layout not in self._failed:
                yield record
        if self._failed and not self._confirmed:
            yield from (r for r in in_time(self._explored) if r.layout in self._failed)

    @property
    def fastest_seconds(self) -> float | None:
        """Step time of the fastest valid exploring trial; running trials are compared to it."""
        valid = (_step_seconds(r) for r in self._explored if r.layout not in self._failed)
        return next((seconds for seconds in valid if math.isfinite(seconds)), None)

    def to_confirm(self) -> list[TrialRecord]:
        """Exploring trials of the first `CONFIRMED` layouts, fastest first, confirmed or not."""
        eligible = {r.layout for r in self.in_order()} - self._failed.keys()
        explored = [
            r
            for r in self.records
            if r.purpose != "confirm" and r.outcome is Outcome.OK and r.layout in eligible
        ]
        return sorted(explored, key=_by_time)[:CONFIRMED]

    def next_to_confirm(self) -> TrialRecord | None:
        """The exploring trial of the fastest layout without a confirmation; None: all have one."""
        tried = self.confirmed_layouts
        return next((r for r in self.to_confirm() if r.layout not in tried), None)

    @property
    def confirmed_layouts(self) -> set[Layout]:
        """Layouts that had a longer trial, whatever its outcome."""
        return {r.layout for r in self.records if r.purpose == "confirm"}

    @property
    def failed(self) -> dict[Layout, TrialRecord]:
        """The layouts that failed their longer trial, each with the record of that trial."""
        return dict(self._failed)

    def summary(self, request: Request, stopped_because: str) -> dict[str, Any] | None:
        """The content of best.json; None while no layout has run."""
        first, second = itertools.islice(itertools.chain(self.in_order(), (None, None)), 2)
        if first is None:
            return None
        # Twice the largest: it only bounds what is compared.
        near = self.in_order(up_to_seconds=_step_seconds(first) + 2 * self._largest_spread)
        equal = [r.trial_id for r in near if r is not first and equal_within_noise(first, r)]
        return {
            **_brief(first),
            "trainable": request.trainable,
            "simulated": request.simulated,
            "runner_up": None if second is None else _brief(second),
            "equal_within_noise": equal,
            "slow_devices": sorted(self._slow_devices),
            "stopped_because": stopped_because,
            "warning": self.warning,
        }

    @property
    def warning(self) -> str | None:
        """A warning that the best layout failed its confirmation; None where it did not."""
        first = next(self.in_order(), None)
        if first is None or first.layout not in self._failed:
            return None
        confirmation = self._failed[first.layout]
        return (
            f"the best layout is not confirmed: its longer trial {confirmation.trial_id} ended as "
            f"{confirmation.outcome} ({confirmation.reason[:_LONGEST_REASON]})"
        )

    def _forget_order(self) -> None:
        self._explored: list[TrialRecord] = []
        """Valid exploring trials by step time, one of a layout."""
        self._explored_of: dict[Layout, TrialRecord] = {}
        self._confirmed: dict[Layout, TrialRecord] = {}
        self._failed: dict[Layout, TrialRecord] = {}
        """The layouts that failed their confirmation, each with the record of that trial."""
        self._slow_devices: set[str] = set()
        self._largest_spread = 0.0
        """The largest interquartile range of a trial's step times."""

    def _place(self, record: TrialRecord) -> None:
        """Put a record where it belongs in the order."""
        layout = record.layout
        self._largest_spread = max(self._largest_spread, record.measurement.step_seconds_iqr or 0.0)
        if record.slow_device is not None:
            self._slow_devices.add(record.slow_device)
        is_wrong = record.trial_id in self.final_losses.wrong
        is_valid = record.outcome is Outcome.OK and not is_wrong
        if record.purpose != "confirm":
            if is_valid:
                if layout in self._explored_of:
                    self._explored.remove(self._explored_of[layout])
                self._explored_of[layout] = record
                bisect.insort(self._explored, record, key=_by_time)
        elif is_valid:
            self._confirmed[layout] = record
            self._failed.pop(layout, None)
        elif layout not in self._confirmed and (is_wrong or record.outcome not in _NOT_A_FAILURE):
            self._failed[layout] = record


def _step_seconds(record: TrialRecord) -> float:
    """For sorting: infinite where no step was measured."""
    seconds = record.measurement.step_seconds
    return math.inf if seconds is None else seconds


def _by_time(record: TrialRecord) -> tuple[float, str]:
    return _step_seconds(record), record.trial_id


def equal_within_noise(first: TrialRecord, second: TrialRecord) -> bool:
    """Whether two step times differ by at most the larger interquartile range of their steps."""
    a, b = first.measurement, second.measurement
    if a.step_seconds is None or b.step_seconds is None:
        return False
    spread = max(a.step_seconds_iqr or 0.0, b.step_seconds_iqr or 0.0)
    return abs(a.step_seconds - b.step_seconds) <= spread


def _brief(record: TrialRecord) -> dict[str, Any]:
    measurement = record.measurement
    return {
        "layout": record.layout.columns(),
        "trial_id": record.trial_id,
        "purpose": record.purpose,
        "step_seconds": measurement.step_seconds,
        "mfu": measurement.mfu,
        "peak_memory_gib": measurement.peak_memory_gib,
        "tokens_per_second_per_gpu": measurement.tokens_per_second_per_gpu,
        "step_seconds_drift": measurement.step_seconds_drift,
        "memory_growth_gib": measurement.memory_growth_gib,
    }
