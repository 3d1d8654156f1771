"""The search that a request asks for, and what its trials cost."""

import functools
from collections.abc import Sequence

from autotune.cost.model import CostModel
from autotune.errors import InputError
from autotune.layout import Layout
from autotune.request import Request
from autotune.search import Prior, Search, TrialCost, make_search
from autotune.trial.reduced import reduced_counts

# Process groups and the first touch of memory; the recorded sweeps are replayed with the first.
_STARTUP_SECONDS = {"gpu": 120.0, "cpu": 1.0}
# Of the training run that a layout is for, unless its length is told (Hoffmann et al. 2022).
_TOKENS_PER_PARAMETER = 20


def search_for(request: Request, layouts: Sequence[Layout]) -> Search:
    """The search that was asked for, with the cost model as its prior where the device is known."""
    space = request.space
    try:
        model = CostModel(space.model, space.precision, space.cluster, trainer=request.trainer)
        prior = Prior(model, layouts)
    except InputError:
        if request.search == "guided":
            raise
        prior = None
    cost = TrialCost(
        seconds=functools.partial(_trial_seconds, request),
        devices=space.cluster.devices,
        training_gpu_hours=request.training_gpu_hours,
        training_steps=_TOKENS_PER_PARAMETER * space.model.parameters / space.model.tokens_per_step,
    )
    return make_search(request.search, layouts, seed=request.seed, prior=prior, cost=cost)


def counts_of(request: Request, layout: Layout) -> tuple[int, ...]:
    """The counts of micro-batches by which a layout is explored; none: by its own."""
    if not request.reduced_trials or request.trainable == "replay":
        return ()
    return reduced_counts(layout)


def startup_seconds(request: Request) -> float:
    """What a trial is taken to need before its first step, where that is not measured."""
    return _STARTUP_SECONDS[request.space.cluster.device.kind]


def _trial_seconds(request: Request, layout: Layout) -> tuple[float, float]:
    """What a trial of a layout takes: seconds before its steps, and its steps in whole ones."""
    steps = request.space.warmup_steps + request.space.measured_steps
    counts = counts_of(request, layout)
    share = sum(counts) / layout.gradient_accumulation_steps if counts else 1.0
    return (len(counts) or 1) * startup_seconds(request), steps * share
