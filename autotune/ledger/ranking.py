"""Ranking of the measured layouts, and the content of best.json."""

from collections.abc import Sequence
from typing import Any

from autotune.layout import Layout
from autotune.ledger.plausibility import contradicted, final_loss
from autotune.ledger.search_setup import CONFIRMED
from autotune.request import Request
from autotune.store.record import TrialRecord
from autotune.trial.trial import Outcome

_LONGEST_REASON = 100
# Outcomes of a confirmation that do not count as a failure of the layout.
_NOT_A_FAILURE = frozenset({Outcome.OK, Outcome.TIMEOUT, Outcome.LOST})


def wrong_losses(
    precision: str, records: Sequence[TrialRecord], *, votes: int = 1
) -> dict[str, str]:
    """Trials whose final loss differs from one that `votes` trials agree on: reason by trial_id."""
    losses = [loss for loss in map(final_loss, records) if loss is not None]
    return contradicted(precision, losses, votes=votes)


def ranked(precision: str, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Records of the layouts that ran: confirmed ones first, then by step time.

    Trials with a wrong loss are left out. So are layouts that failed their confirmation, unless no
    layout was confirmed: then they come last. A confirmation that ended by a timeout or a lost node
    does not count as a failure.
    """
    wrong = wrong_losses(precision, records)
    valid = [r for r in records if r.outcome is Outcome.OK and r.trial_id not in wrong]
    confirmed = {r.layout: r for r in valid if r.purpose == "confirm"}
    failed = failed_confirmations(precision, records)
    explored = {r.layout: r for r in valid if r.purpose != "confirm" and r.layout not in confirmed}
    passed = [*confirmed.values(), *(r for r in explored.values() if r.layout not in failed)]
    last_resort = [] if confirmed else [r for r in explored.values() if r.layout in failed]

    def order(record: TrialRecord) -> tuple[bool, bool, float | None, str]:
        seconds = record.measurement.step_seconds
        return (record.layout in failed, record.purpose != "confirm", seconds, record.trial_id)

    return sorted([*passed, *last_resort], key=order)


def failed_confirmations(
    precision: str, records: Sequence[TrialRecord]
) -> dict[Layout, TrialRecord]:
    """Layouts that failed their confirmation, each with the record of that trial."""
    wrong = wrong_losses(precision, records)
    confirmations = [r for r in records if r.purpose == "confirm"]
    passed = {
        r.layout for r in confirmations if r.outcome is Outcome.OK and r.trial_id not in wrong
    }
    return {
        r.layout: r
        for r in confirmations
        if r.layout not in passed and (r.outcome not in _NOT_A_FAILURE or r.trial_id in wrong)
    }


def fastest(precision: str, records: Sequence[TrialRecord]) -> float | None:
    """Step time of the fastest valid exploring trial; running trials are compared to it."""
    wrong = wrong_losses(precision, records)
    failed = failed_confirmations(precision, records)
    times = (
        record.measurement.step_seconds
        for record in records
        if record.purpose != "confirm"
        and record.outcome is Outcome.OK
        and record.trial_id not in wrong
        and record.layout not in failed
    )
    return min((seconds for seconds in times if seconds is not None), default=None)


def to_confirm(precision: str, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Exploring trials of the first `CONFIRMED` layouts, fastest first, confirmed or not."""
    eligible = {r.layout for r in ranked(precision, records)}
    eligible -= failed_confirmations(precision, records).keys()
    explored = [
        r
        for r in records
        if r.purpose != "confirm" and r.outcome is Outcome.OK and r.layout in eligible
    ]
    explored.sort(key=lambda r: (r.measurement.step_seconds, r.trial_id))
    return explored[:CONFIRMED]


def next_to_confirm(precision: str, records: Sequence[TrialRecord]) -> TrialRecord | None:
    """The exploring trial of the fastest layout without a confirmation; None: all have one."""
    tried = {r.layout for r in records if r.purpose == "confirm"}
    return next((r for r in to_confirm(precision, records) if r.layout not in tried), None)


def summary(
    request: Request, records: Sequence[TrialRecord], stopped_because: str
) -> dict[str, Any] | None:
    """The content of best.json; None while no layout has run."""
    best = ranked(request.space.precision, records)
    if not best:
        return None
    first, *others = best
    return {
        **_brief(first),
        "trainable": request.trainable,
        "simulated": request.simulated,
        "runner_up": _brief(others[0]) if others else None,
        "equal_within_noise": [r.trial_id for r in others if equal_within_noise(first, r)],
        "slow_devices": sorted({r.slow_device for r in records if r.slow_device is not None}),
        "stopped_because": stopped_because,
        "warning": warning(request.space.precision, records),
    }


def warning(precision: str, records: Sequence[TrialRecord]) -> str | None:
    """A warning that the best layout failed its confirmation; None where it did not."""
    best = ranked(precision, records)
    failed = failed_confirmations(precision, records)
    if not best or best[0].layout not in failed:
        return None
    confirmation = failed[best[0].layout]
    return (
        f"the best layout is not confirmed: its longer trial {confirmation.trial_id} ended as "
        f"{confirmation.outcome} ({confirmation.reason[:_LONGEST_REASON]})"
    )


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
