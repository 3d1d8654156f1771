"""Whether a trial's numbers can be true. What cannot be true is never crowned."""

import dataclasses
import math
from collections.abc import Sequence

from autotune.cost.minimum import minimum_step_seconds
from autotune.cost.trainers import trainer_named
from autotune.store.record import TrialRecord
from autotune.trial.measurement import Measurement
from autotune.trial.trial import Outcome, StepReport, TrialSpec

# Every layout of a seed trains the same model on the same tokens. In fp32 the losses of 70 layouts
# were within 1e-5 of each other over 5 steps, in bf16 within 0.03 of about 6 (tests/trainables);
# longer trials and other kernels get room.
_SAME_LOSS = {"fp32": 1e-3, "bf16": 2e-2}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FinalLoss:
    """The loss of a trial's last step, and what other trial's it can be compared with."""

    trial_id: str
    sequences: int
    """Of a step."""
    steps: int
    loss: float


def why_impossible(
    spec: TrialSpec, measurement: Measurement, steps: Sequence[StepReport], trainer: str
) -> str | None:
    """Why the figures of a trial that ran cannot be true, taken by themselves; None: they can."""
    utilisation = measurement.hardware_flops_utilisation
    if utilisation is not None and utilisation > 1:
        return f"hardware_flops_utilisation must be at most 1, got {utilisation:.3g}"
    peak = spec.cluster.device.peak_bf16_tflops
    if measurement.step_seconds is not None and peak is not None and spec.precision == "bf16":
        least = minimum_step_seconds(
            spec.layout,
            spec.model,
            peak_flops_per_second=peak * 1e12,
            partition=trainer_named(trainer).partition,
        )
        if measurement.step_seconds < least:
            return (
                f"step_seconds must be at least {least:.3g} (the arithmetic at the device's peak), "
                f"got {measurement.step_seconds:.3g}"
            )
    return next(filter(None, (_ranks_disagree(spec, step) for step in steps)), None)


def _ranks_disagree(spec: TrialSpec, step: StepReport) -> str | None:
    """Ranks report the mean over the whole batch: the same number."""
    losses = [(rank.rank, rank.loss) for rank in step.ranks if rank.loss is not None]
    for rank, loss in losses[1:]:
        first_rank, first_loss = losses[0]
        if not _same(spec.precision, loss, first_loss):
            return (
                f"step {step.step}: the loss must be the same on all ranks, got {first_loss:g} on "
                f"rank {first_rank} and {loss:g} on rank {rank}"
            )
    return None


def final_loss(record: TrialRecord) -> FinalLoss | None:
    """The record's, where it can be compared; trials that were cut short have no final loss."""
    measurement, layout = record.measurement, record.layout
    if (
        record.outcome not in (Outcome.OK, Outcome.INVALID)
        or not measurement.measured_micro_batches
    ):
        return None
    if measurement.final_loss is None or not math.isfinite(measurement.final_loss):
        return None
    counts = measurement.measured_micro_batches
    return FinalLoss(
        trial_id=record.trial_id,
        sequences=counts[-1] * layout.micro_batch_size * layout.data_parallel,
        steps=measurement.measured_steps,
        loss=measurement.final_loss,
    )


def contradicted(precision: str, losses: Sequence[FinalLoss], *, votes: int = 1) -> dict[str, str]:
    """Which trials' losses cannot be true, with the reason, by trial_id.

    Trials of as many steps of the same batch must come to the same loss. Where they do not, what
    most of them agree on stands, and what was first among equals; fewer than `votes` of them
    condemn none.
    """
    comparable: dict[tuple[int, int], list[FinalLoss]] = {}
    for one in losses:
        comparable.setdefault((one.sequences, one.steps), []).append(one)
    wrong = {}
    for some in comparable.values():
        agreeing = {
            one.trial_id: sum(_same(precision, one.loss, other.loss) for other in some)
            for one in some
        }
        reference = max(some, key=lambda one: agreeing[one.trial_id])
        for one in some:
            enough = agreeing[reference.trial_id] >= votes
            if enough and not _same(precision, one.loss, reference.loss):
                wrong[one.trial_id] = (
                    f"loss of the last step must be that of trial {reference.trial_id} "
                    f"({reference.loss:.5g}: same seed, same batch), got {one.loss:.5g}"
                )
    return wrong


def _same(precision: str, one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_SAME_LOSS[precision])
