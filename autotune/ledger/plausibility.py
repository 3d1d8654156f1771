"""Plausibility checks of a trial's figures. Trials that fail them are not ranked."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autotune.cost.columns import Array
from autotune.cost.minimum import minimum_step_seconds
from autotune.cost.trainers import StatedTrainer, trainer_of
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
    spec: TrialSpec, measurement: Measurement, steps: Sequence[StepReport], trainer: StatedTrainer
) -> str | None:
    """Why the figures of one trial are impossible (not compared to others); None: they are not."""
    peak = spec.cluster.device.peak_bf16_tflops
    if measurement.step_seconds is not None and peak is not None and spec.precision == "bf16":
        bound = minimum_step_seconds(
            spec.layout,
            spec.model,
            peak_flops_per_second=peak * 1e12,
            partition=trainer_of(trainer).partition,
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


class FinalLosses:
    """The final losses of a search's trials, and which of them are wrong.

    Trials with the same number of steps and sequences per step must have the same final loss. The
    reference is the loss that most of them agree on; on a tie, that of the earliest trial.
    """

    def __init__(self, precision: str) -> None:
        """`precision` gives the tolerance."""
        self._groups: dict[tuple[int, int], _EqualLosses] = {}
        self._tolerance = _LOSS_TOLERANCE[precision]
        self.wrong: set[str] = set()
        """Ids of the trials whose loss is wrong."""

    def add(self, trial: FinalLoss) -> bool:
        """Add a trial; return whether any earlier one is judged differently from now on."""
        before = self._group(trial).contradicted()
        self._groups[trial.sequences, trial.steps] = group = self._group(trial).joined_by(trial)
        after = group.contradicted()
        self.wrong = (self.wrong - before.keys()) | after.keys()
        return before.keys() != after.keys() - {trial.trial_id}

    def why_wrong(self, trial: FinalLoss, *, votes: int) -> str | None:
        """Why the loss of a trial that is not added yet is wrong, by at least `votes` trials that
        agree on another; None: it is not."""
        return self._group(trial).joined_by(trial).contradicted(votes).get(trial.trial_id)

    def _group(self, trial: FinalLoss) -> "_EqualLosses":
        return self._groups.get(
            (trial.sequences, trial.steps), _EqualLosses(tolerance=self._tolerance)
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _EqualLosses:
    """Final losses that should be the same; n trials, earliest first."""

    tolerance: float
    trial_ids: tuple[str, ...] = ()
    losses: Array = dataclasses.field(default_factory=lambda: np.empty(0))
    """[n]"""
    agreeing: NDArray[np.int64] = dataclasses.field(default_factory=lambda: np.empty(0, np.int64))
    """[n] number of trials that agree with each, itself included."""

    def joined_by(self, trial: FinalLoss) -> "_EqualLosses":
        """The group with another trial."""
        same = self._same(trial.loss)
        return dataclasses.replace(
            self,
            trial_ids=(*self.trial_ids, trial.trial_id),
            losses=np.append(self.losses, trial.loss),
            agreeing=np.append(self.agreeing + same, 1 + np.count_nonzero(same)),
        )

    def contradicted(self, votes: int = 1) -> dict[str, str]:
        """Trials whose loss is not that of at least `votes` others: reason by trial_id."""
        if not self.trial_ids:
            return {}
        reference = int(self.agreeing.argmax())  # the first of several
        if self.agreeing[reference] < votes:
            return {}
        loss = self.losses[reference]
        return {
            self.trial_ids[index]: (
                f"loss of the last step must be that of trial {self.trial_ids[reference]} "
                f"({loss:.5g}: same seed, same batch), got {self.losses[index]:.5g}"
            )
            for index in np.flatnonzero(~self._same(loss))
        }

    def _same(self, loss: float) -> NDArray[np.bool_]:
        """[n] whether each is `loss` within the tolerance, as `math.isclose` decides."""
        largest = np.maximum(np.abs(self.losses), abs(loss))
        with np.errstate(over="ignore"):  # an infinite difference is one all the same
            result: NDArray[np.bool_] = np.abs(self.losses - loss) <= self.tolerance * largest
        return result


def _same(precision: str, loss: float, reference: float) -> bool:
    return math.isclose(loss, reference, rel_tol=_LOSS_TOLERANCE[precision])
