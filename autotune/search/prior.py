"""Prior of a search: the cost model's predictions for all layouts, and how errors correlate."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autotune.cost.columns import Array
from autotune.cost.constants import known_constants
from autotune.cost.model import CostModel, Estimates, fit_probability
from autotune.cost.trainers import alternatives
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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What one trainer is expected to do with n layouts, and the factors of the errors' covariance.

    A wrong constant changes the predictions of all layouts, each in proportion to its sensitivity.
    So a trial of one layout also corrects others that depend on the same constants.
    """

    log_seconds: Array
    """[n] log of predicted step seconds."""
    log_memory: Array
    """[n] log of predicted peak memory / capacity."""
    memory_shares: Array
    """[n, c] predicted peak memory / capacity by cause."""
    time_factors: Array
    """[n, k] change of log_seconds if a constant is off by one standard deviation."""
    memory_factors: Array
    """[n, k] change of log_memory if a constant is off by one standard deviation."""


class Prior:
    """Predictions for the n layouts of a search by each trainer that the training code may be."""

    def __init__(self, model: CostModel, layouts: Sequence[Layout]) -> None:
        """Estimate all layouts by `model`, and by the same with other trainers (`alternatives`)."""
        self.layouts = list(layouts)
        self._index = {layout: index for index, layout in enumerate(self.layouts)}
        self.estimates: Estimates = model.estimate(self.layouts)
        self.memory_spread: float = model.constants["memory_spread"]
        self.time_spread: float = model.constants["time_spread"]
        own = _expected(model, self.layouts)
        self.trainers: list[Expected] = [own]
        """By trainer: first `model`'s own. Layouts that another one lacks are as of the first."""
        for trainer in alternatives(model.setting.trainer):
            supported = [trainer.why_unsupported(layout) is None for layout in self.layouts]
            if any(supported):
                kept = [layout for layout, has in zip(self.layouts, supported, strict=True) if has]
                other = _expected(model.of_trainer(trainer), kept)
                self.trainers.append(_completed(other, np.array(supported), own))
        self.log_seconds: Array = own.log_seconds
        """[n] log of step seconds that `model` predicts."""
        self.log_memory: Array = own.log_memory
        """[n] log of peak memory / capacity that `model` predicts."""

    def place(self, layout: Layout) -> int | None:
        """Index of a layout in the arrays; None for a layout of another space."""
        return self._index.get(layout)

    def prediction(self, layout: Layout) -> Prediction | None:
        """The prediction for a layout; None for a layout of another space."""
        index = self.place(layout)
        if index is None:
            return None
        memory_share = np.exp(self.log_memory[index])
        return Prediction(
            step_seconds=float(np.exp(self.log_seconds[index])),
            peak_memory_gib=float(memory_share) * self.estimates.capacity_gib,
            fit_probability=float(fit_probability(memory_share, self.memory_spread)),
        )


def _expected(model: CostModel, layouts: Sequence[Layout]) -> Expected:
    """Estimate the layouts, and again with each constant changed."""
    prepared = model.prepare(layouts)
    estimates = model.estimate(prepared)
    known = known_constants()
    time: list[Array] = []
    memory: list[Array] = []
    for name, change in sensitivities(model, prepared):
        (time if known[name].predicts == "time" else memory).append(change)
    # Errors that all layouts have in common, such as a slow machine or a wrong capacity.
    time.append(np.full(len(layouts), model.constants["time_spread"]))
    memory.append(np.full(len(layouts), model.constants["memory_spread"]))
    shares = estimates.memory
    return Expected(
        log_seconds=np.log(estimates.step_seconds),
        log_memory=np.log(estimates.peak_memory_gib / estimates.capacity_gib),
        memory_shares=np.column_stack(
            [getattr(shares, cause.name) for cause in dataclasses.fields(shares)]
        )
        / estimates.capacity_gib,
        time_factors=np.array(time).T,
        memory_factors=np.array(memory).T,
    )


def _completed(part: Expected, has: NDArray[np.bool_], whole: Expected) -> Expected:
    """`part` has the layouts where `has` [n] is true; the others are taken from `whole`."""

    def merged(name: str) -> Array:
        of_part: Array = getattr(part, name)
        of_whole: Array = getattr(whole, name)
        if of_part.ndim == 1:
            result = of_whole.copy()
            result[has] = of_part
            return result
        width = max(of_part.shape[1], of_whole.shape[1])
        result = np.zeros((len(has), width))
        result[:, : of_whole.shape[1]] = of_whole
        result[has] = 0.0
        result[has, : of_part.shape[1]] = of_part
        return result

    return Expected(**{field.name: merged(field.name) for field in dataclasses.fields(Expected)})
