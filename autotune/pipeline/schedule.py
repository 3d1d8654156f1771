"""A step as a schedule: what each pipeline stage does when."""

import dataclasses
from collections.abc import Iterator
from typing import Literal

from autotune.trial.trace import Kind

PASSES: tuple[Kind, ...] = ("forward", "backward")
"""The kinds that compute."""
_IN_PIPELINE = frozenset({*PASSES, "send", "receive"})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Something that a stage does without a break."""

    kind: Kind
    micro_batch: int | None
    """From 0; None for what is done once per step."""
    start_seconds: float
    """Since the start of the step."""
    end_seconds: float

    @property
    def seconds(self) -> float:
        """How long it takes."""
        return self.end_seconds - self.start_seconds


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """One step of a layout. Time that is in no interval of a stage is idle."""

    source: Literal["predicted", "measured"]
    """Where the times come from."""
    stages: tuple[tuple[Interval, ...], ...]
    """The intervals of each stage, in order, from the first stage on. The tensor-parallel ranks and
    the replicas of a stage do the same: they are one row."""

    @property
    def micro_batches(self) -> int:
        """Micro-batches of the step."""
        return sum(interval.kind == "forward" for interval in self.stages[0])

    @property
    def step_seconds(self) -> float:
        """End of the last interval."""
        return max(row[-1].end_seconds for row in self.stages)

    @property
    def passes_seconds(self) -> float:
        """From the start of the step until the last pass on any stage has ended."""
        last = (next(i for i in reversed(row) if i.kind in PASSES) for row in self.stages)
        return max(interval.end_seconds for interval in last)

    @property
    def bubble_share(self) -> float:
        """Mean share of `passes_seconds` in which a stage neither computes a pass nor exchanges
        messages, 0..1.

        (p - 1) / (m + p - 1) with p equal stages, m micro-batches and messages that take no time.
        """
        span = self.passes_seconds * len(self.stages)
        busy = (i.seconds for row in self.stages for i in row if i.kind in _IN_PIPELINE)
        return 1 - sum(busy) / span

    def idle(self, stage: int) -> Iterator[Interval]:
        """The times until `passes_seconds` in which a stage does nothing, as intervals of kind
        `wait`."""
        span = self.passes_seconds
        busy = [interval for interval in self.stages[stage] if interval.kind != "wait"]
        ends = [0.0, *(interval.end_seconds for interval in busy)]
        starts = [*(interval.start_seconds for interval in busy), span]
        for since, until in zip(ends, starts, strict=True):
            if (end := min(until, span)) > since:
                yield Interval(kind="wait", micro_batch=None, start_seconds=since, end_seconds=end)
