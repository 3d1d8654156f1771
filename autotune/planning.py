"""Predict and rank the layouts of a space without running any: `autotune.plan`."""

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autotune.cost.feasibility import HOPELESS, why_nothing_fits
from autotune.cost.model import CostModel, Estimates
from autotune.layout import Layout
from autotune.space import Excluded, SearchSpace
from autotune.trial.measurement import predicted_mfu


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Predictions for a space. Layouts that are unlikely to fit are counted, not ranked."""

    space: SearchSpace
    model: CostModel
    """What predicted."""
    layouts: list[Layout]
    """All legal layouts of the space, in the order in which it generates them."""
    estimates: Estimates
    """Predictions for `layouts`, in the same order."""
    order: NDArray[np.intp]
    """Indices into `layouts`, most promising first: by predicted time over probability to fit."""
    dropped: Mapping[str, int]
    """Combinations of the dimensions' values that are not ranked, counted by reason."""

    @property
    def ranked(self) -> list[Layout]:
        """The layouts that are likely enough to fit, most promising first."""
        return [self.layouts[place] for place in self.order]

    @property
    def nothing_fits(self) -> str | None:
        """What the space needs, where no layout is predicted to fit; else None."""
        if len(self.order):
            return None
        return why_nothing_fits(self.space, self.model.trainer_name)

    def rows(self, top: int | None = None) -> list[dict[str, Any]]:
        """The `top` most promising layouts (None: all) as plain values. Every figure is predicted:
        layout, step_seconds, mfu (None where the peak is unknown), peak_memory_gib and
        fit_probability."""
        estimates = self.estimates
        return [
            {
                "layout": self.layouts[place].columns(),
                "step_seconds": float(estimates.step_seconds[place]),
                "mfu": predicted_mfu(self.space, float(estimates.step_seconds[place])),
                "peak_memory_gib": float(estimates.peak_memory_gib[place]),
                "fit_probability": float(estimates.fit_probability[place]),
            }
            for place in self.order[:top]
        ]


def plan(space: SearchSpace, model: CostModel | None = None) -> Plan:
    """Predict and rank every layout of the space; nothing is run.

    `model` replaces the cost model of our worker on the space's devices. Raises InputError where
    the space has no layout, or the cost model does not know the device.
    """
    model = model or CostModel(space.model, space.precision, space.cluster)
    dropped: collections.Counter[str] = collections.Counter()
    layouts = []
    for found in space.walk():
        if isinstance(found, Excluded):
            dropped[found.rule] += found.combinations
        else:
            layouts.append(found)
    if not layouts:
        space.check_not_empty()
    estimates = model.estimate(layouts)
    promise = np.log(estimates.step_seconds) - np.log(estimates.fit_probability)
    order = np.argsort(promise, kind="stable")
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
