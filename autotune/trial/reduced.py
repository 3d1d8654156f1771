"""Reduced trials: extrapolate a layout's step time from steps with fewer micro-batches.

Step time is linear in the number of micro-batches once they fill the pipeline. So steps with two
small numbers of micro-batches determine that of a full step. Ranks, optimiser states and
micro-batches in flight are the same, so the peak memory is too.
"""

import contextlib
import dataclasses
import time
from collections.abc import Generator, Sequence

from autotune.layout import Layout
from autotune.trial.trainable import RankHost, Trainable
from autotune.trial.trial import Ended, Outcome, StepReport, TrialSpec

# Least ratio of a full step's micro-batches to those of both reduced steps, for a reduced trial.
_WORTHWHILE = 3
# Seconds that a part of the trial gets at least, where earlier parts have used up the timeout.
_SHORTEST_TIMEOUT = 0.001
# Smallest plausible slope, as a share of the longer step's time per micro-batch.
_LEAST_SLOPE = 0.1


def reduced_counts(layout: Layout) -> tuple[int, ...]:
    """The two numbers of micro-batches of a reduced trial; empty where it saves too little."""
    fewest = max(2, layout.pipeline_parallel)
    counts = (fewest, 2 * fewest)
    if layout.gradient_accumulation_steps < _WORTHWHILE * sum(counts):
        return ()
    return counts


def extrapolated(counts: Sequence[int], seconds: Sequence[float], micro_batches: int) -> float:
    """Step time with `micro_batches`, by linear extrapolation from two measured step times.

    Where the slope is implausibly small because of noise, the longer step is scaled up in
    proportion instead: that overestimates the time rather than underestimating it.
    """
    (first, second), (short, long) = counts, seconds
    per_micro_batch = (long - short) / (second - first)
    if per_micro_batch < _LEAST_SLOPE * long / second:
        return long * micro_batches / second
    return short + per_micro_batch * (micro_batches - first)


def run_in_parts(
    spec: TrialSpec, trainable: Trainable, hosts: Sequence[RankHost]
) -> Generator[StepReport | Ended, None, None]:
    """Run a trial. A reduced one is run once per number of micro-batches; steps are numbered on."""
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
    """The trial with `count` micro-batches per step, and the rest of the timeout."""
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
