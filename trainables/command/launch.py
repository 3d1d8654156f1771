"""The trainable `command`: runs layouts with the user's own training command."""

import functools
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Literal

from autotune.cluster import Cluster
from autotune.errors import NodeCheckFailed
from autotune.trial.trainable import RankHost
from autotune.trial.trial import Ended, Outcome, StepReport, TrialSpec
from trainables.command.recipe import Recipe
from trainables.deepspeed_llm.host import LocalHost
from trainables.deepspeed_llm.job import Job
from trainables.deepspeed_llm.launch import (
    Progress,
    collect_failures,
    is_failure,
    is_finite,
    spec_of_all_ranks,
)

_CHECK_TIMEOUT_SECONDS = 60.0
# A process that ended well may be ahead of another that reports the last steps.
_GRACE_SECONDS = 1.0


class Command:
    """Runs layouts with a training command. A `Trainable`."""

    def __init__(
        self,
        values: Mapping[str, Any],
        recipe: Recipe,
        *,
        device_kind: Literal["gpu", "cpu"],
        env: Mapping[str, str],
    ) -> None:
        """`values`: what `recipe` was made of, for the nodes."""
        self._values, self._recipe = dict(values), recipe
        self._device_kind: Literal["gpu", "cpu"] = device_kind
        self._env = dict(env)

    @property
    def host_factory(self) -> Callable[..., RankHost] | None:
        """A host process on each node."""
        return functools.partial(
            LocalHost,
            device_kind=self._device_kind,
            env=self._env,
            program="trainables.command.host_process",
        )

    def check(self, cluster: Cluster, hosts: Sequence[RankHost]) -> None:
        """Check that program and working directory are on each node."""
        with self._job("check", spec_of_all_ranks(cluster), hosts) as job:
            deadline = time.monotonic() + _CHECK_TIMEOUT_SECONDS
            waiting = set(range(job.world_size))
            while waiting:
                event = job.next_event(deadline)
                if event is None:
                    raise NodeCheckFailed(
                        f"{job.node_of(min(waiting))}: no answer within "
                        f"{_CHECK_TIMEOUT_SECONDS:.0f} s"
                    )
                problem = event.get("problem")
                if event["event"] == "exited" and event["exit_code"]:
                    problem = f"the check ended with exit status {event['exit_code']}"
                if problem:
                    raise NodeCheckFailed(f"{job.node_of(event['rank'])}: {problem}")
                if event["event"] == "checked":
                    waiting.discard(event["rank"])

    def run(
        self, spec: TrialSpec, hosts: Sequence[RankHost]
    ) -> Generator[StepReport | Ended, None, None]:
        """Run the command until it has reported the trial's steps; see `Trainable.run`."""
        with self._job("train", spec, hosts) as job:
            follower = _Follower(self._recipe, spec, job)
            while True:
                event = job.next_event(follower.deadline)
                report, ended = follower.follow(event)
                if report is not None:
                    yield report
                if ended is not None:
                    yield ended
                    return

    def _job(self, task: str, spec: TrialSpec, hosts: Sequence[RankHost]) -> Job:
        processes = len(hosts) if self._recipe.processes == "node" else None
        return Job(task, spec, hosts, processes=processes, details={"recipe": self._values})


class _Follower:
    """Follows a trial by the events of its processes."""

    def __init__(self, recipe: Recipe, spec: TrialSpec, job: Job) -> None:
        self._job, self._steps = job, spec.steps
        self._per_process = spec.layout.world_size // job.world_size
        self._one_reports = recipe.reporters == "one"
        reporters = 1 if self._one_reports else job.world_size
        self._progress = Progress(spec, time.monotonic(), reporters)
        self._reported = 0
        self._finished: dict[int, Mapping[str, Any]] = {}
        self._short_since: float | None = None

    @property
    def deadline(self) -> float | None:
        """Monotonic time until which to wait for an event."""
        short = None if self._short_since is None else self._short_since + _GRACE_SECONDS
        return min(filter(None, (short, self._progress.deadline)), default=None)

    def follow(self, event: Mapping[str, Any] | None) -> tuple[StepReport | None, Ended | None]:
        """A step, the end, both or neither; None as event: the deadline has passed."""
        if event is None:
            return None, self._too_short() if self._short_since else self._progress.timeout()
        if is_failure(event):
            return None, self._progress.failure(collect_failures(event, self._job))
        if event["event"] == "step":
            return self._step(event)
        if event["event"] == "finished":
            self._finished[event["rank"]] = event
            if len(self._finished) == self._job.world_size:
                self._short_since = time.monotonic()
        return None, None

    def _step(self, event: Mapping[str, Any]) -> tuple[StepReport | None, Ended | None]:
        if self._one_reports and event["step"] != self._reported:
            return None, None  # another process has reported this step already
        if problem := _problem(event):
            return None, self._progress.end(Outcome.INVALID, problem)
        report = self._progress.record({**event, "rank": event["rank"] * self._per_process})
        if report is None:
            return None, None
        if not is_finite(report):
            reason = f"step {report.step}: loss {report.loss}, {report.grad_norm} as gradient norm"
            return None, self._progress.end(Outcome.INVALID, reason)
        self._reported += 1
        if self._reported < self._steps:
            return report, None
        return report, self._progress.end(Outcome.OK, "")

    def _too_short(self) -> Ended:
        """All processes ended well, without the steps."""
        most = max(self._finished.values(), key=lambda finished: finished["steps"])
        if most["steps"] == 0:
            what = "ended without a step that could be read"
        else:
            what = f"ended after {self._reported} of {self._steps} steps"
        return self._progress.end(Outcome.CRASHED, f"the command {what}; {most['log']}")


def _problem(event: Mapping[str, Any]) -> str | None:
    seconds = event["step_seconds"]
    if not math.isfinite(seconds) or seconds <= 0:
        return f"step {event['step']}: the step time must be positive, got {seconds:g} s"
    memory = event["peak_memory_gib"]
    if memory is not None and not (math.isfinite(memory) and memory >= 0):
        return f"step {event['step']}: the memory must not be negative, got {memory:g} GiB"
    return None
