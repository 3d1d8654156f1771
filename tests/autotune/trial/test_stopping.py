"""When a slow layout is cut."""

import pytest

from autotune.layout import Layout
from autotune.space import SearchSpace
from autotune.trial.stopping import SlowerThanBest
from autotune.trial.trial import TrialSpec


@pytest.fixture
def spec(small_space: SearchSpace) -> TrialSpec:
    return TrialSpec(
        trial_id="0001",
        layout=Layout(),
        model=small_space.model,
        cluster=small_space.cluster,
        precision="fp32",
        warmup_steps=1,
        measured_steps=5,
        log_dir=None,
    )


def test_nothing_is_stopped_without_a_best(spec: TrialSpec) -> None:
    stopping = SlowerThanBest(2.0)
    assert stopping.reason_to_stop(spec, [9.0] * 5) is None
    assert stopping.step_deadline_seconds is None


@pytest.mark.parametrize(
    ("seconds", "stops"),
    [
        ([9.0], False),  # the warm-up
        ([9.0, 9.0], False),  # one slow step can be an accident
        ([9.0, 9.0, 9.0], True),
        ([9.0, 9.0, 1.9], False),  # one fast step shows what it can do
        ([0.1, 2.1, 2.1], True),
        ([0.1, 2.0, 2.0], False),
        ([9.0, 9.0, 9.0, 9.0, 9.0, 9.0], False),  # already paid for
    ],
)
def test_every_measured_step_must_be_slower(
    spec: TrialSpec, seconds: list[float], stops: bool
) -> None:
    stopping = SlowerThanBest(2.0)
    stopping.best_step_seconds = 1.0
    assert (stopping.reason_to_stop(spec, seconds) is not None) == stops


def test_the_deadline_of_a_step_follows_the_best_but_not_below_the_floor() -> None:
    stopping = SlowerThanBest(2.0)
    stopping.best_step_seconds = 0.1
    assert stopping.step_deadline_seconds == 20.0
    slow = SlowerThanBest(2.0)
    slow.best_step_seconds = 30.0
    assert slow.step_deadline_seconds == 300.0
