"""Plausibility checks of a trial's figures. Trials that fail them are not ranked."""

import dataclasses
import math
from collections.abc import Sequence

from autotune.cost.minimum import minimum_step_seconds
from autotune.cost.trainers import trainer_named
from autotune.store.record import TrialRecord
from autotune.trial.measurement import Measurement
from autotune.trial.trial import Outcome, StepReport, TrialSpec

# Relative tolerance of equal losses. With one seed all layouts train the same model on the same
# tokens. In fp32 the losses of 70 layouts were within 1e-5 of each other over 5 steps, in bf16
# within 0.03 of about 6 (tests/trainables); the tolerance leaves room for longer trials and other
# kernels.
_LOSS_TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FinalLoss:
    """Loss of a trial's last step; comparable between trials with equal `sequences` and `steps`."""

    trial_id: str
    sequences: int
    """Sequences per step."""
    steps: int
    loss: float


def why_impossible(
    spec: TrialSpec, measurement: Measurement, steps: Sequence[StepReport], trainer: str
) -> str | None:
    """Why the figures of one trial are impossible (not compared to others); None: they are not."""
    peak = spec.cluster.device.peak_bf16_tflops
    if measurement.step_seconds is not None and peak is not None and spec.precision == "bf16":
        bound = minimum_step_seconds(
            spec.layout,
            spec.model,
            peak_flops_per_second=peak * 1e12,
            partition=trainer_named(trainer).partition,
        )
        if measurement.step_seconds < bound:
            return (
                f"step_seconds must be at least {bound:.3g} (the arithmetic at the device's peak), "
                f"got {measurement.step_seconds:.3g}"
            )
    return next(filter(None, (_ranks_disagree(spec, step) for step in steps)), None)


def _ranks_disagree(spec: TrialSpec, step: StepReport) -> str | None:
    """Why a step's losses are impossible: all ranks report the mean over the global batch."""
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
    """The final loss of a record; None where it is not comparable, as after an early end."""
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
    """Trials whose final loss is wrong: reason by trial_id.

    Trials with the same number of steps and sequences per step must have the same final loss. The
    reference is the loss that most of them agree on; on a tie, that of the earliest trial. Trials
    are marked wrong only if at least `votes` trials agree on the reference.
    """
    groups: dict[tuple[int, int], list[FinalLoss]] = {}
    for trial in losses:
        groups.setdefault((trial.sequences, trial.steps), []).append(trial)
    wrong = {}
    for trials in groups.values():
        agreeing = {
            trial.trial_id: sum(_same(precision, trial.loss, other.loss) for other in trials)
            for trial in trials
        }
        reference = max(trials, key=lambda trial: agreeing[trial.trial_id])
        if agreeing[reference.trial_id] < votes:
            continue
        for trial in trials:
            if not _same(precision, trial.loss, reference.loss):
                wrong[trial.trial_id] = (
                    f"loss of the last step must be that of trial {reference.trial_id} "
                    f"({reference.loss:.5g}: same seed, same batch), got {trial.loss:.5g}"
                )
    return wrong


def _same(precision: str, loss: float, reference: float) -> bool:
    return math.isclose(loss, reference, rel_tol=_LOSS_TOLERANCE[precision])
