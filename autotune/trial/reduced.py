"""Reduced trials: extrapolate a layout's step time from steps with fewer micro-batches.

Step time is linear in the number of micro-batches once they fill the pipeline. So steps with two
small numbers of micro-batches determine that of a full step. Ranks, optimiser states and
micro-batches in flight are the same, so the peak memory is too. One engine runs both numbers
(`TrialSpec.micro_batch_counts`): on GPUs the start-up is most of such a trial.
"""

from collections.abc import Sequence

from autotune.layout import Layout

# Least ratio of a full step's micro-batches to those of both reduced steps, for a reduced trial.
_WORTHWHILE = 3
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
