"""Who is told about a search: in what order, and what one that fails or hangs does to it."""

import threading
from pathlib import Path

import pytest

from autotune.ledger.ledger import Ledger
from autotune.ledger.listeners import InBackground, Listeners
from autotune.store.record import TrialRecord
from autotune.trial.trial import StepReport, TrialSpec
from tests.autotune.simulate import Silent, new_store, run_one
from trainables.fake import FakeTrainable


class Heard(Silent):
    """Writes down what it is told."""

    def __init__(self, *, fails_at: str | None = None) -> None:
        self.events: list[str] = []
        self._fails_at = fails_at

    def _note(self, event: str) -> None:
        self.events.append(event)
        if event == self._fails_at:
            raise OSError("no space left")

    def search_begins(self, *_: object) -> None:
        self._note("begins")

    def trial_started(self, spec: TrialSpec) -> None:
        self._note(f"started {spec.trial_id}")

    def step_done(self, spec: TrialSpec, step: StepReport) -> None:
        self._note(f"step {step.step}")

    def trial_begins_again(self, spec: TrialSpec, reason: str) -> None:
        self._note(f"again {reason}")

    def trial_finished(self, record: TrialRecord) -> None:
        self._note(f"finished {record.trial_id}")

    def search_ends(self) -> None:
        self._note("ends")


def search_told_to(listeners: Listeners, directory: Path) -> Ledger:
    """A search of two trials and their confirmations; the first is repeated."""
    store = new_store(directory, max_trials=2, search="grid")
    ledger = Ledger(store, listeners)
    listeners.search_begins(store.request, directory, [])
    while (spec := ledger.next_trial()) is not None:
        if spec.trial_id == "0001" and ledger.attempts(spec.trial_id) == 1:
            ledger.attempt_lost(spec.trial_id, "its node is gone")
        run_one(ledger, FakeTrainable(), spec)
    listeners.search_ends()
    return ledger


def test_all_are_told_everything_in_order(tmp_path: Path) -> None:
    here, beside = Heard(), Heard()
    warnings: list[str] = []
    ledger = search_told_to(Listeners(here, InBackground(beside, "b", warnings.append)), tmp_path)
    assert here.events == beside.events and warnings == []
    assert here.events[:4] == ["begins", "started 0001", "again its node is gone", "step 0"]
    assert here.events[-1] == "ends"
    finished = [event for event in here.events if event.startswith("finished")]
    assert finished == [f"finished {record.trial_id}" for record in ledger.records]


@pytest.mark.parametrize("event", ["begins", "started 0002", "step 1", "finished 0001", "ends"])
def test_one_that_fails_is_told_no_more_and_the_search_goes_on(event: str, tmp_path: Path) -> None:
    failing = Heard(fails_at=event)
    warnings: list[str] = []
    listeners = Listeners(InBackground(failing, "wandb", warnings.append))
    ledger = search_told_to(listeners, tmp_path)
    assert len(ledger.records) == 4
    (warning,) = warnings
    assert warning == "wandb failed, the search goes on without it: OSError: no space left"
    assert failing.events.count(event) == (2 if event == "ends" else 1)
    assert failing.events[-1] == "ends", "it can still put away what it has"


def test_one_that_hangs_is_left_behind(tmp_path: Path) -> None:
    let_go = threading.Event()

    class Hangs(Silent):
        def trial_started(self, spec: TrialSpec) -> None:
            let_go.wait(60)

    warnings: list[str] = []
    hanging = InBackground(Hangs(), "mlflow", warnings.append, last_words_seconds=0.1)
    ledger = search_told_to(Listeners(hanging), tmp_path)
    let_go.set()
    assert len(ledger.records) == 4
    assert warnings == ["mlflow does not keep up: what it has of this search is incomplete"]
