"""A trial that runs, and who is told about it."""

import dataclasses
import datetime
from typing import Protocol

from autotune.search import Prediction
from autotune.store.record import Purpose, TrialRecord
from autotune.trial.trial import StepReport, TrialSpec


class Listener(Protocol):
    """Receives the events of a search, to display them."""

    def trial_started(self, spec: TrialSpec) -> None:
        """A trial starts."""

    def step_done(self, spec: TrialSpec, step: StepReport) -> None:
        """A step of a running trial has finished."""

    def trial_begins_again(self, spec: TrialSpec, reason: str) -> None:
        """A running trial is repeated; the measurements of its earlier attempt are discarded."""

    def trial_finished(self, record: TrialRecord) -> None:
        """A trial was recorded."""


@dataclasses.dataclass(slots=True, kw_only=True)
class RunningTrial:
    """What is known of a trial between its start and its end."""

    spec: TrialSpec
    purpose: Purpose
    prediction: Prediction | None
    started_at: datetime.datetime
    started: float
    seconds_left: float | None = None
    """Seconds that the trial may take as the time for the search runs out; None: its own limit is
    shorter."""
    attempts: int = 1
    steps: list[StepReport] = dataclasses.field(default_factory=list)
    stop_reason: str | None = None
    slow_devices: list[str] = dataclasses.field(default_factory=list)

    def begin_again(self) -> None:
        """Start the next attempt; discard the measurements of the last one."""
        self.attempts += 1
        self.steps.clear()
        self.stop_reason = None
