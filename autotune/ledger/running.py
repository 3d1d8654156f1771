"""A trial that runs."""

import dataclasses
import datetime

from autotune.search import Prediction
from autotune.store.record import Purpose
from autotune.trial.trial import StepReport, TrialSpec


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
