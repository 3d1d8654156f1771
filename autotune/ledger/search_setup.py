"""Creates the search that a request asks for, estimates the cost of its trials, and says what the
search is told of them."""

import functools
from collections.abc import Sequence

import numpy as np

from autotune.cost.model import CostModel
from autotune.errors import InputError
from autotune.layout import Layout
from autotune.request import Request
from autotune.search import NEED_PRIOR, Observation, Prior, Search, TrialCost, make_search
from autotune.store.record import TrialRecord
from autotune.trial.reduced import reduced_counts
from autotune.trial.trial import Outcome

# Assumed start-up of a trial (processes, process groups, first allocations). Replays use "gpu".
_STARTUP_SECONDS = {"gpu": 120.0, "cpu": 1.0}
CONFIRMED = 3
"""Number of the fastest explored layouts that are confirmed by a longer trial."""
CONFIRMATION_STEPS = 3
"""Measured steps of a confirmation, as a multiple of those of an exploring trial."""
# Assumed length of the training run, where it is not given (Hoffmann et al. 2022).
_TOKENS_PER_PARAMETER = 20


def search_for(request: Request, layouts: Sequence[Layout]) -> Search:
    """The requested search, with the cost model as its prior where it knows the device."""
    space = request.space
    try:
        prior = Prior(cost_model_of(request), layouts)
    except InputError:
        if request.search in NEED_PRIOR:
            raise
        prior = None
    cost = TrialCost(
        seconds=functools.partial(trial_seconds, request),
        devices=space.cluster.devices,
        training_gpu_hours=request.training_gpu_hours,
        training_steps=_TOKENS_PER_PARAMETER * space.model.parameters / space.model.tokens_per_step,
    )
    return make_search(request.search, layouts, seed=request.seed, prior=prior, cost=cost)


def observation_of(record: TrialRecord) -> Observation:
    """What the search is told of a finished trial."""
    timed = record.outcome in (Outcome.OK, Outcome.STOPPED)
    return Observation(
        layout=record.layout,
        outcome=record.outcome,
        step_seconds=record.measurement.step_seconds if timed else None,
        peak_memory_gib=record.measurement.peak_memory_gib if timed else None,
    )


def cost_model_of(request: Request) -> CostModel:
    """The cost model for the request's model, cluster and trainer. Raises InputError for an unknown
    device."""
    space, trainer = request.space, request.description.trainer
    return CostModel(space.model, space.precision, space.cluster, trainer=trainer)


def expected_seconds(request: Request) -> float | None:
    """Predicted wall time of a search that explores the best `max_trials` layouts and confirms the
    fastest. None where the cost model does not know the device."""
    layouts = request.all_layouts()
    try:
        estimates = cost_model_of(request).estimate(layouts)
    except InputError:
        return None
    score = np.log(estimates.step_seconds) - np.log(estimates.fit_probability + 1e-9)
    chosen = np.argsort(score, kind="stable")[: request.max_trials]
    total = 0.0
    for index in chosen:
        before_steps, steps = trial_seconds(request, layouts[index])
        fit_probability = float(estimates.fit_probability[index])
        seconds = before_steps + fit_probability * steps * float(estimates.step_seconds[index])
        total += min(seconds, request.trial_timeout_seconds)
    fastest = float(estimates.step_seconds[chosen].min())
    steps = request.space.warmup_steps + CONFIRMATION_STEPS * request.space.measured_steps
    return total + CONFIRMED * (startup_seconds(request) + steps * fastest)


def counts_of(request: Request, layout: Layout) -> tuple[int, ...]:
    """The numbers of micro-batches of a layout's reduced trial; empty: it gets a full trial."""
    if not (request.reduced_trials and request.description.reduced_trials):
        return ()
    return reduced_counts(layout)


def startup_seconds(request: Request) -> float:
    """Assumed seconds of a trial before its first step, where they are not measured."""
    return _STARTUP_SECONDS[request.space.cluster.device.kind]


def trial_seconds(request: Request, layout: Layout) -> tuple[float, float]:
    """Cost of a layout's trial: seconds before the first step, and its length in full steps."""
    steps = request.space.warmup_steps + request.space.measured_steps
    counts = counts_of(request, layout)
    share = sum(counts) / layout.gradient_accumulation_steps if counts else 1.0
    return startup_seconds(request), steps * share
