"""The life of a search without Ray: budgets, records, resumption."""

import dataclasses
import datetime
import json
from collections.abc import Generator, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from autotune.errors import InputError
from autotune.ledger.ledger import Ledger
from autotune.search import SEARCHES
from autotune.store.run_directory import open_run
from autotune.trial.trainable import RankHost
from autotune.trial.trial import Ended, Outcome, StepReport, TrialSpec
from tests.autotune.simulate import Silent, new_store, run_one, run_to_the_end, without_digests
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


# Where a search was killed matters for none more than for the guided one, which looks at the most.
KILLED = [
    pytest.param(
        search, after, marks=[] if after == 7 or search == "guided" else [pytest.mark.slow]
    )
    for search in sorted(SEARCHES)
    for after in (0, 1, 7, 19)
]


@pytest.mark.parametrize(("search", "killed_after"), KILLED)
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


def test_a_trial_whose_file_was_moved_away_is_run_again(tmp_path: Path) -> None:
    undisturbed = run_to_the_end(new_store(tmp_path, search="random"))
    (tmp_path / "trials" / "0005.parquet").rename(tmp_path / "trials" / "0005.damaged")
    resumed = run_to_the_end(open_run(tmp_path))
    assert {r.layout for r in resumed.records} == {r.layout for r in undisturbed.records}
    assert resumed.best[0].layout == undisturbed.best[0].layout


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
            ledger.trial_ended(spec.trial_id, ended)
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
            ledger.trial_ended(spec.trial_id, ended)
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


def test_where_no_layout_is_confirmed_the_explored_one_stands_with_a_warning(
    tmp_path: Path,
) -> None:
    ledger = Ledger(new_store(tmp_path, search="grid", max_trials=1), Silent())
    explored = ledger.next_trial()
    assert explored is not None
    run_one(ledger, FakeTrainable(), explored)
    confirmation = ledger.next_trial()
    assert confirmation is not None and confirmation.layout == explored.layout
    ledger.trial_ended(confirmation.trial_id, Ended(outcome=Outcome.OOM, reason="rank 0"))
    assert ledger.is_over and ledger.next_trial() is None
    summary = json.loads((tmp_path / "best.json").read_text())
    assert summary["trial_id"] == explored.trial_id and summary["purpose"] == "explore"
    assert "is not confirmed" in summary["warning"] and "oom (rank 0)" in summary["warning"]


def test_a_confirmed_layout_is_before_a_faster_one_whose_confirmation_failed(
    tmp_path: Path,
) -> None:
    ledger = Ledger(new_store(tmp_path, search="grid", max_trials=4, stop_factor=9.0), Silent())
    confirmations = 0
    while spec := ledger.next_trial():
        if spec.measured_steps > ledger.request.space.measured_steps:
            confirmations += 1
            if confirmations == 1:
                ledger.trial_ended(spec.trial_id, Ended(outcome=Outcome.CRASHED, reason="rank 1"))
                continue
        run_one(ledger, FakeTrainable(), spec)
    crashed = next(r for r in ledger.records if r.outcome is Outcome.CRASHED)
    assert ledger.best[0].purpose == "confirm" and ledger.warning is None
    assert crashed.layout not in {record.layout for record in ledger.best}


def test_exploring_goes_on_when_a_confirmation_runs_out_of_memory(tmp_path: Path) -> None:
    """Confirmations that run out of memory teach the search, which explores what is left."""
    ledger = Ledger(
        new_store(tmp_path, search="guided", max_trials=30, training_gpu_hours=0.02), Silent()
    )
    purposes = []
    while spec := ledger.next_trial():
        longer = spec.measured_steps > ledger.request.space.measured_steps
        purposes.append("confirm" if longer else "explore")
        if purposes.count("confirm") == 1 and longer:
            assert ledger.stopped_because.startswith("another trial no longer pays")
            ledger.trial_ended(spec.trial_id, Ended(outcome=Outcome.OOM, reason="rank 0"))
            fallen = spec.layout
        else:
            run_one(ledger, FakeTrainable(), spec)
    first = purposes.index("confirm")
    assert "explore" in purposes[first:], "what was the best is not the best any more"
    assert fallen not in {record.layout for record in ledger.best}
    resumed = Ledger(open_run(tmp_path), Silent())
    assert resumed.is_over and resumed.best == ledger.best


def test_whether_a_search_is_over_is_known_without_handing_a_trial_out(tmp_path: Path) -> None:
    ledger = Ledger(new_store(tmp_path, search="grid", max_trials=2), Silent())
    assert not ledger.is_over and not (tmp_path / "logs" / "0001").exists()
    first = ledger.next_trial()
    assert first is not None and first.trial_id == "0001"
    run_one(ledger, FakeTrainable(), first)
    rest = run_to_the_end(ledger.store)
    assert rest.is_over and [r.trial_id for r in rest.records][:2] == ["0001", "0002"]


def test_limits_of_a_resumed_search_may_be_raised_and_not_lowered(tmp_path: Path) -> None:
    assert run_to_the_end(new_store(tmp_path, search="grid", max_trials=2)).is_over
    store = open_run(tmp_path)
    with pytest.raises(InputError, match="max_trials must be at least the 2 that"):
        store.raise_limits(max_trials=1, gpu_hours=None)
    store.raise_limits(max_trials=4, gpu_hours=None)
    ledger = run_to_the_end(store)
    assert sum(record.purpose != "confirm" for record in ledger.records) == 4


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
    ledger.attempt_lost(spec.trial_id, "node 1 went away")
    run_one(ledger, FakeTrainable(), spec)
    assert ledger.records[0].measurement.measured_steps == spec.measured_steps
    assert ledger.records[0].attempts == 2


def test_what_a_lost_attempt_measured_is_not_on_record(tmp_path: Path) -> None:
    ledger = Ledger(new_store(tmp_path, search="grid"), Silent())
    spec = ledger.next_trial()
    assert spec is not None
    for step in list(FakeTrainable().run(spec, []))[:3]:
        ledger.step_done(spec.trial_id, step)
    ledger.attempt_lost(spec.trial_id, "node 1 went away")
    ledger.trial_ended(spec.trial_id, Ended(outcome=Outcome.OOM, reason="rank 0: no memory"))
    assert ledger.records[0].measurement.measured_steps == 0
    assert ledger.records[0].measurement.peak_memory_gib is None


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
    assert len(ledger.records) + len(ledger.store.pruned()) == len(small.layouts())


def test_lost_trials_count_and_are_not_blamed_on_the_layout(tmp_path: Path) -> None:
    ledger = Ledger(new_store(tmp_path, search="grid", max_trials=1), Silent())
    spec = ledger.next_trial()
    assert spec is not None
    ended = Ended(outcome=Outcome.LOST, reason="node 1 went away")
    ledger.attempt_lost(spec.trial_id, "node 1 went away")
    ledger.trial_ended(spec.trial_id, ended)
    (record,) = ledger.records
    assert (record.outcome, record.attempts) == (Outcome.LOST, 2)
    assert ledger.next_trial() is None
    assert not open_run(tmp_path).pruned()


class SettableClock:
    """A clock whose time of day is set at will. A `Clock`."""

    def __init__(self) -> None:
        self.time_of_day = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
        self.elapsed = 0.0

    def now(self) -> datetime.datetime:
        return self.time_of_day

    def monotonic(self) -> float:
        self.elapsed += 1.0
        return self.elapsed


def test_a_clock_that_is_set_back_changes_neither_order_nor_durations(tmp_path: Path) -> None:
    undisturbed = run_to_the_end(new_store(tmp_path / "undisturbed"))
    clock = SettableClock()
    ledger = Ledger(new_store(tmp_path / "set-back", trainable="deepspeed"), Silent(), clock)
    while (spec := ledger.next_trial()) is not None:
        clock.time_of_day -= datetime.timedelta(days=1)
        run_one(ledger, FakeTrainable(), spec)
        if len(ledger.records) % 4 == 0:
            ledger = Ledger(open_run(tmp_path / "set-back"), Silent(), clock)
    assert [r.layout for r in ledger.records] == [r.layout for r in undisturbed.records]
    devices = ledger.request.space.cluster.devices
    assert {r.gpu_seconds for r in ledger.records} == {1.0 * devices}
    assert ledger.records[0].finished_at > ledger.records[-1].finished_at


class OneWrongLoss(FakeTrainable):
    """Trains the layout of one trial wrongly: its losses are off."""

    def __init__(self, trial_id: str) -> None:
        super().__init__()
        self._trial_id = trial_id

    def run(
        self, spec: TrialSpec, hosts: Sequence[RankHost]
    ) -> Generator[StepReport | Ended, None, None]:
        for event in super().run(spec, hosts):
            if isinstance(event, StepReport) and spec.trial_id == self._trial_id:
                ranks = tuple(dataclasses.replace(r, loss=7.0) for r in event.ranks)
                event = dataclasses.replace(event, ranks=ranks)
            yield event


def test_a_loss_that_differs_from_the_others_is_invalid(tmp_path: Path) -> None:
    store = new_store(tmp_path, search="grid", stop_factor=10.0, reduced_trials=False)
    ledger = run_to_the_end(store, worker=OneWrongLoss("0003"))
    by_id = {r.trial_id: r for r in ledger.records}
    assert by_id["0003"].outcome is Outcome.INVALID
    assert "trial 0001" in by_id["0003"].reason and "got 7" in by_id["0003"].reason
    assert [r.trial_id for r in ledger.records if r.outcome is Outcome.INVALID] == ["0003"]
    assert by_id["0003"].layout not in [r.layout for r in ledger.best]


def test_a_first_trial_with_a_wrong_loss_is_outvoted_and_condemns_none(tmp_path: Path) -> None:
    store = new_store(tmp_path, search="grid", stop_factor=10.0, reduced_trials=False)
    ledger = run_to_the_end(store, worker=OneWrongLoss("0001"), trials=6)
    assert Outcome.INVALID not in {r.outcome for r in ledger.records}
    ranked = [r.trial_id for r in ledger.best]
    assert "0001" not in ranked and "0002" in ranked
    right = [r for r in ledger.records if r.trial_id in ranked]
    fastest = min(r.measurement.step_seconds or 0 for r in right)
    assert ledger._stopping.best_step_seconds == fastest, "nobody is compared with the wrong one"


def test_a_trial_on_a_slow_device_is_handed_out_again(tmp_path: Path) -> None:
    ledger = Ledger(new_store(tmp_path, search="grid"), Silent())
    spec = ledger.next_trial()
    assert spec is not None
    for event in FakeTrainable().run(spec, []):
        if isinstance(event, StepReport):
            ledger.step_done(spec.trial_id, event)
    ledger.run_again(spec.trial_id, "slow device", slow="node a, rank 1: 2.0 times its peers'")
    assert ledger.next_trial() == spec and not ledger.records
    run_one(ledger, FakeTrainable(), spec)
    (record,) = ledger.records
    assert (record.attempts, record.slow_device) == (2, "node a, rank 1: 2.0 times its peers'")
    assert record.measurement.measured_steps == spec.measured_steps
    assert open_run(tmp_path).trials() == [record]
    assert ledger.summary()["slow_devices"] == [record.slow_device]  # type: ignore[index]


def test_when_a_confirmation_fails_the_next_fastest_is_confirmed(tmp_path: Path) -> None:
    ledger = Ledger(new_store(tmp_path, search="random"), Silent())
    while (spec := ledger.next_trial()) is not None:
        if spec.measured_steps == 15 and len(ledger.records) == 20:
            ledger.trial_ended(spec.trial_id, Ended(outcome=Outcome.CRASHED, reason="rank 0"))
        else:
            run_one(ledger, FakeTrainable(), spec)
    confirmed = [r for r in ledger.records if r.purpose == "confirm"]
    assert [r.outcome for r in confirmed] == [Outcome.CRASHED, *[Outcome.OK] * 3]


def test_a_run_of_an_older_version_is_read(tmp_path: Path) -> None:
    ledger = run_to_the_end(new_store(tmp_path), trials=2)
    without_digests(tmp_path)
    for file in (tmp_path / "trials").glob("*.parquet"):
        table = pq.read_table(file)
        newer = ["slow_device", "step_seconds_drift", "memory_growth_gib"]
        pq.write_table(table.drop_columns(newer), file)
    assert open_run(tmp_path).trials() == ledger.records
