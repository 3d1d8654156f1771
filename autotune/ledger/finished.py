"""The record of a finished trial, and whether its figures can be true."""

import dataclasses
import math

from autotune.ledger.clock import Clock
from autotune.ledger.plausibility import why_impossible
from autotune.ledger.ranking import Ranking
from autotune.ledger.running import RunningTrial
from autotune.ledger.search_setup import startup_seconds
from autotune.request import Request
from autotune.store.record import TrialRecord
from autotune.trial.measurement import measure, why_not_measured
from autotune.trial.trial import Ended, Outcome


def record_of(
    running: RunningTrial, ended: Ended, *, request: Request, clock: Clock
) -> TrialRecord:
    """The record of a trial that ends now; a simulated one has the cost of a real one."""
    seconds = clock.monotonic() - running.started
    if request.simulated:
        seconds = startup_seconds(request)
        times = (step.step_seconds for step in running.steps)
        seconds += sum(time for time in times if 0 < time < math.inf)
    measurement = measure(running.spec, running.steps)
    if request.description.trains == "recorded":
        # All steps of a replay are the one figure that is on record: it has no spread and no trend.
        measurement = dataclasses.replace(
            measurement, step_seconds_iqr=None, step_seconds_drift=None, memory_growth_gib=None
        )
    return TrialRecord(
        trial_id=running.spec.trial_id,
        trainable=request.trainable,
        purpose=running.purpose,
        layout=running.spec.layout,
        outcome=ended.outcome,
        reason=ended.reason,
        measurement=measurement,
        startup_seconds=ended.startup_seconds,
        gpu_seconds=seconds * request.space.cluster.devices,
        attempts=running.attempts,
        slow_device="; ".join(running.slow_devices) or None,
        started_at=running.started_at,
        finished_at=clock.now(),
        prediction=running.prediction,
    )


def checked(
    record: TrialRecord, running: RunningTrial, *, request: Request, ranking: Ranking
) -> TrialRecord:
    """The record, before it is ranked; its outcome becomes `invalid` where it is implausible."""
    reason = why_not_measured(record.measurement, record.outcome)
    if reason is None and record.outcome is Outcome.OK:
        reason = why_impossible(
            running.spec, record.measurement, running.steps, request.description.trainer
        )
    loss = ranking.comparable_loss(record)
    if reason is None and record.outcome is Outcome.OK and loss is not None:
        # Two trials must agree on another loss, because a single one may itself be wrong.
        # Outcomes that are already recorded are not changed.
        reason = ranking.final_losses.why_wrong(loss, votes=2)
    if reason is None:
        return record
    return dataclasses.replace(record, outcome=Outcome.INVALID, reason=reason)
