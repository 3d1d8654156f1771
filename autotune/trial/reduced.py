"""Cheap evidence: a layout's step time from steps with fewer micro-batches.

A step takes a time of its own plus an equal time for each micro-batch, once there are enough to
fill the pipeline. So two short steps say what a long one takes, on the same ranks, with the same
states and as many micro-batches in flight: memory included.
"""

import contextlib
import dataclasses
import time
from collections.abc import Generator, Sequence

from autotune.layout import Layout
from autotune.trial.trainable import RankHost, Trainable
from autotune.trial.trial import Ended, Outcome, StepReport, TrialSpec

# A reduced trial must save at least this factor of its steps' time, or the whole step is taken.
_WORTHWHILE = 3
# Seconds; a part may have used up the whole trial's.
_SHORTEST_TIMEOUT = 0.001
# Of the time per micro-batch of the longer step, how much must be the slope of the line.
_LEAST_SLOPE = 0.1


def reduced_counts(layout: Layout) -> tuple[int, ...]:
    """The two counts of micro-batches of a reduced trial; none where it would not be worth it."""
    fewest = max(2, layout.pipeline_parallel)
    counts = (fewest, 2 * fewest)
    if layout.gradient_accumulation_steps < _WORTHWHILE * sum(counts):
        return ()
    return counts


def extrapolated(counts: Sequence[int], seconds: Sequence[float], micro_batches: int) -> float:
    """Seconds of a step of `micro_batches`, on the line through the two that were measured.

    Where noise leaves hardly any slope, the longer step is scaled up instead: too slow rather than
    too fast, and never below what was measured.
    """
    (first, second), (short, long) = counts, seconds
    per_micro_batch = (long - short) / (second - first)
    if per_micro_batch < _LEAST_SLOPE * long / second:
        return long * micro_batches / second
    return short + per_micro_batch * (micro_batches - first)


def run_in_parts(
    spec: TrialSpec, trainable: Trainable, hosts: Sequence[RankHost]
) -> Generator[StepReport | Ended, None, None]:
    """Run a trial; a reduced one count by count, its steps numbered through."""
    if not spec.micro_batch_counts:
        yield from trainable.run(spec, hosts)
        return
    startup_seconds: float | None = 0.0
    started = time.monotonic()
    for part, count in enumerate(spec.micro_batch_counts):
        shortened = _shortened(spec, count, time.monotonic() - started)
        with contextlib.closing(trainable.run(shortened, hosts)) as events:
            for event in events:
                if isinstance(event, StepReport):
                    yield _numbered(event, event.step + part * spec.steps, count)
                    continue
                startup_seconds = _sum(startup_seconds, event.startup_seconds)
                ended = dataclasses.replace(event, startup_seconds=startup_seconds)
        if ended.outcome is not Outcome.OK:
            break
    yield ended


def _shortened(spec: TrialSpec, count: int, elapsed_seconds: float) -> TrialSpec:
    """The trial with `count` micro-batches in a step, and the time that is left to it."""
    allowed = spec.trial_timeout_seconds
    layout = spec.layout
    sequences = count * layout.micro_batch_size * layout.data_parallel
    return dataclasses.replace(
        spec,
        layout=dataclasses.replace(layout, gradient_accumulation_steps=count),
        model=dataclasses.replace(spec.model, global_batch_size=sequences),
        log_dir=None if spec.log_dir is None else f"{spec.log_dir}/{count}-micro-batches",
        micro_batch_counts=(),
        trial_timeout_seconds=allowed and max(_SHORTEST_TIMEOUT, allowed - elapsed_seconds),
    )


def _numbered(report: StepReport, step: int, count: int) -> StepReport:
    ranks = tuple(dataclasses.replace(rank, step=step) for rank in report.ranks)
    return StepReport(step=step, ranks=ranks, micro_batches=count)


def _sum(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first + second
