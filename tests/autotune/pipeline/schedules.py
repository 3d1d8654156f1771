"""Schedules for tests."""

import numpy as np

from autotune.cost.passes import PassTimes
from autotune.pipeline.predicted import simulated
from autotune.pipeline.schedule import Schedule


def equal_stages(
    stages: int,
    micro_batches: int,
    *,
    transfer: float = 0.0,
    reduction: float = 0.0,
    update: float = 0.0,
) -> Schedule:
    """A predicted schedule of stages whose passes take 1 s and 2 s, and each message `transfer`."""
    times = PassTimes(
        forward=np.full(stages, 1.0),
        backward=np.full(stages, 2.0),
        message=transfer,
        exchange=2 * transfer,
        reduction=reduction,
        update=update,
    )
    return simulated(times, micro_batches)
