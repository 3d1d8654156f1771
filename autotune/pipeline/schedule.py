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
        return max(i.end_seconds for row in self.stages for i in row if i.kind in PASSES)

    @property
    def bubble_share(self) -> float:
        """Mean share of `passes_seconds` in which a stage has nothing to do, 0..1.

        (p - 1) / (m + p - 1) with p equal stages, m micro-batches and transfers that take no time.
        """
        span = self.passes_seconds
        busy = (i.seconds for row in self.stages for i in row if i.kind in _IN_PIPELINE)
        return 1 - sum(busy) / (span * len(self.stages))

    def idle(self) -> Iterator[tuple[int, float, float]]:
        """Stage, start and end of each time until `passes_seconds` that a stage has nothing to
        do."""
        span = self.passes_seconds
        for stage, row in enumerate(self.stages):
            since = 0.0
            for interval in row:
                if interval.kind in _IN_PIPELINE:
                    if interval.start_seconds > since:
                        yield stage, since, interval.start_seconds
                    since = interval.end_seconds
                elif interval.kind != "wait":  # the end of the step begins
                    break
            if span > since:
                end = min((i.start_seconds for i in row if i.kind == "reduction"), default=span)
                if min(span, end) > since:
                    yield stage, since, min(span, end)
