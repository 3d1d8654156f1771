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


def sensitivities(model: CostModel, prepared: Prepared) -> Iterator[tuple[str, Array, Array]]:
    """For each constant that is not known exactly: its name, and the changes [n] of the logarithms
    of step time and peak memory if it is off by one standard deviation."""
    unmoved = model.estimate(prepared)
    for name, spread in model.spreads.items():
        value = model.constants[name]
        if not spread or not value:
            continue
        moved = {**model.constants, name: value * float(np.exp(_DIFFERENCE * spread))}
        changed = model.estimate(prepared, moved)
        share = changed.peak_memory_gib / changed.capacity_gib
        old_share = unmoved.peak_memory_gib / unmoved.capacity_gib
        yield (
            name,
            np.log(changed.step_seconds / unmoved.step_seconds) / _DIFFERENCE,
            np.log(share / old_share) / _DIFFERENCE,
        )


def step_time_spread(model: CostModel, prepared: Prepared) -> Array:
    """Standard deviation [n] of the logarithm of the step time."""
    known = known_constants()
    variance = np.full(len(prepared.columns), model.constants["time_spread"] ** 2)
    for name, of_time, _ in sensitivities(model, prepared):
        if known[name].predicts == "time":
            variance += of_time**2
    spread: Array = np.sqrt(variance)
    return spread


def step_time_interval(
    model: CostModel, prepared: Prepared, share: float = STATED_SHARE
) -> tuple[Array, Array]:
    """Bounds [n] of the step time in seconds that hold it with probability `share`."""
    half_width = float(stats.norm.ppf((1 + share) / 2)) * step_time_spread(model, prepared)
    seconds = model.estimate(prepared).step_seconds
    return seconds * np.exp(-half_width), seconds * np.exp(half_width)
