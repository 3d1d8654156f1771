"""The predicted schedule of a layout: the cost model's passes in the order of 1F1B."""

from autotune.cost.model import CostModel
from autotune.cost.passes import PassTimes, pass_times
from autotune.layout import Layout
from autotune.pipeline.order import Pass, pass_in_slot, slots_of_step
from autotune.pipeline.schedule import Interval, Schedule
from autotune.trial.trace import Kind


def predicted_schedule(model: CostModel, layout: Layout) -> Schedule:
    """The schedule of one step of a legal layout.

    Raises InputError for a layout that the trainer does not support.
    """
    return simulated(pass_times(model, layout), layout.gradient_accumulation_steps)


def simulated(times: PassTimes, micro_batches: int) -> Schedule:
    """Run the passes in slots (`pass_in_slot`), each as soon as its stage is free.

    Before a forward slot a stage exchanges messages with the stage before: that stage receives the
    gradients of the backward pass in the last slot, and sends the activations of the forward pass
    to come. A message takes the time of both stages, from when both are free. After its last pass
    each stage reduces its gradients, for as long as the largest stage does. The update needs the
    norm of all gradients, so it begins on all stages together.
    """
    stages = len(times.forward)
    rows = [_Row() for _ in range(stages)]
    passes: list[Pass | None] = [None] * stages
    for slot in range(slots_of_step(stages, micro_batches)):
        before, passes = (
            passes,
            [pass_in_slot(slot, stage, stages, micro_batches) for stage in range(stages)],
        )
        for stage in range(2 - slot % 2, stages, 2):
            _exchange(rows[stage - 1], rows[stage], before[stage], passes[stage], times)
        for stage, now in enumerate(passes):
            if now is not None:
                of_stages = times.forward if now[0] == "forward" else times.backward
                rows[stage].add(*now, float(of_stages[stage]))
    for row in rows:
        row.add("reduction", None, times.reduction)
    all_reduced = max(row.free_at for row in rows)
    for row in rows:
        row.add("update", None, times.update, not_before=all_reduced)
    return Schedule(source="predicted", stages=tuple(tuple(row.intervals) for row in rows))


def _exchange(
    upper: "_Row", lower: "_Row", backward: Pass | None, forward: Pass | None, times: PassTimes
) -> None:
    """Gradients of the pass `backward` from the stage `lower` to the one before it, and activations
    for the pass `forward` the other way. Both messages take half of an exchange each."""
    messages: list[tuple[_Row, _Row, Pass]] = []
    if backward is not None:
        messages.append((lower, upper, backward))
    if forward is not None:
        messages.append((upper, lower, forward))
    seconds = times.exchange / 2 if len(messages) == 2 else times.message
    for sender, receiver, (_, micro_batch) in messages:
        start = max(sender.free_at, receiver.free_at)
        sender.add("send", micro_batch, seconds, not_before=start)
        receiver.add("receive", micro_batch, seconds, not_before=start)


class _Row:
    """What a stage has done so far."""

    def __init__(self) -> None:
        self.intervals: list[Interval] = []
        self.free_at = 0.0

    def add(
        self, kind: Kind, micro_batch: int | None, seconds: float, *, not_before: float = 0.0
    ) -> None:
        """Do something next, for so many seconds; what takes no time is left out."""
        start = max(self.free_at, not_before)
        self.free_at = start + seconds
        if seconds > 0:
            self.intervals.append(
                Interval(
                    kind=kind,
                    micro_batch=micro_batch,
                    start_seconds=start,
                    end_seconds=self.free_at,
                )
            )
