"""Whether any layout of a space is predicted to fit into memory, and on how many nodes."""

import dataclasses
from collections.abc import Callable

import numpy as np

from autotune.cost.model import CostModel
from autotune.cost.trainers import StatedTrainer
from autotune.errors import InputError
from autotune.inputs import LARGEST_COUNT
from autotune.space import SearchSpace

HOPELESS = 0.01
"""Plans leave out layouts whose predicted probability to fit into memory is lower."""
# A number of nodes is enough where a layout fits with at least this probability.
_LIKELY = 0.5
_DOUBLINGS = 8
_MOST_BETWEEN = 16


def why_nothing_fits(space: SearchSpace, trainer: StatedTrainer) -> str | None:
    """What the space needs, as a sentence, where no layout is predicted to fit; else None.

    None also where the cost model does not know the device. `space` must have a layout.
    """
    fit = _best_fit(space, trainer)
    if fit is None or fit.probability >= HOPELESS:
        return None
    advice = "more nodes alone are not enough"
    if (nodes := _least_nodes(space, trainer)) is not None:
        advice = f"needs at least {nodes} nodes of {space.cluster.gpus_per_node}"
    return (
        f"{space.name} {advice}: on {space.cluster.describe()} the smallest layout is predicted to "
        f"take {fit.peak_memory_gib:.3g} GiB of the {fit.capacity_gib:.3g} GiB of a device"
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Fit:
    """Prediction for the layout with the smallest peak memory."""

    probability: float
    peak_memory_gib: float
    capacity_gib: float


def _best_fit(space: SearchSpace, trainer: StatedTrainer) -> _Fit | None:
    try:
        model = CostModel(space.model, space.precision, space.cluster, trainer=trainer)
    except InputError:
        return None
    unsupported = model.setting.trainer.why_unsupported
    layouts = [layout for layout in space.layouts() if unsupported(layout) is None]
    if not layouts:
        return None
    estimates = model.estimate(layouts)
    smallest = int(np.argmin(estimates.peak_memory_gib))
    return _Fit(
        probability=float(estimates.fit_probability[smallest]),
        peak_memory_gib=float(estimates.peak_memory_gib[smallest]),
        capacity_gib=estimates.capacity_gib,
    )


def _least_nodes(space: SearchSpace, trainer: StatedTrainer) -> int | None:
    """The smallest number of nodes on which a layout is likely to fit; None: not up to a limit.

    Doubled until one does, then the numbers in between are tried from below, at most
    `_MOST_BETWEEN` of them.
    """
    current = space.cluster.nodes
    for power in range(_DOUBLINGS):
        too_few, nodes = current * 2**power, current * 2 ** (power + 1)
        if nodes > LARGEST_COUNT:
            return None
        if _likely_fits_on(space, nodes, trainer):
            step = max(1, (nodes - too_few) // _MOST_BETWEEN)
            between = range(too_few + step, nodes, step)
            return next((n for n in between if _likely_fits_on(space, n, trainer)), nodes)
    return None


def _likely_fits_on(space: SearchSpace, nodes: int, trainer: StatedTrainer) -> bool:
    cluster = dataclasses.replace(space.cluster, nodes=nodes)
    return likely_fits(space.replaced({"cluster": cluster}, what="nodes"), trainer)


def likely_fits(space: SearchSpace, trainer: StatedTrainer) -> bool:
    """Whether a layout of the space is predicted to fit, as likely as not."""
    fit = _best_fit(space, trainer)
    return fit is not None and fit.probability >= _LIKELY


def least_nodes(
    space_on: Callable[[int], SearchSpace], trainer: StatedTrainer, most: int
) -> int | None:
    """The smallest number of nodes, up to `most`, on which a layout is likely to fit; None: none.

    `space_on` makes the space of that many nodes. Numbers are doubled until one is enough; then
    those between are tried from below.
    """
    too_few, nodes = 0, 1
    while not likely_fits(space_on(nodes), trainer):
        too_few, nodes = nodes, 2 * nodes
        if nodes > most:
            return None
    between = range(too_few + 1, nodes)
    return next((n for n in between if likely_fits(space_on(n), trainer)), nodes)
