"""Whether any layout of a space is predicted to fit, and on how many nodes one would."""

import dataclasses

import numpy as np

from autotune.cost.model import CostModel
from autotune.errors import InputError
from autotune.space import SearchSpace

HOPELESS = 0.01
"""A layout that fits with a lower predicted probability is not worth a line of a plan."""
# A number of nodes is enough where a layout fits more likely than not.
_LIKELY = 0.5
# How many more nodes are tried one by one, and how often their number is doubled.
_ONE_BY_ONE = 8
_DOUBLINGS = 8


def why_nothing_fits(space: SearchSpace, trainer: str) -> str | None:
    """A sentence that says what the space needs, where no layout is predicted to fit; else None.

    None also where the cost model does not know the device. `space` must have a layout.
    """
    found = _best_fit(space, trainer)
    if found is None or found.probability >= HOPELESS:
        return None
    advice = "more nodes alone are not enough"
    if (nodes := _least_nodes(space, trainer)) is not None:
        advice = f"needs at least {nodes} nodes of {space.cluster.gpus_per_node}"
    return (
        f"{space.name} {advice}: on {space.cluster.describe()} the smallest layout is predicted to "
        f"take {found.peak_memory_gib:.3g} GiB of the {found.capacity_gib:.3g} GiB of a device"
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Fit:
    """The layout that is most likely to fit."""

    probability: float
    peak_memory_gib: float
    capacity_gib: float


def _best_fit(space: SearchSpace, trainer: str) -> _Fit | None:
    layouts = space.layouts()
    try:
        model = CostModel(space.model, space.precision, space.cluster, trainer=trainer)
    except InputError:
        return None
    if not layouts:
        return None
    estimates = model.estimate(layouts)
    place = int(np.argmin(estimates.peak_memory_gib))
    return _Fit(
        probability=float(estimates.fit_probability[place]),
        peak_memory_gib=float(estimates.peak_memory_gib[place]),
        capacity_gib=estimates.capacity_gib,
    )


def _least_nodes(space: SearchSpace, trainer: str) -> int | None:
    """The smallest number of nodes, of those tried, on which a layout is likely to fit."""
    present = space.cluster.nodes
    one_by_one = range(present + 1, present + 1 + _ONE_BY_ONE)
    doubled = (present * 2**power for power in range(1, 1 + _DOUBLINGS))
    nodes: int
    for nodes in sorted({*one_by_one, *doubled}):
        cluster = dataclasses.replace(space.cluster, nodes=nodes)
        found = _best_fit(space.replaced({"cluster": cluster}, what="nodes"), trainer)
        if found is not None and found.probability >= _LIKELY:
            return nodes
    return None
