"""The schedule of a trial's step: as its ranks measured it where they did, else predicted."""

from autotune.cost.model import CostModel
from autotune.layout import Layout
from autotune.pipeline.measured import measured_schedule
from autotune.pipeline.predicted import predicted_schedule
from autotune.pipeline.schedule import Schedule
from autotune.store.results import Run


def schedule_of(run: Run, trial_id: str, layout: Layout) -> Schedule:
    """The schedule of the last step that was traced of a trial of the layout; where none was, that
    of a predicted step. Raises InputError where the trace cannot be read, or the cost model does
    not know the device."""
    traces = run.trace_of(trial_id)
    if traces:
        return measured_schedule(traces, layout)
    space, trainer = run.request.space, run.request.description.trainer
    model = CostModel(space.model, space.precision, space.cluster, trainer=trainer)
    return predicted_schedule(model, layout)
