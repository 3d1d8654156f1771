"""A ranking that grows trial by trial is the one that all of the trials give at once."""

import dataclasses
import datetime
from collections.abc import Sequence
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from autotune.layout import Layout
from autotune.ledger.plausibility import FinalLosses, final_loss
from autotune.ledger.ranking import Ranking, equal_within_noise
from autotune.named_spaces import load_space
from autotune.store.record import TrialRecord
from autotune.trial.measurement import Measurement
from autotune.trial.trial import Outcome
from tests.autotune.simulate import fake_request
from tests.conftest import examples

LAYOUTS = load_space("tiny").layouts()[:40:5]
REQUEST = fake_request()
PRECISION = REQUEST.space.precision
NOON = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)

measurements = st.builds(
    Measurement,
    measured_steps=st.sampled_from([5, 5, 15]),
    measured_micro_batches=st.just((4,)),
    # A few values, so that there are ties.
    step_seconds=st.sampled_from([1.0, 1.1, 1.25, 1.5, 2.0, 1e-9]),
    step_seconds_iqr=st.sampled_from([None, 0.0, 0.1, 0.15, 0.5]),
    tokens_per_second_per_gpu=st.none(),
    mfu=st.none(),
    hardware_flops_utilisation=st.none(),
    peak_memory_gib=st.none(),
    final_loss=st.sampled_from([9.0, 9.0, 9.0, 7.0, 7.001, None]),
)
trials = st.lists(
    st.builds(
        TrialRecord,
        trial_id=st.just(""),
        trainable=st.just("fake"),
        purpose=st.sampled_from(["explore", "reduced", "confirm"]),
        layout=st.sampled_from(LAYOUTS),
        outcome=st.sampled_from([Outcome.OK] * 6 + list(Outcome)),
        reason=st.just("why"),
        measurement=measurements,
        startup_seconds=st.none(),
        gpu_seconds=st.just(1.0),
        attempts=st.just(1),
        slow_device=st.sampled_from([None, None, "rank 1", "rank 2"]),
        started_at=st.just(NOON),
        finished_at=st.just(NOON),
    ),
    max_size=14,
)


def wrong_of(records: Sequence[TrialRecord]) -> set[str]:
    final_losses = FinalLosses(PRECISION)
    for record in records:
        if (loss := final_loss(record)) is not None:
            final_losses.add(loss)
    return final_losses.wrong


def failures(records: Sequence[TrialRecord]) -> dict[Layout, TrialRecord]:
    """Layouts that failed their confirmation."""
    wrong = wrong_of(records)
    confirmations = [r for r in records if r.purpose == "confirm"]
    passed = {r.layout for r in confirmations if r.outcome == "ok" and r.trial_id not in wrong}
    return {
        r.layout: r
        for r in confirmations
        if r.layout not in passed
        and (r.outcome not in ("ok", "timeout", "lost") or r.trial_id in wrong)
    }


def ranked(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    wrong, failed = wrong_of(records), failures(records)
    valid = [r for r in records if r.outcome == "ok" and r.trial_id not in wrong]
    confirmed = {r.layout: r for r in valid if r.purpose == "confirm"}
    explored = {r.layout: r for r in valid if r.purpose != "confirm" and r.layout not in confirmed}
    chosen = [*confirmed.values(), *(r for r in explored.values() if r.layout not in failed)]
    if not confirmed:
        chosen += [r for r in explored.values() if r.layout in failed]

    def order(record: TrialRecord) -> tuple[Any, ...]:
        seconds = record.measurement.step_seconds
        return record.layout in failed, record.purpose != "confirm", seconds, record.trial_id

    return sorted(chosen, key=order)


def fastest(records: Sequence[TrialRecord]) -> float | None:
    wrong, failed = wrong_of(records), failures(records)
    last = {
        r.layout: r
        for r in records
        if r.purpose != "confirm" and r.outcome == "ok" and r.trial_id not in wrong
    }
    times = (r.measurement.step_seconds for r in last.values() if r.layout not in failed)
    return min((seconds for seconds in times if seconds is not None), default=None)


@examples(300)
@given(found=trials)
def test_adding_a_trial_gives_the_order_of_all_at_once(found: list[TrialRecord]) -> None:
    ranking = Ranking(PRECISION)
    records = [dataclasses.replace(r, trial_id=f"{n:04d}") for n, r in enumerate(found)]
    for count, record in enumerate(records, start=1):
        ranking.add(record)
        so_far = records[:count]
        expected = ranked(so_far)
        assert list(ranking.in_order()) == expected
        assert ranking.fastest_seconds == fastest(so_far)
        summary = ranking.summary(REQUEST, "why")
        assert (summary is None) == (not expected)
        if summary is not None:
            first, *others = expected
            assert summary["trial_id"] == first.trial_id
            assert (summary["runner_up"] or {}).get("trial_id") == (
                others[0].trial_id if others else None
            )
            assert summary["equal_within_noise"] == [
                r.trial_id for r in others if equal_within_noise(first, r)
            ]
            assert (summary["warning"] is not None) == (first.layout in failures(so_far))
            slow = {r.slow_device for r in so_far if r.slow_device is not None}
            assert summary["slow_devices"] == sorted(slow)
