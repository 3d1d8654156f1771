"""Predict and rank the layouts of a space without running any: `autotune.plan`."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.cost.columns import Array
from autotune.cost.feasibility import HOPELESS, why_nothing_fits
from autotune.cost.model import CostModel, Estimates
from autotune.cost.uncertainty import step_time_interval
from autotune.errors import InputError
from autotune.layout import Layout
from autotune.named_spaces import load_space
from autotune.space import Excluded, SearchSpace
from autotune.trial.measurement import predicted_mfu


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Predictions for a space. Layouts that will hardly fit into memory are counted, not ranked."""

    space: SearchSpace
    model: CostModel
    """The cost model that made the predictions."""
    layouts: list[Layout]
    """All legal layouts of the space, in the order of enumeration."""
    estimates: Estimates
    """Predictions for `layouts`, in the same order."""
    order: NDArray[np.intp]
    """Indices into `layouts`, best first: by predicted step time / probability to fit."""
    dropped: Mapping[str, int]
    """Combinations of the dimensions' values that are not ranked, counted by reason."""

    @property
    def ranked(self) -> list[Layout]:
        """The ranked layouts, best first."""
        return [self.layouts[index] for index in self.order]

    @property
    def nothing_fits(self) -> str | None:
        """What the space needs, where no layout is predicted to fit; else None."""
        if len(self.order):
            return None
        return why_nothing_fits(self.space, self.model.trainer_name)

    def rows(self, top: int | None = None) -> list[dict[str, Any]]:
        """The `top` best layouts (None: all) as dictionaries of predictions, with the keys layout,
        step_seconds, mfu (None where the peak is unknown), peak_memory_gib, fit_probability, and
        low_step_seconds and high_step_seconds, which hold the step time with a probability of 80 %.
        """
        estimates, order = self.estimates, self.order[:top]
        low, high = self.intervals(order)
        return [
            {
                "layout": self.layouts[index].columns(),
                "step_seconds": float(estimates.step_seconds[index]),
                "mfu": predicted_mfu(self.space, float(estimates.step_seconds[index])),
                "peak_memory_gib": float(estimates.peak_memory_gib[index]),
                "fit_probability": float(estimates.fit_probability[index]),
                "low_step_seconds": float(low[place]),
                "high_step_seconds": float(high[place]),
            }
            for place, index in enumerate(order)
        ]

    def intervals(self, indices: Sequence[int] | NDArray[np.intp]) -> tuple[Array, Array]:
        """Bounds in seconds that hold the step times of those layouts with 80 % probability."""
        prepared = self.model.prepare([self.layouts[index] for index in indices])
        return step_time_interval(self.model, prepared)


def plan(space: SearchSpace | str | Path, model: CostModel | None = None) -> Plan:
    """Predict and rank every layout of the space; nothing is run.

    `model` is the cost model; None: that of the DeepSpeed worker on the space's devices. Raises
    InputError where the space has no layout, or the cost model does not know the device.
    """
    if not isinstance(space, SearchSpace):
        space = load_space(str(space))
    model = model or CostModel(space.model, space.precision, space.cluster)
    dropped: collections.Counter[str] = collections.Counter()
    unsupported: collections.Counter[str] = collections.Counter()
    layouts = []
    for candidate in space.walk():
        if isinstance(candidate, Excluded):
            dropped[candidate.rule] += candidate.combinations
        elif reason := model.setting.trainer.why_unsupported(candidate):
            unsupported[reason] += 1
        else:
            layouts.append(candidate)
    if not layouts:
        space.check_not_empty()
        raise InputError(
            f"{space.name} has no layout that trainer {model.trainer_name} supports: "
            f"{unsupported.most_common(1)[0][0]}"
        )
    dropped.update(unsupported)
    prepared = model.prepare(layouts)
    estimates = model.estimate(prepared)
    score = np.log(estimates.step_seconds) - np.log(estimates.fit_probability)
    order = np.argsort(score, kind="stable")
    hopeless = estimates.fit_probability[order] < HOPELESS
    if hopeless.any():
        reason = (
            f"predicted to need more than the {estimates.capacity_gib:.1f} GiB of a device "
            f"(probability to fit below {HOPELESS:.0%})"
        )
        dropped[reason] = int(hopeless.sum())
    return Plan(
        space=space,
        model=model,
        layouts=layouts,
        estimates=estimates,
        order=order[~hopeless],
        dropped=dict(dropped.most_common()),
    )
