"""The predicted schedule of a layout: the cost model's passes in the order of 1F1B."""

from autotune.cost.model import CostModel
from autotune.cost.passes import PassTimes, pass_times
from autotune.layout import Layout
from autotune.pipeline.order import Pass, passes_of_stage
from autotune.pipeline.schedule import Interval, Schedule
from autotune.trial.trace import Kind


def predicted_schedule(model: CostModel, layout: Layout) -> Schedule:
    """The schedule of one step of a legal layout.

    Raises InputError for a layout that the trainer does not support.
    """
    return simulated(pass_times(model, layout), layout.gradient_accumulation_steps)


def simulated(times: PassTimes, micro_batches: int) -> Schedule:
    """Run the passes: each begins when its stage is free and has received its input.

    A message takes time on the stage that receives it, as the cost model counts it; sending takes
    none. After its last pass each stage reduces its gradients, for as long as the largest stage
    does. The update needs the norm of all gradients, so it begins on all stages together.
    """
    stages = len(times.forward)
    to_do = [list(passes_of_stage(stage, stages, micro_batches))[::-1] for stage in range(stages)]
    rows = [_Row() for _ in range(stages)]
    ended: dict[tuple[int, Pass], float] = {}
    while any(to_do):
        for stage, row in enumerate(rows):
            while to_do[stage]:
                kind, micro_batch = this = to_do[stage][-1]
                source = _source(stage, stages, this)
                if source is not None:
                    if source not in ended:
                        break
                    row.add("receive", micro_batch, times.transfer, not_before=ended[source])
                of_stages = times.forward if kind == "forward" else times.backward
                row.add(kind, micro_batch, float(of_stages[stage]))
                ended[stage, this] = row.free_at
                to_do[stage].pop()
    for row in rows:
        row.add("reduction", None, times.reduction)
    all_reduced = max(row.free_at for row in rows)
    for row in rows:
        row.add("update", None, times.update, not_before=all_reduced)
    return Schedule(source="predicted", stages=tuple(tuple(row.intervals) for row in rows))


def _source(stage: int, stages: int, this: Pass) -> tuple[int, Pass] | None:
    """The stage and its pass that a pass receives its input from; None: from no other stage."""
    kind, _ = this
    neighbour = stage - 1 if kind == "forward" else stage + 1
    return (neighbour, this) if 0 <= neighbour < stages else None


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
