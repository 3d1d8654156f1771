"""Prior of a search: the cost model's predictions for all layouts, and how errors correlate."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from autotune.cost.columns import Array
from autotune.cost.constants import known_constants
from autotune.cost.model import CostModel, Estimates, fit_probability
from autotune.cost.uncertainty import sensitivities
from autotune.layout import Layout


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Predicted step time, peak memory and probability to fit of one layout."""

    step_seconds: float
    """Predicted step time when the layout was proposed, corrected by the trials before."""
    peak_memory_gib: float
    """Predicted peak memory of the worst rank, likewise."""
    fit_probability: float
    """Predicted probability that the layout does not run out of memory, likewise."""


class Prior:
    """Predictions for the n layouts of a search, and the factors of their errors' covariance.

    A wrong constant changes the predictions of all layouts, each in proportion to its sensitivity.
    So a trial of one layout also corrects others that depend on the same constants.
    """

    def __init__(self, model: CostModel, layouts: Sequence[Layout]) -> None:
        """Estimate all layouts, and again with each constant changed."""
        self.layouts = list(layouts)
        self._index = {layout: index for index, layout in enumerate(self.layouts)}
        prepared = model.prepare(self.layouts)
        self.estimates: Estimates = model.estimate(prepared)
        self.log_seconds: Array = np.log(self.estimates.step_seconds)
        """[n] log of predicted step seconds."""
        self.log_memory: Array = np.log(
            self.estimates.peak_memory_gib / self.estimates.capacity_gib
        )
        """[n] log of predicted peak memory / capacity."""
        self.memory_spread: float = model.constants["memory_spread"]
        self.time_spread: float = model.constants["time_spread"]
        time, memory = [], []
        known = known_constants()
        for name, of_time, of_memory in sensitivities(model, prepared):
            if known[name].predicts == "time":
                time.append(of_time)
            else:
                memory.append(of_memory)
        # Errors that all layouts have in common, such as a slow machine or a wrong capacity.
        time.append(np.full(len(self.layouts), self.time_spread))
        memory.append(np.full(len(self.layouts), self.memory_spread))
        self.time_factors: Array = np.array(time).T
        """[n, k] change of log_seconds if a constant is off by one standard deviation."""
        self.memory_factors: Array = np.array(memory).T
        """[n, k] change of log_memory if a constant is off by one standard deviation."""

    def place(self, layout: Layout) -> int | None:
        """Index of a layout in the arrays; None for a layout of another space."""
        return self._index.get(layout)

    def prediction(self, layout: Layout) -> Prediction | None:
        """The prediction for a layout; None for a layout of another space."""
        index = self.place(layout)
        if index is None:
            return None
        return self.prediction_of(self.log_seconds[index], self.log_memory[index])

    def prediction_of(self, log_seconds: float, log_memory: float) -> Prediction:
        """The prediction for a layout, from (corrected) logarithms of its time and memory."""
        memory_share = np.exp(log_memory)
        return Prediction(
            step_seconds=float(np.exp(log_seconds)),
            peak_memory_gib=float(memory_share) * self.estimates.capacity_gib,
            fit_probability=float(fit_probability(memory_share, self.memory_spread)),
        )
