"""The life of a search without Ray: budgets, records, resumption."""

import json
from pathlib import Path

import pytest

from autotune.ledger import Ledger
from autotune.search import SEARCHES
from autotune.store import open_run
from autotune.trial import Ended, Outcome
from tests.autotune.simulate import Silent, new_store, run_one, run_to_the_end
from trainables.fake import FakeTrainable, fake_step_seconds


def test_a_search_ends_with_its_trials_on_record(tmp_path: Path) -> None:
    store = new_store(tmp_path / "run")
    ledger = run_to_the_end(store)
    assert ledger.stopped_because == "max_trials reached (20)"
    assert store.trials() == ledger.records
    explored = [record for record in ledger.records if record.purpose == "explore"]
    assert len({record.layout for record in explored}) == len(explored) == 20
    assert {record.outcome for record in ledger.records} == {
        Outcome.OK,
        Outcome.OOM,
        Outcome.STOPPED,
    }
    for record in ledger.records:
        seconds = record.measurement.step_seconds
        if record.outcome is Outcome.OOM:
            assert seconds is None and record.measurement.measured_steps == 0
        else:
            assert seconds == fake_step_seconds(record.layout)
        assert record.measurement.mfu is None, "the peak of a CPU is unknown"
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    fastest = min(fake_step_seconds(r.layout) for r in explored if r.outcome == "ok")
    assert best["step_seconds"] == fastest
    assert best["runner_up"]["step_seconds"] >= fastest
    assert best["simulated"] is True, "the fake trains nothing"


def test_pruned_layouts_are_on_record_and_never_run(tmp_path: Path) -> None:
    store = new_store(tmp_path, max_trials=60)
    ledger = run_to_the_end(store)
    pruned = {found.layout: found.reason for found in store.pruned()}
    assert pruned and all(pruned.values())
    when_pruned_late = {record.layout for record in ledger.records} & pruned.keys()
    assert not when_pruned_late


@pytest.mark.parametrize("search", sorted(SEARCHES))
@pytest.mark.parametrize("killed_after", [0, 1, 7, 19])
def test_a_resumed_search_makes_the_same_decisions(
    tmp_path: Path, killed_after: int, search: str
) -> None:
    undisturbed = run_to_the_end(new_store(tmp_path / "a", search=search))
    run_to_the_end(new_store(tmp_path / "b", search=search), trials=killed_after)
    resumed = run_to_the_end(open_run(tmp_path / "b"))
    assert [r.layout for r in resumed.records] == [r.layout for r in undisturbed.records]
    assert [r.outcome for r in resumed.records] == [r.outcome for r in undisturbed.records]
    assert [r.purpose for r in resumed.records] == [r.purpose for r in undisturbed.records]
    count = len(resumed.records)
    assert [r.trial_id for r in resumed.records] == [f"{n:04d}" for n in range(1, count + 1)]


def test_the_fastest_three_are_confirmed_by_longer_trials(tmp_path: Path) -> None:
    ledger = run_to_the_end(new_store(tmp_path, search="random"))
    explored = [r for r in ledger.records if r.purpose == "explore" and r.outcome is Outcome.OK]
    confirmed = [r for r in ledger.records if r.purpose == "confirm"]
    explored.sort(key=lambda r: r.measurement.step_seconds or 0)
    assert [r.layout for r in confirmed] == [r.layout for r in explored[:3]]
    assert {r.measurement.measured_steps for r in confirmed} == {15}
    assert ledger.best[0].purpose == "confirm"
    assert ledger.records[-3:] == confirmed


def test_the_second_best_takes_over_where_the_best_fails_to_be_confirmed(tmp_path: Path) -> None:
    ledger = Ledger(new_store(tmp_path, search="random"), Silent())
    failed = None
    while (spec := ledger.next_trial()) is not None:
        if failed is None and spec.measured_steps == 15:
            failed = spec.layout
            ended = Ended(outcome=Outcome.OOM, reason="rank 0: out of memory")
            ledger.trial_ended(spec.trial_id, ended, attempts=1)
        else:
            run_one(ledger, FakeTrainable(), spec)
    assert failed is not None
    assert failed not in [record.layout for record in ledger.best]
    summary = ledger.summary()
    assert summary is not None and summary["layout"] == ledger.best[0].layout.columns()


@pytest.mark.parametrize("outcome", [Outcome.TIMEOUT, Outcome.LOST])
def test_a_confirmation_that_was_cut_short_is_no_reason_to_drop_the_best(
    tmp_path: Path, outcome: Outcome
) -> None:
    ledger = Ledger(new_store(tmp_path, search="random"), Silent())
    while (spec := ledger.next_trial()) is not None:
        if spec.measured_steps == 15:
            ended = Ended(outcome=outcome, reason="cut short")
            ledger.trial_ended(spec.trial_id, ended, attempts=1)
        else:
            run_one(ledger, FakeTrainable(), spec)
    explored = [r for r in ledger.records if r.outcome is Outcome.OK]
    fastest = min(explored, key=lambda r: r.measurement.step_seconds or 0)
    summary = ledger.summary()
    assert summary is not None and summary["trial_id"] == fastest.trial_id
    assert summary["purpose"] == "explore", "it says that it was not confirmed"


def test_a_confirmation_has_time_for_its_steps(tmp_path: Path) -> None:
    ledger = Ledger(new_store(tmp_path, search="grid", trial_timeout_seconds=1), Silent())
    while (spec := ledger.next_trial()) is not None:
        run_one(ledger, FakeTrainable(), spec)
        if spec.measured_steps == 15:
            assert spec.trial_timeout_seconds is not None
            assert spec.trial_timeout_seconds > 16 * fake_step_seconds(spec.layout)


def test_best_json_goes_where_nothing_is_left_that_works(tmp_path: Path) -> None:
    ledger = Ledger(new_store(tmp_path, search="grid", max_trials=1), Silent())
    spec = ledger.next_trial()
    assert spec is not None
    run_one(ledger, FakeTrainable(), spec)
    assert (tmp_path / "best.json").exists()
    spec = ledger.next_trial()
    assert spec is not None
    ledger.trial_ended(spec.trial_id, Ended(outcome=Outcome.OOM, reason="rank 0"), attempts=1)
    assert ledger.next_trial() is None
    assert not (tmp_path / "best.json").exists()


def test_predictions_are_on_record_before_what_was_measured(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    ledger = run_to_the_end(store, trials=3)
    first = store.trials()[0]
    assert first.prediction is not None and first == ledger.records[0]
    assert first.prediction.step_seconds != first.measurement.step_seconds
    assert 0 <= first.prediction.fit_probability <= 1


def test_a_trial_that_was_running_when_the_search_died_runs_again(tmp_path: Path) -> None:
    ledger = Ledger(new_store(tmp_path, search="grid"), Silent())
    lost = ledger.next_trial()
    resumed = Ledger(open_run(tmp_path), Silent())
    again = resumed.next_trial()
    assert lost is not None and again is not None
    assert again.layout == lost.layout


def test_a_second_attempt_starts_its_steps_again(tmp_path: Path) -> None:
    ledger = Ledger(new_store(tmp_path, search="grid"), Silent())
    spec = ledger.next_trial()
    assert spec is not None
    first_attempt = list(FakeTrainable().run(spec, []))[:3]
    for step in first_attempt:
        ledger.step_done(spec.trial_id, step)
    run_one(ledger, FakeTrainable(), spec)
    assert ledger.records[0].measurement.measured_steps == spec.measured_steps


def test_device_hours_end_the_search(tmp_path: Path) -> None:
    ledger = run_to_the_end(new_store(tmp_path, gpu_hours=1e-9))
    assert len(ledger.records) == 1
    assert ledger.stopped_because.startswith("gpu_hours spent")


def test_a_spent_space_ends_the_search(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    small = store.request.space.restricted({"tensor_parallel": [4], "micro_batch_size": [8]})
    ledger = run_to_the_end(new_store(tmp_path / "small", space=small, max_trials=1000))
    assert ledger.stopped_because == "every layout was tried or ruled out"
    assert not ledger.best, "the fake has no memory for micro-batches of 8"
    assert ledger.summary() is None
    assert len(ledger.records) + len(ledger._store.pruned()) == len(small.layouts())


def test_lost_trials_count_and_are_not_blamed_on_the_layout(tmp_path: Path) -> None:
    ledger = Ledger(new_store(tmp_path, search="grid", max_trials=1), Silent())
    spec = ledger.next_trial()
    assert spec is not None
    ended = Ended(outcome=Outcome.LOST, reason="node 1 went away")
    ledger.trial_ended(spec.trial_id, ended, attempts=2)
    (record,) = ledger.records
    assert (record.outcome, record.attempts) == (Outcome.LOST, 2)
    assert ledger.next_trial() is None
    assert not open_run(tmp_path).pruned()
