"""A search with a deadline: which times are taken, and what is begun and recorded before it."""

import datetime
import math
from pathlib import Path

import pytest

from autotune.errors import InputError
from autotune.ledger.deadline import Deadline, deadline_of
from autotune.ledger.ledger import Ledger
from autotune.store.run_directory import open_run
from autotune.trial.trial import Ended, Outcome, StepReport, TrialSpec
from tests.autotune.simulate import Silent, new_store, run_to_the_end
from trainables.fake import FakeTrainable, fake_step_seconds


class FakeClock:
    """A clock that only goes on when it is told to. A `Clock`."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> datetime.datetime:
        start = datetime.datetime(2026, 5, 6, 12, 0, tzinfo=datetime.UTC)
        return start + datetime.timedelta(seconds=self.seconds - 1000.0)

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def left(until: str | float, clock: FakeClock) -> float:
    deadline = deadline_of(until, clock, {})
    assert deadline is not None
    return deadline.at - clock.monotonic()


def test_seconds_and_times_of_all_forms(clock: FakeClock) -> None:
    assert left(90, clock) == left("90", clock) == left("9e1", clock) == 90
    assert left("2026-05-06T12:30+00:00", clock) == left("12:30+00:00", clock) == 1800
    assert left("2026-05-06T15:00:00.5+02:30", clock) == 1800.5
    assert left("2026-05-06 12:30Z", clock) == 1800
    local = clock.now().astimezone()
    in_an_hour = f"{local + datetime.timedelta(hours=1):%Y-%m-%dT%H:%M:%S}"
    assert left(in_an_hour, clock) == 3600


@pytest.mark.parametrize(
    "until",
    [
        *("25:00", "nan", "inf", "-5", "0", "", "soon", "2026-13-01T00:00", "18:30 tomorrow"),
        *("1e8", "99999999999999999999", True, math.nan, 0),
    ],
)
def test_other_values_are_one_sentence(until: str | float, clock: FakeClock) -> None:
    with pytest.raises(InputError, match=r"^until must be a time such as 18:30 .*, got ") as error:
        deadline_of(until, clock, {})
    assert str(error.value).endswith(repr(until))


@pytest.mark.parametrize("until", ["2026-05-06T11:59+00:00", "2020-01-01", "12:00+00:00"])
def test_past_times_are_one_sentence(until: str, clock: FakeClock) -> None:
    with pytest.raises(InputError, match=r"^until must be in the future, got '.*' \(it is 2026-"):
        deadline_of(until, clock, {})


def test_a_slurm_job_is_the_default(clock: FakeClock) -> None:
    end = str(int(clock.now().timestamp()) + 600)
    deadline = deadline_of(None, clock, {"SLURM_JOB_END_TIME": end})
    assert deadline is not None and deadline.at - clock.monotonic() == 540
    assert deadline.stated.endswith("60 s before the end of the Slurm job")
    given = deadline_of("30", clock, {"SLURM_JOB_END_TIME": end})
    assert given is not None and given.at - clock.monotonic() == 30
    for nothing in ({}, {"SLURM_JOB_END_TIME": "Unknown"}):
        assert deadline_of(None, clock, nothing) is None


# Of real trials by the clock: a second besides the steps, which take as long as the fake says.
BESIDES_STEPS = 1.0


def run_one(ledger: Ledger, spec: TrialSpec, clock: FakeClock) -> None:
    assert spec.trial_timeout_seconds is not None and spec.trial_timeout_seconds > 0
    ends_at = clock.seconds + spec.trial_timeout_seconds
    clock.seconds += BESIDES_STEPS
    for event in FakeTrainable().run(spec, []):
        if isinstance(event, StepReport):
            clock.seconds += event.step_seconds
            if clock.seconds >= ends_at:
                clock.seconds = ends_at
                ended = Ended(outcome=Outcome.TIMEOUT, reason="it takes too long")
                ledger.trial_ended(spec.trial_id, ended)
                return
            if ledger.step_done(spec.trial_id, event):
                ledger.trial_stopped(spec.trial_id)
                return
        else:
            ledger.trial_ended(spec.trial_id, event)


def search(directory: Path, clock: FakeClock, seconds: float, **changes: object) -> Ledger:
    """A search of trials that take time, by a clock of its own."""
    options = {"trainable": "deepspeed", "search": "grid", "reduced_trials": False, **changes}
    exists = (directory / "run.json").exists()
    store = open_run(directory) if exists else new_store(directory, **options)
    deadline = Deadline(at=clock.seconds + seconds, stated="then")
    ledger = Ledger(store, Silent(), clock, deadline)
    while not ledger.end_at_deadline() and (spec := ledger.next_trial()):
        run_one(ledger, spec, clock)
    return ledger


@pytest.mark.parametrize("seconds", [150, 200, 300, 400, 600])
def test_the_fastest_are_confirmed_in_time(
    tmp_path: Path, clock: FakeClock, seconds: float
) -> None:
    ended_at = clock.seconds + seconds
    ledger = search(tmp_path, clock, seconds, max_trials=1000)
    assert ledger.stopped_because == "until reached (then)" and ledger.is_out_of_time
    assert clock.seconds <= ended_at
    confirmed = [r for r in ledger.records if r.purpose == "confirm"]
    explored = [r for r in ledger.records if r.purpose == "explore" and r.outcome is Outcome.OK]
    assert len(confirmed) == min(3, len(explored)) >= 1
    explored.sort(key=lambda r: (r.measurement.step_seconds or 0, r.trial_id))
    assert [r.layout for r in confirmed] == [r.layout for r in explored[: len(confirmed)]]
    # Not ended too early either: a further trial and its margins would not have fitted.
    assert ended_at - clock.seconds < 100


def test_it_is_resumed_to_explore_further(tmp_path: Path, clock: FakeClock) -> None:
    first = search(tmp_path, clock, 160, max_trials=12)
    assert first.is_out_of_time
    again = search(tmp_path, clock, 1e6)
    assert again.stopped_because == "max_trials reached (12)" and not again.is_out_of_time
    layouts = [r.layout for r in again.records if r.purpose == "explore"]
    assert len(layouts) == 12 == len(set(layouts))
    undisturbed = search(tmp_path / "undisturbed", clock, 1e6, max_trials=12)
    assert layouts == [r.layout for r in undisturbed.records if r.purpose == "explore"]
    assert again.best[0].layout == undisturbed.best[0].layout


def test_where_no_trial_fits_none_is_begun(tmp_path: Path, clock: FakeClock) -> None:
    ledger = search(tmp_path, clock, 1.0)
    assert ledger.records == [] and ledger.is_out_of_time and not ledger.best
    assert not Ledger(open_run(tmp_path), Silent()).is_over, "it can be resumed"


def test_a_trial_that_takes_the_time_of_the_confirmations_is_cut_short_and_not_recorded(
    tmp_path: Path, clock: FakeClock
) -> None:
    store = new_store(tmp_path, trainable="deepspeed", search="grid", reduced_trials=False)
    ledger = Ledger(store, Silent(), clock, Deadline(at=clock.seconds + 200, stated="then"))
    first = ledger.next_trial()
    assert first is not None
    run_one(ledger, first, clock)
    hanging = ledger.next_trial()
    assert hanging is not None and hanging.trial_timeout_seconds is not None
    # The time for two confirmations is kept.
    confirmations = 2 * 16 * fake_step_seconds(hanging.layout)
    assert hanging.trial_timeout_seconds < 200 - confirmations
    clock.seconds += hanging.trial_timeout_seconds
    ledger.trial_ended(hanging.trial_id, Ended(outcome=Outcome.TIMEOUT, reason="hangs"))
    assert [r.trial_id for r in ledger.records] == ["0001"]
    confirmation = ledger.next_trial()
    assert confirmation is not None and confirmation.layout == first.layout
    assert confirmation.trial_id == "0002" and ledger.is_out_of_time
    run_one(ledger, confirmation, clock)
    assert ledger.next_trial() is None
    resumed = Ledger(open_run(tmp_path), Silent(), clock).next_trial()
    assert resumed is not None and resumed.layout == hanging.layout, "it runs again"


def test_a_timeout_of_its_own_is_recorded(tmp_path: Path, clock: FakeClock) -> None:
    store = new_store(tmp_path, trainable="deepspeed", search="grid", trial_timeout_seconds=5.0)
    ledger = Ledger(store, Silent(), clock, Deadline(at=clock.seconds + 500, stated="then"))
    spec = ledger.next_trial()
    assert spec is not None and spec.trial_timeout_seconds == 5.0
    clock.seconds += 5.0
    ledger.trial_ended(spec.trial_id, Ended(outcome=Outcome.TIMEOUT, reason="slow"))
    assert [r.outcome for r in ledger.records] == [Outcome.TIMEOUT]


def test_at_the_deadline_a_running_trial_is_dropped(tmp_path: Path, clock: FakeClock) -> None:
    store = new_store(tmp_path, trainable="deepspeed", search="grid")
    ledger = Ledger(store, Silent(), clock, Deadline(at=clock.seconds + 500, stated="then"))
    spec = ledger.next_trial()
    assert spec is not None and not ledger.end_at_deadline()
    clock.seconds += 500
    assert ledger.end_at_deadline() and ledger.records == [] and ledger.is_out_of_time
    assert run_to_the_end(open_run(tmp_path), trials=1).records[0].layout == spec.layout
