"""Which trials are begun before a deadline, so that the search ends in good order by then."""

import collections
import math

from autotune.layout import Layout
from autotune.ledger.clock import Clock
from autotune.ledger.deadline import Deadline
from autotune.ledger.ranking import Ranking
from autotune.ledger.running import RunningTrial
from autotune.ledger.search_setup import (
    CONFIRMATION_STEPS,
    CONFIRMED,
    startup_seconds,
    trial_seconds,
)
from autotune.request import Request
from autotune.search import Prediction
from autotune.trial.trial import Ended, Outcome

# Expected seconds are multiplied by this: a trial that is cut short was in vain.
_MARGIN = 1.25
# The longest of so many trials is what the next one is expected to take besides its steps.
_LAST_TRIALS = 5
# Simulated and replayed trials take no time for their steps.
_SIMULATED_SECONDS = 1.0


class Schedule:
    """Decides by the time that is left whether a trial is begun.

    A trial is expected to take its steps, at the predicted or measured step time, and besides them
    as long as the longest of the last trials did: start-up, process groups, placement. Before the
    first trial has ended the start-up is assumed. The time for the confirmations of the fastest
    layouts is kept.
    """

    def __init__(self, request: Request, clock: Clock, deadline: Deadline | None) -> None:
        """`deadline` None: there is always time."""
        self._request = request
        self._clock = clock
        self._deadline = deadline
        self._besides_steps: collections.deque[float] = collections.deque(maxlen=_LAST_TRIALS)

    @property
    def reason(self) -> str:
        """Why a search ended that has no time for another trial."""
        return f"until reached ({self._deadline.stated if self._deadline else 'never'})"

    @property
    def seconds_left(self) -> float:
        """Seconds to the deadline, below zero after it; infinite without one."""
        return math.inf if self._deadline is None else self._deadline.at - self._clock.monotonic()

    def learn(self, running: RunningTrial, ended: Ended) -> None:
        """Learn from a trial how long one takes besides its steps."""
        if self._deadline is not None and ended.outcome in (Outcome.OK, Outcome.STOPPED):
            seconds = self._clock.monotonic() - running.started
            if not self._request.simulated:
                seconds -= sum(step.step_seconds for step in running.steps)
            self._besides_steps.append(seconds)

    def seconds_to_explore(
        self, layout: Layout, prediction: Prediction | None, ranking: Ranking
    ) -> float:
        """Seconds that may pass until an exploring trial of the layout ends: infinite without a
        deadline, not above zero where it would probably not be finished in time."""
        if self._deadline is None:
            return math.inf
        known = [
            seconds for r in ranking.records if (seconds := r.measurement.step_seconds) is not None
        ]
        # A prediction may be far off: no layout is expected to be faster than the fastest.
        predicted = prediction.step_seconds if prediction else max(known, default=0.0)
        predicted = max(predicted, min(known, default=0.0))
        _, steps = trial_seconds(self._request, layout)
        expected = self._expected(steps, predicted)
        left = self.seconds_left - self._to_confirm_all(predicted, ranking)
        return left if left >= min(expected, self._request.trial_timeout_seconds) else 0.0

    def seconds_to_confirm(self, step_seconds: float) -> float:
        """Likewise, of a confirmation of a layout with that step time."""
        left = self.seconds_left
        return left if left >= self._expected_confirmation(step_seconds) else 0.0

    def was_cut_short(self, running: RunningTrial, ended: Ended) -> bool:
        """Whether the trial timed out only because the time for the search runs out."""
        limit = running.seconds_left
        if limit is None or ended.outcome is not Outcome.TIMEOUT:
            return False
        return self._clock.monotonic() - running.started >= limit

    def _to_confirm_all(self, predicted: float, ranking: Ranking) -> float:
        """Seconds for the confirmations that are due if the next layout is as fast as predicted."""
        confirmed = ranking.confirmed_layouts
        to_confirm = [r for r in ranking.to_confirm() if r.layout not in confirmed]
        times = [r.measurement.step_seconds or 0.0 for r in to_confirm]
        due = sorted([*times, predicted])[:CONFIRMED]
        return sum(map(self._expected_confirmation, due))

    def _expected_confirmation(self, step_seconds: float) -> float:
        space = self._request.space
        steps = space.warmup_steps + CONFIRMATION_STEPS * space.measured_steps
        return self._expected(steps, step_seconds)

    def _expected(self, steps: float, step_seconds: float) -> float:
        """Seconds that a trial of so many full steps is expected to take."""
        if self._request.simulated:
            assumed, step_seconds = _SIMULATED_SECONDS, 0.0
        else:
            assumed = startup_seconds(self._request)
        besides_steps = max(self._besides_steps, default=assumed)
        return _MARGIN * (besides_steps + steps * step_seconds)
