"""Cheap evidence: a layout's step time from steps with fewer micro-batches.

A step takes a time of its own plus an equal time for each micro-batch, once there are enough to
fill the pipeline. So two short steps say what a long one takes, on the same ranks, with the same
states and as many micro-batches in flight: memory included.
"""

import contextlib
import dataclasses
from collections.abc import Generator, Sequence

from autotune.layout import Layout
from autotune.trainable import RankHost, Trainable
from autotune.trial import Ended, Outcome, StepReport, TrialSpec

# A reduced trial must save at least this factor of its steps' time, or the whole step is taken.
_WORTHWHILE = 3


def reduced_counts(layout: Layout) -> tuple[int, ...]:
    """The two counts of micro-batches of a reduced trial; none where it would not be worth it."""
    fewest = max(2, layout.pipeline_parallel)
    counts = (fewest, 2 * fewest)
    if layout.gradient_accumulation_steps < _WORTHWHILE * sum(counts):
        return ()
    return counts


def extrapolated(counts: Sequence[int], seconds: Sequence[float], micro_batches: int) -> float:
    """Seconds of a step of `micro_batches`, on the line through the two that were measured."""
    (first, second), (short, long) = counts, seconds
    per_micro_batch = (long - short) / (second - first)
    return short + per_micro_batch * (micro_batches - first)


def run_in_parts(
    spec: TrialSpec, trainable: Trainable, hosts: Sequence[RankHost]
) -> Generator[StepReport | Ended, None, None]:
    """Run a trial; a reduced one count by count, its steps numbered through."""
    if not spec.micro_batch_counts:
        yield from trainable.run(spec, hosts)
        return
    startup_seconds: float | None = 0.0
    for part, count in enumerate(spec.micro_batch_counts):
        with contextlib.closing(trainable.run(_shortened(spec, count), hosts)) as events:
            for event in events:
                if isinstance(event, StepReport):
                    yield _numbered(event, event.step + part * spec.steps, count)
                    continue
                startup_seconds = _sum(startup_seconds, event.startup_seconds)
                ended = dataclasses.replace(event, startup_seconds=startup_seconds)
        if ended.outcome is not Outcome.OK:
            break
    yield ended


def _shortened(spec: TrialSpec, count: int) -> TrialSpec:
    """The trial with `count` micro-batches in a step."""
    layout = spec.layout
    sequences = count * layout.micro_batch_size * layout.data_parallel
    return dataclasses.replace(
        spec,
        layout=dataclasses.replace(layout, gradient_accumulation_steps=count),
        model=dataclasses.replace(spec.model, global_batch_size=sequences),
        log_dir=None if spec.log_dir is None else f"{spec.log_dir}/{count}-micro-batches",
        micro_batch_counts=(),
    )


def _numbered(report: StepReport, step: int, count: int) -> StepReport:
    ranks = tuple(dataclasses.replace(rank, step=step) for rank in report.ranks)
    return StepReport(step=step, ranks=ranks, micro_batches=count)


def _sum(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first + second
