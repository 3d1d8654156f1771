"""Which layouts won: the order of what was measured, and the words of best.json."""

from collections.abc import Sequence
from typing import Any

from autotune.layout import Layout
from autotune.ledger.plausibility import contradicted, final_loss
from autotune.ledger.search_setup import CONFIRMED
from autotune.request import Request
from autotune.store.record import TrialRecord
from autotune.trial.trial import Outcome

_LONGEST_REASON = 100
# Outcomes of a confirmation that do not speak against the layout.
_NO_VERDICT = frozenset({Outcome.OK, Outcome.TIMEOUT, Outcome.LOST})


def wrong_losses(
    precision: str, records: Sequence[TrialRecord], *, votes: int = 1
) -> dict[str, str]:
    """The trials whose loss `votes` others show to be wrong, with the reason, by trial_id."""
    losses = [loss for loss in map(final_loss, records) if loss is not None]
    return contradicted(precision, losses, votes=votes)


def ranked(precision: str, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Successful layouts: those that were confirmed first, then by time.

    Left out are layouts whose loss is contradicted by other trials, and those that were run again
    and failed; the latter are only listed, last, where no layout at all was confirmed. A
    confirmation that was cut short by a deadline or a lost node says nothing.
    """
    wrong = wrong_losses(precision, records)
    worked = [r for r in records if r.outcome is Outcome.OK and r.trial_id not in wrong]
    confirmed = {r.layout: r for r in worked if r.purpose == "confirm"}
    failed = failed_confirmations(precision, records)
    explored = {r.layout: r for r in worked if r.purpose != "confirm" and r.layout not in confirmed}
    standing = [*confirmed.values(), *(r for r in explored.values() if r.layout not in failed)]
    fallen = [] if confirmed else [r for r in explored.values() if r.layout in failed]

    def order(record: TrialRecord) -> tuple[bool, bool, float | None, str]:
        seconds = record.measurement.step_seconds
        return (record.layout in failed, record.purpose != "confirm", seconds, record.trial_id)

    return sorted([*standing, *fallen], key=order)


def failed_confirmations(
    precision: str, records: Sequence[TrialRecord]
) -> dict[Layout, TrialRecord]:
    """Layouts that were run again and failed, each with the trial that did."""
    wrong = wrong_losses(precision, records)
    again = [r for r in records if r.purpose == "confirm"]
    passed = {r.layout for r in again if r.outcome is Outcome.OK and r.trial_id not in wrong}
    return {
        r.layout: r
        for r in again
        if r.layout not in passed and (r.outcome not in _NO_VERDICT or r.trial_id in wrong)
    }


def fastest(precision: str, records: Sequence[TrialRecord]) -> float | None:
    """Step time of the fastest explored layout, with which others are compared while they run."""
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


def next_to_confirm(precision: str, records: Sequence[TrialRecord]) -> Layout | None:
    """The fastest layout that is among the first few and was not confirmed yet; None: no more."""
    tried = {r.layout for r in records if r.purpose == "confirm"}
    standing = {r.layout for r in ranked(precision, records)}
    standing -= failed_confirmations(precision, records).keys()
    explored = [
        r
        for r in records
        if r.purpose != "confirm" and r.outcome is Outcome.OK and r.layout in standing
    ]
    explored.sort(key=lambda r: (r.measurement.step_seconds, r.trial_id))
    fastest = [record.layout for record in explored[:CONFIRMED]]
    return next((layout for layout in fastest if layout not in tried), None)


def summary(
    request: Request, records: Sequence[TrialRecord], stopped_because: str
) -> dict[str, Any] | None:
    """The content of best.json; None while nothing has worked."""
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
    """What speaks against the best layout, where nothing better is known; None: nothing does."""
    best = ranked(precision, records)
    failed = failed_confirmations(precision, records)
    if not best or best[0].layout not in failed:
        return None
    again = failed[best[0].layout]
    return (
        f"the best layout is not confirmed: its longer trial {again.trial_id} ended as "
        f"{again.outcome} ({again.reason[:_LONGEST_REASON]})"
    )


def equal_within_noise(first: TrialRecord, second: TrialRecord) -> bool:
    """Whether two measured step times differ by less than their own spread over the steps."""
    one, other = first.measurement, second.measurement
    if one.step_seconds is None or other.step_seconds is None:
        return False
    spread = max(one.step_seconds_iqr or 0.0, other.step_seconds_iqr or 0.0)
    return abs(one.step_seconds - other.step_seconds) <= spread


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
