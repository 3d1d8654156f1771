"""Computes the figures of a trial from its steps. Figures that were not measured are null."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence

from autotune.cluster import Cluster
from autotune.model import Precision
from autotune.space import SearchSpace
from autotune.trial.reduced import extrapolated
from autotune.trial.trial import Outcome, StepReport, TrialSpec

# Trends need at least this many measured steps in each third of the trial.
_FEWEST_STEPS_PER_THIRD = 3


# Least and largest value of the figures of a trial that ran. The least time is far below what a
# clock can tell apart; none may be so large or small that a formula overflows.
_RANGES = {
    "measured_steps": (0, 1e9),
    "step_seconds": (1e-9, 1e9),
    "step_seconds_iqr": (0, 1e9),
    "tokens_per_second_per_gpu": (0, 1e15),
    "hardware_flops_utilisation": (0, 1),
    "mfu": (0, 1),
    "peak_memory_gib": (0, 1e9),
    "final_loss": (-1e9, 1e9),
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """The figures of a trial, from its measured steps."""

    measured_steps: int
    """Steps after the warm-up."""
    measured_micro_batches: tuple[int, ...]
    """Numbers of micro-batches per measured step: the layout's own, or the two of a reduced
    trial."""
    step_seconds: float | None
    """Median over measured steps of the slowest rank's time; in a reduced trial, extrapolated from
    the medians of the two numbers of micro-batches."""
    step_seconds_iqr: float | None
    """Interquartile range over the steps; null for a single step and for reduced trials."""
    tokens_per_second_per_gpu: float | None
    """Tokens per step / step_seconds / devices."""
    mfu: float | None
    """Model FLOPs utilisation, 0..1; null where the device's bf16 peak is unknown, or the
    precision is not bf16."""
    hardware_flops_utilisation: float | None
    """Executed FLOP/s over the bf16 peak, recomputation included, 0..1; null as for `mfu`."""
    peak_memory_gib: float | None
    """Maximum over ranks, warm-up included."""
    step_seconds_drift: float | None = None
    """Median step time of the last third of the measured steps over that of the first third, minus
    1; null for short and reduced trials."""
    memory_growth_gib: float | None = None
    """Rise of the peak memory over the measured steps; null for short and reduced trials."""
    final_loss: float | None
    """Mean loss of the last step."""


def why_not_measured(measurement: Measurement, outcome: Outcome) -> str | None:
    """Why no clock and no counter can have given the figures of a trial that ran; None: they can.

    Figures of other trials may be anything: a loss of NaN, for example, is why the trial is
    invalid.
    """
    if outcome not in (Outcome.OK, Outcome.STOPPED):
        return None
    if outcome is Outcome.OK and measurement.step_seconds is None:
        return "step_seconds must be measured in a trial that worked, got null"
    for name, (least, largest) in _RANGES.items():
        value = getattr(measurement, name)
        if value is None:
            continue
        if not math.isfinite(value):
            return f"{name} must be finite, got {value:g}"
        if value < least:
            return f"{name} must be at least {least:g}, got {value:g}"
        if value > largest:
            return f"{name} must be at most {largest:g}, got {value:.3g}"
    return None


def measure(spec: TrialSpec, steps: Sequence[StepReport]) -> Measurement:
    """Compute the figures of a trial, complete or not."""
    times = _measured_times(spec, steps)
    all_times = [seconds for step_times in times.values() for seconds in step_times]
    seconds = _step_seconds(spec, times)
    devices = spec.layout.world_size
    rate = None if seconds is None else spec.model.tokens_per_step / seconds / devices
    checkpointing = spec.layout.activation_checkpointing
    peaks = [step.peak_memory_gib for step in steps if step.peak_memory_gib is not None]
    return Measurement(
        measured_steps=len(all_times),
        measured_micro_batches=tuple(times),
        step_seconds=seconds,
        step_seconds_iqr=None if spec.micro_batch_counts else _interquartile_range(all_times),
        tokens_per_second_per_gpu=rate,
        mfu=utilisation(spec.cluster, spec.precision, spec.model.model_flops_per_token, rate),
        hardware_flops_utilisation=utilisation(
            spec.cluster,
            spec.precision,
            spec.model.hardware_flops_per_token(checkpointing),
            rate,
        ),
        peak_memory_gib=max(peaks, default=None),
        final_loss=steps[-1].loss if steps else None,
        step_seconds_drift=_drift(spec, all_times),
        memory_growth_gib=_memory_growth(spec, steps),
    )


def _measured_times(spec: TrialSpec, steps: Sequence[StepReport]) -> dict[int, list[float]]:
    """Step times after the warm-up, by number of micro-batches."""
    times: dict[int, list[float]] = {}
    for step in steps:
        if step.step % spec.steps >= spec.warmup_steps:
            count = step.micro_batches or spec.layout.gradient_accumulation_steps
            times.setdefault(count, []).append(step.step_seconds)
    return times


def _step_seconds(spec: TrialSpec, times: Mapping[int, Sequence[float]]) -> float | None:
    if not spec.micro_batch_counts:
        return next((statistics.median(step_times) for step_times in times.values()), None)
    if len(times) < len(spec.micro_batch_counts):
        return None
    medians = [statistics.median(times[count]) for count in spec.micro_batch_counts]
    micro_batches = spec.layout.gradient_accumulation_steps
    return extrapolated(spec.micro_batch_counts, medians, micro_batches)


def _interquartile_range(times: Sequence[float]) -> float | None:
    if len(times) < 2:
        return None
    lower, _, upper = statistics.quantiles(times, n=4, method="inclusive")
    return upper - lower


def _drift(spec: TrialSpec, times: Sequence[float]) -> float | None:
    third = len(times) // 3
    if spec.micro_batch_counts or third < _FEWEST_STEPS_PER_THIRD:
        return None
    return statistics.median(times[-third:]) / statistics.median(times[:third]) - 1


def _memory_growth(spec: TrialSpec, steps: Sequence[StepReport]) -> float | None:
    measured = steps[spec.warmup_steps :]
    if spec.micro_batch_counts or len(measured) < 3 * _FEWEST_STEPS_PER_THIRD:
        return None
    first, last = measured[0].peak_memory_gib, measured[-1].peak_memory_gib
    return None if first is None or last is None else last - first


def utilisation(
    cluster: Cluster,
    precision: Precision,
    flops_per_token: float,
    tokens_per_second_per_gpu: float | None,
) -> float | None:
    """FLOP/s over the devices' bf16 peak, 0..1.

    With `Model.model_flops_per_token` it is the MFU. None where the peak is unknown, the precision
    is not bf16, or nothing was measured.
    """
    peak_tflops = cluster.device.peak_bf16_tflops
    if tokens_per_second_per_gpu is None or peak_tflops is None or precision != "bf16":
        return None
    return tokens_per_second_per_gpu * flops_per_token / (peak_tflops * 1e12)


def predicted_mfu(space: SearchSpace, step_seconds: float) -> float | None:
    """MFU at a predicted step time, 0..1; None where the peak of the device is unknown."""
    model, devices = space.model, space.cluster.devices
    rate = model.tokens_per_step / step_seconds / devices
    return utilisation(space.cluster, space.precision, model.model_flops_per_token, rate)
