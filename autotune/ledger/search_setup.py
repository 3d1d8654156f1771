"""The search that a request asks for, and what its trials cost."""

import functools
from collections.abc import Sequence

import numpy as np

from autotune.cost.model import CostModel
from autotune.errors import InputError
from autotune.layout import Layout
from autotune.request import Request
from autotune.search import Prior, Search, TrialCost, make_search
from autotune.trial.reduced import reduced_counts

# Process groups and the first touch of memory; the recorded sweeps are replayed with the first.
_STARTUP_SECONDS = {"gpu": 120.0, "cpu": 1.0}
CONFIRMED = 3
"""The fastest explored layouts are run again, as many of them."""
CONFIRMATION_STEPS = 3
"""A confirmation measures this many times the steps of an exploring trial."""
# Of the training run that a layout is for, unless its length is told (Hoffmann et al. 2022).
_TOKENS_PER_PARAMETER = 20


def search_for(request: Request, layouts: Sequence[Layout]) -> Search:
    """The search that was asked for, with the cost model as its prior where the device is known."""
    space = request.space
    try:
        prior = Prior(cost_model_of(request), layouts)
    except InputError:
        if request.search == "guided":
            raise
        prior = None
    cost = TrialCost(
        seconds=functools.partial(trial_seconds, request),
        devices=space.cluster.devices,
        training_gpu_hours=request.training_gpu_hours,
        training_steps=_TOKENS_PER_PARAMETER * space.model.parameters / space.model.tokens_per_step,
    )
    return make_search(request.search, layouts, seed=request.seed, prior=prior, cost=cost)


def cost_model_of(request: Request) -> CostModel:
    """The cost model of what the request trains. Raises InputError for a device that it does not
    know."""
    space, trainer = request.space, request.description.trainer
    return CostModel(space.model, space.precision, space.cluster, trainer=trainer)


def expected_seconds(request: Request) -> float | None:
    """Predicted wall time of the search at most: exploring the most promising `max_trials` layouts
    and confirming the fastest. None where the cost model does not know the device."""
    layouts = request.all_layouts()
    try:
        estimates = cost_model_of(request).estimate(layouts)
    except InputError:
        return None
    promise = np.log(estimates.step_seconds) - np.log(estimates.fit_probability + 1e-9)
    chosen = np.argsort(promise, kind="stable")[: request.max_trials]
    total = 0.0
    for place in chosen:
        before_steps, steps = trial_seconds(request, layouts[place])
        fits = float(estimates.fit_probability[place])
        seconds = before_steps + fits * steps * float(estimates.step_seconds[place])
        total += min(seconds, request.trial_timeout_seconds)
    fastest = float(estimates.step_seconds[chosen].min())
    steps = request.space.warmup_steps + CONFIRMATION_STEPS * request.space.measured_steps
    return total + CONFIRMED * (startup_seconds(request) + steps * fastest)


def counts_of(request: Request, layout: Layout) -> tuple[int, ...]:
    """The counts of micro-batches by which a layout is explored; none: by its own."""
    if not (request.reduced_trials and request.description.reduced_trials):
        return ()
    return reduced_counts(layout)


def startup_seconds(request: Request) -> float:
    """What a trial is taken to need before its first step, where that is not measured."""
    return _STARTUP_SECONDS[request.space.cluster.device.kind]


def trial_seconds(request: Request, layout: Layout) -> tuple[float, float]:
    """What a trial of a layout takes: seconds before its steps, and its steps in whole ones."""
    steps = request.space.warmup_steps + request.space.measured_steps
    counts = counts_of(request, layout)
    share = sum(counts) / layout.gradient_accumulation_steps if counts else 1.0
    return (len(counts) or 1) * startup_seconds(request), steps * share
