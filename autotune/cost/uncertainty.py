"""How wrong a predicted step time can be: constants that are not known well, and what is left out.

The logarithm of a step time moves with the logarithm of each constant. How well a constant is known
depends on where its value comes from: a fit to runs, a measurement or data sheet, or an assumption.
What the formulas leave out is the constant `time_spread`, which is small only where a fit has shown
it to be.
"""

from collections.abc import Iterator

import numpy as np
from scipy import stats

from autotune.cost.columns import Array
from autotune.cost.constants import known_constants
from autotune.cost.model import CostModel, Prepared

# Step of the finite differences, in standard deviations.
_DIFFERENCE = 0.05

STATED_SHARE = 0.8
"""Share of step times that intervals are meant to hold."""


def sensitivities(model: CostModel, prepared: Prepared) -> Iterator[tuple[str, Array]]:
    """For each constant that is not known exactly: its name, and the change [n] of the logarithm of
    what it predicts, step time or peak memory, if it is off by one standard deviation."""
    known = known_constants()
    unmoved = model.estimate(prepared)
    share = unmoved.peak_memory_gib / unmoved.capacity_gib
    for name, spread in model.spreads.items():
        value = model.constants[name]
        if not spread or not value:
            continue
        moved = {**model.constants, name: value * float(np.exp(_DIFFERENCE * spread))}
        if known[name].predicts == "time":
            change = model.time(prepared, moved, share).total / unmoved.step_seconds
        else:
            changed = model.memory(prepared, moved).total / model.capacity_gib(moved)
            change = changed / share
        yield name, np.log(change) / _DIFFERENCE


def step_time_spread(model: CostModel, prepared: Prepared) -> Array:
    """Standard deviation [n] of the logarithm of the step time."""
    known = known_constants()
    variance = np.full(len(prepared.columns), model.constants["time_spread"] ** 2)
    for name, change in sensitivities(model, prepared):
        if known[name].predicts == "time":
            variance += change**2
    spread: Array = np.sqrt(variance)
    return spread


def step_time_interval(
    model: CostModel, prepared: Prepared, share: float = STATED_SHARE
) -> tuple[Array, Array]:
    """Bounds [n] of the step time in seconds that hold it with probability `share`."""
    half_width = float(stats.norm.ppf((1 + share) / 2)) * step_time_spread(model, prepared)
    seconds = model.estimate(prepared).step_seconds
    return seconds * np.exp(-half_width), seconds * np.exp(half_width)
