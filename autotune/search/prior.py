"""What the cost model says of every layout before a trial: the start of a search."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from autotune.cost.columns import Array
from autotune.cost.constants import known_constants
from autotune.cost.model import CostModel, Estimates, fit_probability
from autotune.layout import Layout

# Constants are known this much better than before any calibration (their `spread`).
_CALIBRATED = 0.2
# Step of the finite differences, in units of a constant's spread.
_DIFFERENCE = 0.05


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What is expected of one layout."""

    step_seconds: float
    """Predicted step time when the layout was proposed, corrected by the trials before."""
    peak_memory_gib: float
    """Predicted peak memory of the worst rank, likewise."""
    fit_probability: float
    """Predicted probability that the layout does not run out of memory, likewise."""


class Prior:
    """Predictions for the layouts of a search, and how their errors hang together.

    If a constant of the cost model is wrong, it is wrong for every layout in proportion to that
    layout's sensitivity: what one trial teaches, it teaches of all layouts that share the cause.
    """

    def __init__(self, model: CostModel, layouts: Sequence[Layout]) -> None:
        """Estimate all layouts once per constant."""
        self.layouts = list(layouts)
        self._place = {layout: place for place, layout in enumerate(self.layouts)}
        prepared = model.prepare(self.layouts)
        self.estimates: Estimates = model.estimate(prepared)
        self.log_seconds: Array = np.log(self.estimates.step_seconds)
        """[n]"""
        self.log_memory: Array = np.log(
            self.estimates.peak_memory_gib / self.estimates.capacity_gib
        )
        """[n], of the share of the capacity."""
        self.memory_spread: float = model.constants["memory_spread"]
        self.time_spread: float = model.constants["time_spread"]
        time, memory = [], []
        for name, constant in known_constants().items():
            value = model.constants[name]
            if not constant.spread or not value:
                continue
            moved = {**model.constants, name: value * float(np.exp(_DIFFERENCE * constant.spread))}
            changed = model.estimate(prepared, moved)
            scale = _CALIBRATED / _DIFFERENCE
            if constant.predicts == "time":
                time.append((np.log(changed.step_seconds) - self.log_seconds) * scale)
            else:
                share = changed.peak_memory_gib / changed.capacity_gib
                memory.append((np.log(share) - self.log_memory) * scale)
        # What is wrong for all layouts alike: a slow machine, a capacity that is not what it says.
        time.append(np.full(len(self.layouts), self.time_spread))
        memory.append(np.full(len(self.layouts), self.memory_spread))
        self.time_factors: Array = np.array(time).T
        """[n, k]: change of log_seconds if a constant is off by its standard deviation."""
        self.memory_factors: Array = np.array(memory).T
        """[n, k]: the same of log_memory."""

    def place(self, layout: Layout) -> int | None:
        """Row of a layout in the arrays; None where it is not among them."""
        return self._place.get(layout)

    def prediction(self, layout: Layout) -> Prediction | None:
        """What is expected of a layout."""
        place = self.place(layout)
        if place is None:
            return None
        return self.prediction_at(place, self.log_seconds, self.log_memory)

    def prediction_at(self, place: int, log_seconds: Array, log_memory: Array) -> Prediction:
        """The same, of corrected logarithms."""
        probability = fit_probability(np.exp(log_memory[[place]]), self.memory_spread)
        return Prediction(
            step_seconds=float(np.exp(log_seconds[place])),
            peak_memory_gib=float(np.exp(log_memory[place])) * self.estimates.capacity_gib,
            fit_probability=float(probability[0]),
        )
