"""The figures of a trial, from its steps. What was not measured is null."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence

from autotune.cluster import Cluster
from autotune.model import Precision
from autotune.space import SearchSpace
from autotune.trial.reduced import extrapolated
from autotune.trial.trial import StepReport, TrialSpec

# Fewer steps than three times as many say nothing of a trend.
_FEWEST_STEPS_PER_THIRD = 3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What the measured steps of a trial say."""

    measured_steps: int
    """Steps after the warm-up."""
    measured_micro_batches: tuple[int, ...]
    """Micro-batches of the steps that were measured: the layout's own count, or the two of a
    reduced trial."""
    step_seconds: float | None
    """Median over measured steps of the slowest rank's time; of a reduced trial, extrapolated from
    the medians of both counts."""
    step_seconds_iqr: float | None
    """Interquartile range of the same; null for a single step, and where it is extrapolated."""
    tokens_per_second_per_gpu: float | None
    """Tokens of a step / step_seconds / devices."""
    mfu: float | None
    """Model FLOPs utilisation, 0..1; null where the device's bf16 peak is unknown
    or something else is trained."""
    hardware_flops_utilisation: float | None
    """FLOPs that are executed over the peak, 0..1; null where the peak is unknown."""
    peak_memory_gib: float | None
    """Maximum over ranks, warm-up included."""
    step_seconds_drift: float | None = None
    """How much longer the last third of the measured steps took than the first third, as a share of
    it (medians); null for a short trial."""
    memory_growth_gib: float | None = None
    """How much the peak memory rose over the measured steps; null for a short trial."""
    final_loss: float | None
    """Mean loss of the last step."""


def measure(spec: TrialSpec, steps: Sequence[StepReport]) -> Measurement:
    """Sum a trial's steps up, whether or not it came to its end."""
    times = _measured_times(spec, steps)
    all_times = [seconds for some in times.values() for seconds in some]
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
    """Step times after the warm-up, by count of micro-batches."""
    times: dict[int, list[float]] = {}
    for step in steps:
        if step.step % spec.steps >= spec.warmup_steps:
            count = step.micro_batches or spec.layout.gradient_accumulation_steps
            times.setdefault(count, []).append(step.step_seconds)
    return times


def _step_seconds(spec: TrialSpec, times: Mapping[int, Sequence[float]]) -> float | None:
    if not spec.micro_batch_counts:
        return next((statistics.median(some) for some in times.values()), None)
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
    """Share of the devices' bf16 peak that so many FLOPs per token take, 0..1.

    With `Model.model_flops_per_token` it is the MFU. None where the peak is unknown, the precision
    is another, or nothing was measured.
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
