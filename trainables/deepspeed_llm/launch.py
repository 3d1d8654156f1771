"""The DeepSpeed trainable: runs a layout on a group of hosts and reports steps and outcome."""

import functools
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Literal

import pydantic

from autotune.cluster import Cluster
from autotune.errors import NodeCheckFailed
from autotune.layout import Layout
from autotune.model import Model
from autotune.trial.trace import RankTrace, merged
from autotune.trial.trainable import RankHost
from autotune.trial.trial import Ended, Outcome, RankStep, StepReport, TrialSpec
from trainables.deepspeed_llm.host import LocalHost
from trainables.deepspeed_llm.job import Job

# After the first failure, wait this long for the failures of other ranks: one may be the cause.
_GRACE_SECONDS = 0.3
# When a node dies, its peers see closed connections before Ray reports the loss: wait this long.
_NODE_LOSS_SECONDS = 12.0
_CHECK_TIMEOUT_SECONDS = 120.0
# If more than this is in use before we start, another job runs on the device.
_IDLE_DEVICE_GIB = 2.0

_rank_step = pydantic.TypeAdapter(RankStep)
_rank_trace = pydantic.TypeAdapter(RankTrace)


class DeepSpeedLlm:
    """Trains layouts with DeepSpeed. A `Trainable`."""

    def __init__(
        self, *, device_kind: Literal["gpu", "cpu"], env: Mapping[str, str] | None = None
    ) -> None:
        """`env`: variables for the ranks, which override the node's."""
        self._device_kind: Literal["gpu", "cpu"] = device_kind
        self._env = dict(env or {})

    @property
    def host_factory(self) -> Callable[..., RankHost] | None:
        """A host process on each node."""
        return functools.partial(LocalHost, device_kind=self._device_kind, env=self._env)

    def check(self, cluster: Cluster, hosts: Sequence[RankHost]) -> None:
        """Check each device with a small matrix product and all of them with an all-reduce."""
        with Job("check", spec_of_all_ranks(cluster), hosts) as job:
            deadline = time.monotonic() + _CHECK_TIMEOUT_SECONDS
            waiting = set(range(job.world_size))
            consequences: list[str] = []
            while waiting:
                event = job.next_event(deadline)
                if event is None:
                    ranks = ", ".join(map(str, sorted(waiting)))
                    consequences.append(
                        f"{job.node_of(min(waiting))}: no answer from rank {ranks} within "
                        f"{_CHECK_TIMEOUT_SECONDS:.0f} s"
                    )
                    break
                if problem := _check_problem(event):
                    problem = f"{job.node_of(event['rank'])}: {problem}"
                    if not event.get("consequence"):
                        raise NodeCheckFailed(problem)
                    consequences.append(problem)
                if problem or event["event"] == "checked":
                    waiting.discard(event["rank"])
            if consequences:
                job.events_during(_NODE_LOSS_SECONDS)  # raises NodeLost if a node has died
                raise NodeCheckFailed(consequences[0])

    def run(
        self, spec: TrialSpec, hosts: Sequence[RankHost]
    ) -> Generator[StepReport | Ended, None, None]:
        """Train the trial's steps; see `Trainable.run`."""
        started = time.monotonic()
        progress = Progress(spec, started)
        with Job("train", spec, hosts) as job:
            while True:
                event = job.next_event(progress.deadline)
                if event is None:
                    yield progress.timeout()
                    return
                if is_failure(event):
                    yield progress.failure(collect_failures(event, job))
                    return
                if report := progress.record(event):
                    if not is_finite(report):
                        reason = f"step {report.step}: loss {report.loss}, {report.grad_norm}"
                        yield progress.end(Outcome.INVALID, f"{reason} as gradient norm")
                        return
                    yield report
                if progress.is_done:
                    yield progress.end(Outcome.OK, "")
                    return


class Progress:
    """The state of a running trial: steps so far, deadlines and outcome."""

    def __init__(self, spec: TrialSpec, started: float, reporters: int | None = None) -> None:
        """`reporters`: how many ranks report each step; None: all."""
        self._reporters = reporters or spec.layout.world_size
        self._spec = spec
        self._started = started
        self._last_step_at: float | None = None
        self._startup_seconds: float | None = None
        self._waiting_for_ready = spec.layout.world_size
        self._waiting_for_done = spec.layout.world_size
        self._steps: dict[int, list[RankStep]] = {}
        self._reported = 0
        self._traces: list[RankTrace] = []

    @property
    def is_done(self) -> bool:
        return self._waiting_for_done == 0

    @property
    def deadline(self) -> float | None:
        """Monotonic time at which the trial times out; None: never."""
        return min(filter(None, (self._trial_deadline, self._step_deadline)), default=None)

    @property
    def _trial_deadline(self) -> float | None:
        allowed = self._spec.trial_timeout_seconds
        return None if allowed is None else self._started + allowed

    @property
    def _step_deadline(self) -> float | None:
        allowed = self._spec.step_deadline_seconds
        if allowed is None or self._last_step_at is None:
            return None  # the first step includes warm-up: only the trial's deadline applies
        return self._last_step_at + allowed

    def record(self, event: Mapping[str, Any]) -> StepReport | None:
        """Record an event; returns a report if it completes a step on all ranks."""
        match event["event"]:
            case "ready_to_step":
                self._waiting_for_ready -= 1
                if self._waiting_for_ready == 0:
                    self._startup_seconds = time.monotonic() - self._started
            case "done":
                self._waiting_for_done -= 1
            case "trace":
                self._traces.append(_rank_trace.validate_python(_without_envelope(event)))
            case "step":
                return self._step(_rank_step.validate_python(_without_envelope(event)))
        return None

    def _step(self, rank_step: RankStep) -> StepReport | None:
        ranks = self._steps.setdefault(rank_step.step, [])
        ranks.append(rank_step)
        if len(ranks) < self._reporters:
            return None
        self._last_step_at = time.monotonic()
        self._reported += 1
        del self._steps[rank_step.step]
        return StepReport(
            step=rank_step.step,
            ranks=tuple(sorted(ranks, key=lambda step: step.rank)),
            micro_batches=self._spec.micro_batches(rank_step.step),
        )

    def end(self, outcome: Outcome, reason: str) -> Ended:
        return Ended(
            outcome=outcome,
            reason=reason,
            startup_seconds=self._startup_seconds,
            trace=merged(self._traces) if outcome is Outcome.OK else (),
        )

    def timeout(self) -> Ended:
        allowed = self._spec.trial_timeout_seconds
        what = f"step {self._reported}"
        if self.deadline != self._trial_deadline:
            allowed = self._spec.step_deadline_seconds
        elif self._startup_seconds is None:
            what = "start-up"
        return self.end(Outcome.TIMEOUT, f"{what} was not done within its {allowed:g} s")

    def failure(self, failed: Sequence[Mapping[str, Any]]) -> Ended:
        """The outcome of the rank that caused the failure, not of ranks that failed as a result."""
        return self.end(*cause_of(failed))


def cause_of(failed: Sequence[Mapping[str, Any]]) -> tuple[Outcome, str]:
    """Outcome and reason of the failure that caused the others."""
    cause = min(failed, key=_precedence)  # the earliest of equal precedence
    if cause["event"] == "failed":
        outcome, reason = Outcome(cause["outcome"]), cause["reason"]
    else:
        outcome, reason = Outcome.CRASHED, _exit_reason(cause["exit_code"])
    return outcome, f"rank {cause['rank']}: {reason}"


def collect_failures(first: Mapping[str, Any], job: Job) -> list[Mapping[str, Any]]:
    """The first failure and those shortly after it.

    If all of them are closed connections, wait for the cause: a node may have died, which is not
    the layout's failure. Raises NodeLost.
    """
    failed = [first, *filter(is_failure, job.events_during(_GRACE_SECONDS))]
    deadline = time.monotonic() + _NODE_LOSS_SECONDS
    while all(map(_is_consequence, failed)) and len({e["rank"] for e in failed}) < job.world_size:
        event = job.next_event(deadline)
        if event is None:
            break
        if is_failure(event):
            failed.append(event)
    return failed


def is_failure(event: Mapping[str, Any]) -> bool:
    """Whether an event says that a rank failed."""
    return event["event"] == "failed" or bool(event.get("exit_code"))


def _is_consequence(event: Mapping[str, Any]) -> bool:
    return event["event"] == "failed" and event["consequence"]


def is_finite(report: StepReport) -> bool:
    """Whether loss and gradient norm are numbers, where they are known."""
    return math.isfinite(report.loss or 0.0) and math.isfinite(report.grad_norm or 0.0)


def _precedence(event: Mapping[str, Any]) -> int:
    """Sort key: a rank's own exception, then an exit or signal, then failures caused by peers."""
    if event["event"] == "exited":
        return 1
    return 2 if _is_consequence(event) else 0


def _exit_reason(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"left with exit status {code}"


def _without_envelope(event: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key not in ("event", "job_id")}


def spec_of_all_ranks(cluster: Cluster, seconds: float | None = None) -> TrialSpec:
    """A minimal trial with one rank per device, for a job that does not train its model.

    `seconds` is its time limit.
    """
    model = Model(
        num_hidden_layers=1,
        hidden_size=2,
        intermediate_size=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        vocab_size=1,
        sequence_length=1,
        global_batch_size=cluster.devices,
    )
    return TrialSpec(
        trial_id="check",
        layout=Layout(data_parallel=cluster.devices),
        model=model,
        cluster=cluster,
        precision="fp32",
        warmup_steps=0,
        measured_steps=1,
        log_dir=None,
        trial_timeout_seconds=seconds,
    )


def _check_problem(event: Mapping[str, Any]) -> str | None:
    if event["event"] == "failed":
        return f"rank {event['rank']}: {event['reason']}"
    if event["event"] == "exited" and event["exit_code"]:
        return f"rank {event['rank']}: {_exit_reason(event['exit_code'])}"
    if event["event"] != "checked":
        return None
    if not event["product_is_right"]:
        return f"device of rank {event['rank']} computes a matrix product incorrectly"
    if not event["all_reduce_is_right"]:
        return f"rank {event['rank']} got a wrong result from an all-reduce"
    if event["memory_in_use_gib"] > _IDLE_DEVICE_GIB:
        return (
            f"the device of rank {event['rank']} must be idle, has "
            f"{event['memory_in_use_gib']:.1f} GiB in use"
        )
    return None
