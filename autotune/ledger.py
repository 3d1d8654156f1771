"""The life of a search, without Ray: what to run next, what came of it, and when it is over.

The ledger is a pure function of the request, the seed and what it was told, in the order of the
store: a resumed search is told everything again and goes on as if it had never stopped.
"""

import dataclasses
import datetime
import time
from typing import Any, Protocol

from autotune.measurement import measure
from autotune.record import TrialRecord
from autotune.request import Request
from autotune.search import Observation, Pruned, make_search, prune
from autotune.stopping import SlowerThanBest
from autotune.store import RunStore
from autotune.trial import Ended, Outcome, StepReport, TrialSpec


class Listener(Protocol):
    """Is told what happens, to show it."""

    def trial_started(self, spec: TrialSpec) -> None:
        """A trial was handed out."""

    def step_done(self, spec: TrialSpec, step: StepReport) -> None:
        """A step of a running trial came back."""

    def trial_finished(self, record: TrialRecord) -> None:
        """A trial is on record."""


@dataclasses.dataclass(slots=True, kw_only=True)
class _Running:
    spec: TrialSpec
    started_at: datetime.datetime
    started: float
    steps: list[StepReport] = dataclasses.field(default_factory=list)
    stop_reason: str | None = None


class Ledger:
    """Hands out trials, takes their steps and ends, and keeps the record."""

    def __init__(self, store: RunStore, listener: Listener) -> None:
        """Take up the store's request where its trials left off."""
        self.request: Request = store.request
        self._store = store
        self._listener = listener
        self._layouts = self.request.space.layouts()
        self._open = set(self._layouts)
        self._search = make_search(self.request.search, self._layouts, seed=self.request.seed)
        self._stopping = SlowerThanBest(self.request.stop_factor)
        self._running: dict[str, _Running] = {}
        self._pruned: list[Pruned] = []
        self.records: list[TrialRecord] = []
        """All finished trials, oldest first."""
        self.stopped_because = "interrupted"
        """Why no more trials are handed out."""
        for record in store.trials():
            self._learn(record)
        self._next_number = 1 + max((int(r.trial_id) for r in self.records), default=0)

    @property
    def best(self) -> list[TrialRecord]:
        """Successful trials, fastest first."""
        succeeded = (r for r in self.records if r.outcome is Outcome.OK)
        return sorted(succeeded, key=lambda r: (r.measurement.step_seconds, r.trial_id))

    def next_trial(self) -> TrialSpec | None:
        """The next trial to run, or None when the search is over (see `stopped_because`)."""
        if reason := self._budget_spent():
            self.stopped_because = reason
            return None
        layout = self._search.ask()
        if layout is None:
            self.stopped_because = "every layout was tried or ruled out"
            return None
        request, space = self.request, self.request.space
        trial_id = f"{self._next_number:04d}"
        self._next_number += 1
        spec = TrialSpec(
            trial_id=trial_id,
            layout=layout,
            model=space.model,
            cluster=space.cluster,
            precision=space.precision,
            warmup_steps=space.warmup_steps,
            measured_steps=space.measured_steps,
            log_dir=str(self._store.new_log_directory(trial_id)),
            data=request.data,
            synthetic_data=request.synthetic_data,
            seed=request.seed,
            step_deadline_seconds=self._stopping.step_deadline_seconds,
            trial_timeout_seconds=request.trial_timeout_seconds,
        )
        self._running[trial_id] = _Running(
            spec=spec,
            started_at=datetime.datetime.now(datetime.UTC),
            started=time.monotonic(),
        )
        self._listener.trial_started(spec)
        return spec

    def step_done(self, trial_id: str, step: StepReport) -> bool:
        """Take a step of a running trial; whether the trial should stop now."""
        running = self._running[trial_id]
        if step.step == 0:
            running.steps.clear()  # a second attempt begins
        running.steps.append(step)
        self._listener.step_done(running.spec, step)
        seconds = [step.step_seconds for step in running.steps]
        running.stop_reason = self._stopping.reason_to_stop(running.spec, seconds)
        return running.stop_reason is not None

    def trial_stopped(self, trial_id: str, *, attempts: int) -> None:
        """A trial was cut between steps, after `step_done` said so."""
        reason = self._running[trial_id].stop_reason
        assert reason is not None, "only trials that should stop are stopped"
        self.trial_ended(trial_id, Ended(outcome=Outcome.STOPPED, reason=reason), attempts=attempts)

    def trial_ended(self, trial_id: str, ended: Ended, *, attempts: int) -> None:
        """Put a finished trial on record and learn from it."""
        running = self._running.pop(trial_id)
        held = time.monotonic() - running.started
        record = TrialRecord(
            trial_id=trial_id,
            trainable=self.request.trainable,
            purpose="explore",
            layout=running.spec.layout,
            outcome=ended.outcome,
            reason=ended.reason,
            measurement=measure(running.spec, running.steps),
            startup_seconds=ended.startup_seconds,
            gpu_seconds=held * self.request.space.cluster.devices,
            attempts=attempts,
            started_at=running.started_at,
            finished_at=datetime.datetime.now(datetime.UTC),
        )
        self._store.add_trial(record, running.steps)
        self._learn(record)
        self._store.write_pruned(self._pruned)
        if self.best:
            self._store.write_json("best.json", self.summary())
        self._listener.trial_finished(record)

    def summary(self) -> dict[str, Any] | None:
        """The content of best.json; None while nothing has worked."""
        if not self.best:
            return None
        first, *others = self.best
        return {
            **_brief(first),
            "simulated": False,
            "runner_up": _brief(others[0]) if others else None,
            "stopped_because": self.stopped_because,
        }

    def _learn(self, record: TrialRecord) -> None:
        self.records.append(record)
        observation = Observation(
            layout=record.layout,
            outcome=record.outcome,
            step_seconds=record.measurement.step_seconds if _was_timed(record) else None,
        )
        self._open.discard(record.layout)
        self._search.tell(observation)
        pruned = prune(observation, (layout for layout in self._layouts if layout in self._open))
        self._pruned += pruned
        self._open.difference_update(found.layout for found in pruned)
        self._search.discard(found.layout for found in pruned)
        if record.outcome is Outcome.OK and record.measurement.step_seconds is not None:
            self._stopping.learn(record.measurement.step_seconds)

    def _budget_spent(self) -> str | None:
        request = self.request
        if len(self.records) + len(self._running) >= request.max_trials:
            return f"max_trials reached ({request.max_trials})"
        hours = sum(record.gpu_seconds for record in self.records) / 3600
        if request.gpu_hours is not None and hours >= request.gpu_hours:
            return f"gpu_hours spent ({hours:.3g} of {request.gpu_hours:g})"
        return None


def _was_timed(record: TrialRecord) -> bool:
    return record.outcome in (Outcome.OK, Outcome.STOPPED)


def _brief(record: TrialRecord) -> dict[str, Any]:
    measurement = record.measurement
    return {
        "layout": record.layout.columns(),
        "trial_id": record.trial_id,
        "step_seconds": measurement.step_seconds,
        "mfu": measurement.mfu,
        "peak_memory_gib": measurement.peak_memory_gib,
        "tokens_per_second_per_gpu": measurement.tokens_per_second_per_gpu,
    }
