"""State of a search, without Ray: which trial runs next, what is recorded, when the search ends.

The state is determined by the request, the seed and the finished trials in the order of the run
directory. To resume a search, the ledger replays the recorded trials; it then continues as if it
had not been interrupted.
"""

from typing import Any

from autotune.layout import Layout
from autotune.ledger.clock import Clock, SystemClock
from autotune.ledger.deadline import Deadline
from autotune.ledger.finished import checked, record_of
from autotune.ledger.listeners import Listener
from autotune.ledger.ranking import Ranking
from autotune.ledger.running import RunningTrial
from autotune.ledger.schedule import Schedule
from autotune.ledger.search_setup import CONFIRMATION_STEPS, counts_of, observation_of, search_for
from autotune.request import Request
from autotune.search import Pruned, Unpruned
from autotune.store.record import Purpose, TrialRecord
from autotune.store.run_directory import RunStore
from autotune.trial.slow_devices import SlowDevice, slow_device
from autotune.trial.stopping import SlowerThanBest
from autotune.trial.trial import Ended, Outcome, StepReport, TrialSpec, spec_of

INTERRUPTED = "interrupted"
"""Why a search ended that could go on."""


class Ledger:
    """Chooses trials, receives their steps and results, and records them."""

    def __init__(
        self,
        store: RunStore,
        listener: Listener,
        clock: Clock | None = None,
        deadline: Deadline | None = None,
    ) -> None:
        """Replay the trials in the store, to continue its request after them until the deadline."""
        self.request: Request = store.request
        self.store = store
        """The run directory."""
        self._listener = listener
        self._clock = clock or SystemClock()
        self._schedule = Schedule(self.request, self._clock, deadline)
        layouts = self.request.all_layouts()
        self._search = search_for(self.request, layouts)
        self._stopping = SlowerThanBest(self.request.stop_factor)
        self._exploring = True
        self._running: dict[str, RunningTrial] = {}
        self._to_repeat: list[TrialSpec] = []
        self._next: tuple[Layout, Purpose] | None = None
        self._unpruned = Unpruned(layouts)
        self._pruned: list[Pruned] = []
        self._ranking = Ranking(
            self.request.space.precision,
            comparable_losses=self.request.description.comparable_losses,
        )
        self._explored = 0
        self._gpu_seconds = 0.0
        self.stopped_because = INTERRUPTED
        """Why the search ended."""
        for record in store.trials():
            self._update(record)
        self._next_number = 1 + max((int(r.trial_id) for r in self.records), default=0)

    @property
    def records(self) -> list[TrialRecord]:
        """All finished trials, oldest first."""
        return self._ranking.records

    @property
    def best(self) -> list[TrialRecord]:
        """Records of the layouts that ran, best first."""
        return list(self._ranking.in_order())

    @property
    def warning(self) -> str | None:
        """A warning that the best layout failed its confirmation; None where it did not."""
        return self._ranking.warning

    def summary(self) -> dict[str, Any] | None:
        """The content of best.json; None while no layout has run."""
        return self._ranking.summary(self.request, self.stopped_because)

    @property
    def is_out_of_time(self) -> bool:
        """Whether the search ended because of its deadline: with more time it would go on."""
        return self.stopped_because == self._schedule.reason

    def end_at_deadline(self) -> bool:
        """Whether the deadline is reached; a running trial is then dropped, to be run again."""
        if self._schedule.seconds_left > 0:
            return False
        self._running.clear()
        self.stopped_because = self._schedule.reason
        return True

    @property
    def is_over(self) -> bool:
        """Whether no trial is left to run. The next trial is chosen, but not started."""
        if self._to_repeat or self._running:
            return False
        self._next = self._next or self._choose_next()
        return self._next is None

    def next_trial(self) -> TrialSpec | None:
        """The next trial to run, or None when the search is over (see `stopped_because`).

        After the exploration, the fastest layouts are confirmed by longer trials. Where no time is
        left to explore, they are confirmed at once.
        """
        if self._to_repeat:
            return self._to_repeat.pop()
        chosen, self._next = self._next or self._choose_next(), None
        while chosen is not None and (left := self._seconds_left(*chosen)) <= 0:
            self.stopped_because = self._schedule.reason
            was_exploring, self._exploring = self._exploring, False
            chosen = self._choose_next() if was_exploring else None
        return None if chosen is None else self._hand_out(*chosen, left)

    def _choose_next(self) -> tuple[Layout, Purpose] | None:
        """The layout to run next and its purpose, or None."""
        if self._exploring:
            layout = self._next_to_explore()
            if layout is not None:
                return layout, "reduced" if counts_of(self.request, layout) else "explore"
        layout = self._next_to_confirm()
        return None if layout is None else (layout, "confirm")

    def _next_to_explore(self) -> Layout | None:
        """The search's next layout; None where exploration ends, with `stopped_because` set."""
        layout = None
        reason = self._budget_spent()
        if reason is None:
            layout = self._search.ask()
            reason = self._search.stopped_because
        if layout is None:
            self._exploring = False
            self.stopped_because = reason
        return layout

    def _next_to_confirm(self) -> Layout | None:
        if self._running or self._gpu_hours_spent():
            return None
        explored = self._ranking.next_to_confirm()
        return None if explored is None else explored.layout

    def _hand_out(self, layout: Layout, purpose: Purpose, left: float) -> TrialSpec:
        """Start a trial that may take the seconds that are `left` for it."""
        request, space = self.request, self.request.space
        multiple = CONFIRMATION_STEPS if purpose == "confirm" else 1
        trial_id = f"{self._next_number:04d}"
        self._next_number += 1
        timeout = self._timeout_seconds(layout, purpose)
        spec = spec_of(
            space,
            layout,
            trial_id=trial_id,
            measured_steps=multiple * space.measured_steps,
            log_dir=str(self.store.new_log_directory(trial_id).absolute()),
            data=request.data,
            synthetic_data=request.synthetic_data,
            seed=request.seed,
            step_deadline_seconds=self._stopping.step_deadline_seconds,
            trial_timeout_seconds=min(timeout, left),
            micro_batch_counts=counts_of(request, layout) if purpose == "reduced" else (),
            trace_steps=request.trace_steps if purpose == "confirm" else 0,
        )
        self._running[trial_id] = RunningTrial(
            spec=spec,
            purpose=purpose,
            prediction=self._search.prediction(layout),
            started_at=self._clock.now(),
            started=self._clock.monotonic(),
            seconds_left=left if left < timeout else None,
        )
        self._listener.trial_started(spec)
        return spec

    def _timeout_seconds(self, layout: Layout, purpose: Purpose) -> float:
        """Timeout of a trial; a confirmation also gets twice the expected time of its steps."""
        allowed = self.request.trial_timeout_seconds
        if purpose == "confirm":
            space = self.request.space
            steps = space.warmup_steps + CONFIRMATION_STEPS * space.measured_steps
            explored = next(r for r in self.records if r.layout == layout)
            allowed += 2 * steps * (explored.measurement.step_seconds or 0.0)
        return allowed

    def _seconds_left(self, layout: Layout, purpose: Purpose) -> float:
        """Seconds that a trial may take, so that the search ends in time; 0: too few for it."""
        if purpose != "confirm":
            prediction = self._search.prediction(layout)
            return self._schedule.seconds_to_explore(layout, prediction, self._ranking)
        explored = next(r for r in self.records if r.layout == layout)
        return self._schedule.seconds_to_confirm(explored.measurement.step_seconds or 0.0)

    def step_done(self, trial_id: str, step: StepReport) -> bool:
        """Add a step of a running trial; return whether the trial should be stopped."""
        self.store.check_still_there()
        running = self._running[trial_id]
        running.steps.append(step)
        self._listener.step_done(running.spec, step)
        if running.purpose != "explore":
            return False  # reduced steps are not comparable; confirmations are never stopped
        seconds = [step.step_seconds for step in running.steps]
        running.stop_reason = self._stopping.reason_to_stop(running.spec, seconds)
        return running.stop_reason is not None

    def attempt_lost(self, trial_id: str, reason: str) -> None:
        """The trial's nodes were lost; it starts again from its first step."""
        running = self._running[trial_id]
        running.begin_again()
        self._listener.trial_begins_again(running.spec, reason)

    def slow_device(self, trial_id: str) -> SlowDevice | None:
        """The device of a running trial that is slower than the others, by the steps so far."""
        running = self._running[trial_id]
        return slow_device(running.steps)

    def run_again(self, trial_id: str, reason: str, *, slow: str | None = None) -> None:
        """Repeat the trial next; `slow` describes the slow device that its attempt ran on."""
        running = self._running[trial_id]
        if slow is not None:
            running.slow_devices.append(slow)
        running.begin_again()
        self._to_repeat.append(running.spec)
        self._listener.trial_begins_again(running.spec, reason)

    def attempts(self, trial_id: str) -> int:
        """Number of the running trial's attempt, from 1."""
        return self._running[trial_id].attempts

    def trial_stopped(self, trial_id: str, *, slow: str | None = None) -> None:
        """The trial was stopped between steps, because `step_done` returned True."""
        reason = self._running[trial_id].stop_reason
        assert reason is not None, "only trials that should stop are stopped"
        self.trial_ended(trial_id, Ended(outcome=Outcome.STOPPED, reason=reason), slow=slow)

    def trial_ended(self, trial_id: str, ended: Ended, *, slow: str | None = None) -> None:
        """Record a finished trial and update the search; `slow` describes a slow device.

        A trial that is cut short because the search must end is not recorded: it runs again when
        the search is resumed.
        """
        running = self._running.pop(trial_id)
        if self._schedule.was_cut_short(running, ended):
            self._next_number -= 1
            return
        self._schedule.learn(running, ended)
        if slow is not None:
            running.slow_devices.append(slow)
        record = record_of(running, ended, request=self.request, clock=self._clock)
        record = checked(record, running, request=self.request, ranking=self._ranking)
        self.store.add_trial(record, running.steps, ended.trace)
        self._update(record)
        self.write_results()
        self._listener.trial_finished(record)

    def write_results(self) -> None:
        """Write pruned.parquet and best.json, which follow from the finished trials."""
        self.store.write_pruned(self._pruned)
        if (summary := self.summary()) is not None:
            self.store.write_best(summary)
        else:
            self.store.remove_best()

    def _update(self, record: TrialRecord) -> None:
        self._ranking.add(record)
        self._explored += record.purpose != "confirm"
        self._gpu_seconds += record.gpu_seconds
        if record.purpose == "confirm":
            if record.outcome is not Outcome.OOM:
                return
            # The layout ran out of memory in its longer trial: tell the search and explore again.
            self._exploring = True
            self.stopped_because = INTERRUPTED
        observation = observation_of(record)
        self._search.tell(observation)
        pruned = self._unpruned.rule_out(observation) if self.request.prune else []
        self._pruned += pruned
        self._search.discard(found.layout for found in pruned)
        self._stopping.best_step_seconds = self._ranking.fastest_seconds

    def _budget_spent(self) -> str | None:
        if self._explored + len(self._running) >= self.request.max_trials:
            return f"max_trials reached ({self.request.max_trials})"
        return self._gpu_hours_spent()

    def _gpu_hours_spent(self) -> str | None:
        limit = self.request.gpu_hours
        hours = self._gpu_seconds / 3600
        if limit is not None and hours >= limit:
            return f"gpu_hours spent ({hours:.3g} of {limit:g})"
        return None
