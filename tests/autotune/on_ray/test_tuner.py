"""The Tune loop's adapters: what of Tune's hooks reaches the ledger, and what ends a search."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from ray.tune.experiment import Trial

from autotune.errors import NodeCheckFailed, NodesGone, RunDirectoryFailed
from autotune.ledger.ledger import Ledger
from autotune.on_ray import adapter as adapter_module
from autotune.on_ray.adapter import Adapter
from autotune.on_ray.tune_hooks import LedgerSearcher, LedgerStopper, Recorder
from autotune.trial.trial import Ended, Outcome, StepReport, to_json
from tests.autotune.simulate import Silent, new_store, run_one
from trainables.fake import FakeTrainable


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(new_store(tmp_path, max_trials=5), Silent())


def adapter_of(ledger: Ledger, *, virtual: bool = True) -> Any:
    return Adapter(ledger, virtual=virtual, wait_for_nodes_seconds=0.0)


def results(adapter: Any, spec: Any) -> list[dict[str, Any]]:
    """What LayoutTrial.step returns over a trial of the fake."""
    return [
        {"step_report": to_json(event), "nodes": []}
        if isinstance(event, StepReport)
        else {"ended": to_json(event), "nodes": [], "done": True}
        for event in FakeTrainable().run(spec, [])
    ]


def test_a_trial_of_tune_becomes_a_record(ledger: Ledger) -> None:
    adapter = adapter_of(ledger)
    searcher, stopper, callback = (
        kind(adapter) for kind in (LedgerSearcher, LedgerStopper, Recorder)
    )
    config = searcher.suggest("tune-1")
    assert config["spec"]["trial_id"] == "0001" and config["virtual"] is True
    spec = ledger._running["0001"].spec
    trial = type("Trial", (), {"trial_id": "tune-1", "last_result": None})()
    for result in results(adapter, spec):
        trial.last_result = result
        if stopper("tune-1", result):
            break
    callback.on_trial_complete(0, [], trial)
    (record,) = ledger.records
    assert record.trial_id == "0001" and adapter.failure is None and not stopper.stop_all()


def test_what_tune_keeps_of_ended_trials_is_dropped_when_the_next_has_ended(
    ledger: Ledger,
) -> None:
    adapter = adapter_of(ledger)
    callback = Recorder(adapter)
    ended = []
    for number in range(3):
        spec = adapter.ask(f"tune-{number}")
        trial = Trial("a trainable", trial_id=f"tune-{number}", config={"spec": spec}, stub=True)
        trial.evaluated_params = {"spec": spec}
        for result in results(adapter, spec):
            trial.run_metadata.last_result = result
            adapter.receive_result(trial.trial_id, result)
        callback.on_trial_complete(0, [], trial)
        ended.append(trial)
    assert [bool(trial.config) for trial in ended] == [False, False, True]
    assert [bool(trial.evaluated_params) for trial in ended] == [False, False, True]
    assert [bool(trial.run_metadata.last_result) for trial in ended] == [False, False, True]
    assert len(ledger.records) == 3


def test_the_searcher_ends_tune_when_the_ledger_hands_out_no_more(ledger: Ledger) -> None:
    while spec := ledger.next_trial():
        run_one(ledger, FakeTrainable(), spec)
    assert LedgerSearcher(adapter_of(ledger)).suggest("late") == "FINISHED"


def test_a_slow_trial_is_stopped_between_steps(ledger: Ledger) -> None:
    adapter = adapter_of(ledger)
    first = adapter.ask("a")
    assert first is not None
    run_one(ledger, FakeTrainable(), first)
    second = adapter.ask("b")
    assert second is not None
    report, *_ = FakeTrainable(largest_micro_batch=1000).run(second, [])
    assert isinstance(report, StepReport)
    best = min(r.measurement.step_seconds for r in ledger.records if r.measurement.step_seconds)
    for step in range(4):
        ranks = tuple(
            dataclasses.replace(rank, step=step, step_seconds=9 * best) for rank in report.ranks
        )
        slow = dataclasses.replace(report, step=step, ranks=ranks)
        if adapter.receive_result("b", {"step_report": to_json(slow), "nodes": []}):
            break
    adapter.completed("b", {"step_report": {}, "nodes": []})
    assert ledger.records[-1].outcome is Outcome.STOPPED


def test_an_unfit_node_ends_the_search(ledger: Ledger) -> None:
    adapter = adapter_of(ledger)
    adapter.ask("a")
    assert adapter.receive_result("a", {"unfit_node": "node 1: wrong sums", "done": True})
    assert isinstance(adapter.failure, NodeCheckFailed) and adapter.cannot_go_on()
    adapter.completed("a", {"unfit_node": "node 1: wrong sums", "done": True, "nodes": []})
    assert ledger.records == [], "what was cut short is run again when the search is resumed"


def test_an_error_of_the_ledger_is_kept_for_the_end(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tune would wrap it, or go on."""

    def full(*_: object) -> None:
        raise RunDirectoryFailed("no space left")

    adapter = adapter_of(ledger)
    spec = adapter.ask("a")
    monkeypatch.setattr(ledger.store, "add_trial", full)
    adapter.completed("a", results(adapter, spec)[-1])
    assert str(adapter.failure) == "no space left" and adapter.cannot_go_on()


def test_a_lost_trial_has_a_second_attempt_and_then_an_outcome(ledger: Ledger) -> None:
    adapter = adapter_of(ledger)
    first = adapter.ask("a")
    adapter.lost("a", Ended(outcome=Outcome.LOST, reason="its nodes went away"))
    assert ledger.records == []
    again = adapter.ask("b")
    assert again == first and ledger.attempts(first.trial_id) == 2
    adapter.lost("b", Ended(outcome=Outcome.LOST, reason="its nodes went away"))
    (record,) = ledger.records
    assert record.outcome is Outcome.LOST and record.attempts == 2


def test_nodes_that_stay_away_end_the_search(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = "needs 2 nodes, has 1"
    monkeypatch.setattr(adapter_module, "missing_nodes", lambda cluster, avoid: missing)
    monkeypatch.setattr(adapter_module, "_NODE_CHECK_SECONDS", 0.0)
    adapter = adapter_of(ledger, virtual=False)
    endings = [adapter.cannot_go_on() for _ in range(3)]
    assert endings[-1] and isinstance(adapter.failure, NodesGone)
    assert str(adapter.failure) == "needs 2 nodes, has 1"
