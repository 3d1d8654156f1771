"""The life of a search, without Ray: what to run next, what came of it, and when it is over.

The ledger is a pure function of the request, the seed and what it was told, in the order of the
store: a resumed search is told everything again and goes on as if it had never stopped.
"""

import dataclasses
import datetime
import functools
import time
from collections.abc import Sequence
from typing import Any, Protocol

from autotune.cost.model import CostModel
from autotune.errors import InputError
from autotune.fidelity import reduced_counts
from autotune.layout import Layout
from autotune.measurement import measure
from autotune.record import Purpose, TrialRecord
from autotune.request import Request
from autotune.search import (
    Observation,
    Prediction,
    Prior,
    Pruned,
    Search,
    TrialCost,
    make_search,
    prune,
)
from autotune.stopping import SlowerThanBest
from autotune.store import RunStore
from autotune.trial import Ended, Outcome, StepReport, TrialSpec

_SAYS_NOTHING = frozenset({Outcome.TIMEOUT, Outcome.LOST})
"""Outcomes of a confirmation that are no reason to drop the layout."""
# The fastest explored layouts are run again, this many times longer.
CONFIRMED = 3
_CONFIRMATION_STEPS = 3
# Process groups and the first touch of memory; the recorded sweeps are replayed with the first.
_STARTUP_SECONDS = {"gpu": 120.0, "cpu": 1.0}
# Of the training run that a layout is for, unless its length is told (Hoffmann et al. 2022).
_TOKENS_PER_PARAMETER = 20


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
    purpose: Purpose
    prediction: Prediction | None
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
        self._layouts = self.request.all_layouts()
        self._open = set(self._layouts)
        self._search = search_for(self.request, self._layouts)
        self._stopping = SlowerThanBest(self.request.stop_factor)
        self._exploring = True
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
        """Successful layouts: those that were confirmed first, then by time.

        A layout that failed to be confirmed is not among them; one whose confirmation was cut short
        by a deadline or a lost node stays as it was explored.
        """
        latest: dict[Layout, TrialRecord] = {}
        for record in self.records:
            if record.purpose != "confirm" or record.outcome not in _SAYS_NOTHING:
                latest[record.layout] = record
        succeeded = (r for r in latest.values() if r.outcome is Outcome.OK)
        return sorted(
            succeeded,
            key=lambda r: (r.purpose != "confirm", r.measurement.step_seconds, r.trial_id),
        )

    def next_trial(self) -> TrialSpec | None:
        """The next trial to run, or None when the search is over (see `stopped_because`).

        When nothing more is explored, the fastest layouts are confirmed by longer trials.
        """
        if self._exploring:
            layout = self._next_to_explore()
            if layout is not None:
                reduced = bool(counts_of(self.request, layout))
                return self._hand_out(layout, "reduced" if reduced else "explore")
        layout = self._next_to_confirm()
        if layout is None:
            return None
        return self._hand_out(layout, "confirm")

    def _next_to_explore(self) -> Layout | None:
        """The search's choice; None with `stopped_because` set."""
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
        """The fastest explored layout that is among the first few and was not confirmed yet."""
        if self._running or self._gpu_hours_spent():
            return None
        explored = [r for r in self.records if r.purpose != "confirm" and r.outcome is Outcome.OK]
        explored.sort(key=lambda r: (r.measurement.step_seconds, r.trial_id))
        confirmed = {r.layout for r in self.records if r.purpose == "confirm"}
        fastest = [record.layout for record in explored[:CONFIRMED]]
        return next((layout for layout in fastest if layout not in confirmed), None)

    def _hand_out(self, layout: Layout, purpose: Purpose) -> TrialSpec:
        request, space = self.request, self.request.space
        longer = _CONFIRMATION_STEPS if purpose == "confirm" else 1
        trial_id = f"{self._next_number:04d}"
        self._next_number += 1
        spec = TrialSpec(
            trial_id=trial_id,
            layout=layout,
            model=space.model,
            cluster=space.cluster,
            precision=space.precision,
            warmup_steps=space.warmup_steps,
            measured_steps=longer * space.measured_steps,
            log_dir=str(self._store.new_log_directory(trial_id)),
            data=request.data,
            synthetic_data=request.synthetic_data,
            seed=request.seed,
            step_deadline_seconds=self._stopping.step_deadline_seconds,
            trial_timeout_seconds=self._timeout_seconds(layout, purpose),
            micro_batch_counts=counts_of(request, layout) if purpose == "reduced" else (),
        )
        self._running[trial_id] = _Running(
            spec=spec,
            purpose=purpose,
            prediction=self._search.prediction(layout),
            started_at=datetime.datetime.now(datetime.UTC),
            started=time.monotonic(),
        )
        self._listener.trial_started(spec)
        return spec

    def _timeout_seconds(self, layout: Layout, purpose: Purpose) -> float:
        """A confirmation has the time besides that its steps are known to take."""
        allowed = self.request.trial_timeout_seconds
        if purpose == "confirm":
            space = self.request.space
            steps = space.warmup_steps + _CONFIRMATION_STEPS * space.measured_steps
            explored = next(r for r in self.records if r.layout == layout)
            allowed += 2 * steps * (explored.measurement.step_seconds or 0.0)
        return allowed

    def step_done(self, trial_id: str, step: StepReport) -> bool:
        """Take a step of a running trial; whether the trial should stop now."""
        running = self._running[trial_id]
        if step.step == 0:
            running.steps.clear()  # a second attempt begins
        running.steps.append(step)
        self._listener.step_done(running.spec, step)
        if running.purpose != "explore":
            return False  # short steps are not compared, and a confirmation runs to its end
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
        if self.request.simulated:
            starts = len(running.spec.micro_batch_counts) or 1
            held = starts * startup_seconds(self.request)
            held += sum(step.step_seconds for step in running.steps)
        record = TrialRecord(
            trial_id=trial_id,
            trainable=self.request.trainable,
            purpose=running.purpose,
            layout=running.spec.layout,
            outcome=ended.outcome,
            reason=ended.reason,
            measurement=measure(running.spec, running.steps),
            startup_seconds=ended.startup_seconds,
            gpu_seconds=held * self.request.space.cluster.devices,
            attempts=attempts,
            started_at=running.started_at,
            finished_at=datetime.datetime.now(datetime.UTC),
            prediction=running.prediction,
        )
        self._store.add_trial(record, running.steps)
        self._learn(record)
        self._store.write_pruned(self._pruned)
        if self.best:
            self._store.write_json("best.json", self.summary())
        else:
            self._store.remove("best.json")
        self._listener.trial_finished(record)

    def summary(self) -> dict[str, Any] | None:
        """The content of best.json; None while nothing has worked."""
        if not self.best:
            return None
        first, *others = self.best
        return {
            **_brief(first),
            "trainable": self.request.trainable,
            "simulated": self.request.simulated,
            "runner_up": _brief(others[0]) if others else None,
            "equal_within_noise": [r.trial_id for r in others if equal_within_noise(first, r)],
            "stopped_because": self.stopped_because,
        }

    def _learn(self, record: TrialRecord) -> None:
        self.records.append(record)
        if record.purpose == "confirm":
            return
        observation = Observation(
            layout=record.layout,
            outcome=record.outcome,
            step_seconds=record.measurement.step_seconds if _was_timed(record) else None,
            peak_memory_gib=record.measurement.peak_memory_gib if _was_timed(record) else None,
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
        explored = sum(record.purpose != "confirm" for record in self.records)
        if explored + len(self._running) >= self.request.max_trials:
            return f"max_trials reached ({self.request.max_trials})"
        return self._gpu_hours_spent()

    def _gpu_hours_spent(self) -> str | None:
        limit = self.request.gpu_hours
        hours = sum(record.gpu_seconds for record in self.records) / 3600
        if limit is not None and hours >= limit:
            return f"gpu_hours spent ({hours:.3g} of {limit:g})"
        return None


def search_for(request: Request, layouts: Sequence[Layout]) -> Search:
    """The search that was asked for, with the cost model as its prior where the device is known."""
    space = request.space
    try:
        model = CostModel(space.model, space.precision, space.cluster, trainer=request.trainer)
        prior = Prior(model, layouts)
    except InputError:
        if request.search == "guided":
            raise
        prior = None
    cost = TrialCost(
        seconds=functools.partial(_trial_seconds, request),
        devices=space.cluster.devices,
        training_gpu_hours=request.training_gpu_hours,
        training_steps=_TOKENS_PER_PARAMETER * space.model.parameters / space.model.tokens_per_step,
    )
    return make_search(request.search, layouts, seed=request.seed, prior=prior, cost=cost)


def counts_of(request: Request, layout: Layout) -> tuple[int, ...]:
    """The counts of micro-batches by which a layout is explored; none: by its own."""
    if not request.reduced_trials or request.trainable == "replay":
        return ()
    return reduced_counts(layout)


def _trial_seconds(request: Request, layout: Layout) -> tuple[float, float]:
    """What a trial of a layout takes: seconds before its steps, and its steps in whole ones."""
    steps = request.space.warmup_steps + request.space.measured_steps
    counts = counts_of(request, layout)
    share = sum(counts) / layout.gradient_accumulation_steps if counts else 1.0
    return (len(counts) or 1) * startup_seconds(request), steps * share


def startup_seconds(request: Request) -> float:
    """What a trial is taken to need before its first step, where that is not measured."""
    return _STARTUP_SECONDS[request.space.cluster.device.kind]


def equal_within_noise(first: TrialRecord, second: TrialRecord) -> bool:
    """Whether two measured step times differ by less than their own spread over the steps."""
    one, other = first.measurement, second.measurement
    if one.step_seconds is None or other.step_seconds is None:
        return False
    spread = max(one.step_seconds_iqr or 0.0, other.step_seconds_iqr or 0.0)
    return abs(one.step_seconds - other.step_seconds) <= spread


def _was_timed(record: TrialRecord) -> bool:
    return record.outcome in (Outcome.OK, Outcome.STOPPED)


def _brief(record: TrialRecord) -> dict[str, Any]:
    measurement = record.measurement
    return {
        "layout": record.layout.columns(),
        "trial_id": record.trial_id,
        "purpose": record.purpose,
        "step_seconds": measurement.step_seconds,
        "mfu": measurement.mfu,
        "peak_memory_gib": measurement.peak_memory_gib,
        "tokens_per_second_per_gpu": measurement.tokens_per_second_per_gpu,
    }
