"""Bayesian optimisation with the cost model as the prior mean.

The trainer that the cost model describes may not be the one that trains: the predictions are
averages over the known trainers (`autotune.search.averaging`).

The acquisition function is expected improvement over the best layout so far, times the probability
to fit into memory, per expected second of the trial. A layout that will probably run out of memory
is not ruled out: its trial is short, and the fastest layouts are often those that just fit.
"""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from autotune.cost.columns import Array
from autotune.layout import Layout
from autotune.search.averaging import AveragedPredictions
from autotune.search.prior import Prediction, Prior
from autotune.search.protocol import NOTHING_LEFT, Observation
from autotune.trial.trial import Outcome

# Standard deviation of a measured log(step time), as a multiple of the cost model's known error on
# the device (`time_spread`).
_NOISE = 0.25
_LEAST_NOISE = 0.01
# The noise of a stopped trial is larger by this factor: it has few steps.
_NOISE_OF_STOPPED = 3
# Layouts whose acquisition values differ by less (relative) are tied; the seed breaks ties.
_TIE_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrialCost:
    """Cost of trials, and the training run that a faster layout shortens."""

    seconds: Callable[[Layout], tuple[float, float]]
    """Cost of a layout's trial: seconds before the first step (all that it costs if it runs out of
    memory), and its length in full steps."""
    devices: int
    """Devices that a trial reserves."""
    training_gpu_hours: float | None = None
    """Device hours of the planned training run; infinite: never stop early; None: `training_steps`
    at the best step time so far."""
    training_steps: float
    """Optimiser steps of the planned training run, used where its hours are not given."""


class GuidedSearch:
    """Bayesian optimisation with the cost model as its prior. A `Search`."""

    def __init__(self, prior: Prior, cost: TrialCost, seed: int) -> None:
        """Search the layouts of `prior`."""
        self._prior = prior
        self._cost = cost
        self._seed = seed
        # Recorded runs may have a layout twice.
        indices = [self._index(layout) for layout in dict.fromkeys(prior.layouts)]
        self._indices = np.array(indices, dtype=np.int64)
        self._is_open = np.ones(len(prior.layouts), dtype=np.bool_)
        costs = np.array([cost.seconds(layout) for layout in prior.layouts]).reshape(-1, 2)
        self._startup_seconds, self._steps = costs.T
        self._predictions = AveragedPredictions(prior)
        self._noise = max(_LEAST_NOISE, _NOISE * prior.time_spread)
        self._finished: dict[int, float] = {}
        self.stopped_because = NOTHING_LEFT

    def ask(self) -> Layout | None:
        """The layout with the best acquisition value; None where no trial pays off any more."""
        indices = self._indices[self._is_open[self._indices]]
        if not len(indices):
            return None
        improvement, probability, seconds = self._expectations(indices)
        gain = improvement * probability
        # Until a first layout has run, the trial's cost is ignored.
        value = gain if self._best is None else gain / seconds
        chosen = int(indices[self._choose(value)])
        if self._does_not_pay(gain, seconds):
            return None
        self._is_open[chosen] = False
        return self._prior.layouts[chosen]

    def tell(self, observation: Observation) -> None:
        """Correct the predictions by the result."""
        index = self._prior.place(observation.layout)
        if index is None:
            return
        self._is_open[index] = False
        seconds = observation.step_seconds
        if seconds is not None:
            finished = observation.outcome is Outcome.OK
            noise = self._noise * (1 if finished else _NOISE_OF_STOPPED)
            self._predictions.measure(index, float(np.log(seconds)), noise)
            if finished:
                self._finished[index] = seconds
        ran_out = observation.outcome is Outcome.OOM
        if ran_out:
            self._finished.pop(index, None)  # it ran in a shorter trial before
        if ran_out or seconds is not None:
            peak = observation.peak_memory_gib
            share = None
            if peak is not None and not ran_out:
                share = float(np.log(peak / self._prior.estimates.capacity_gib))
            self._predictions.observe_memory(index, ran_out=ran_out, peak=share)

    def discard(self, layouts: Iterable[Layout]) -> None:
        """Never propose these."""
        for index in map(self._prior.place, layouts):
            if index is not None:
                self._is_open[index] = False

    def prediction(self, layout: Layout) -> Prediction | None:
        """The corrected prediction for a layout."""
        index = self._prior.place(layout)
        if index is None:
            return None
        predictions, at = self._predictions, np.array([index])
        peak = np.exp(predictions.log_memory(at)) * self._prior.estimates.capacity_gib
        return Prediction(
            step_seconds=float(np.exp(predictions.log_seconds(at))[0]),
            peak_memory_gib=float(peak[0]),
            fit_probability=float(predictions.fit_probability(at)[0]),
        )

    @property
    def _best(self) -> float | None:
        """Step time of the fastest layout that ran."""
        return min(self._finished.values(), default=None)

    def _expectations(self, indices: NDArray[np.int64]) -> tuple[Array, Array, Array]:
        """Expected improvement (of log time), probability to fit, expected seconds of a trial."""
        predictions = self._predictions
        mean = predictions.log_seconds(indices)
        # Until a first layout has run, the trainer is taken for the one that it is said to be.
        probability = predictions.fit_probability(indices, as_stated=self._best is None)
        if self._best is None:
            improvement = predictions.speed(indices)
        else:
            improvement = predictions.improvement(indices, float(np.log(self._best)))
        running = self._steps[indices] * np.exp(mean)
        return improvement, probability, self._startup_seconds[indices] + probability * running

    def _choose(self, value: Array) -> int:
        """Index of the largest value; ties are broken at random, by the seed."""
        tied = np.flatnonzero(value >= value.max() * (1 - _TIE_TOLERANCE))
        # Seeded by the number of layouts no longer candidates: a resumed search draws the same.
        closed = len(self._indices) - int(np.count_nonzero(self._is_open[self._indices]))
        random = np.random.default_rng((self._seed, closed))
        return int(random.choice(tied))

    def _does_not_pay(self, gain: Array, seconds: Array) -> bool:
        """Whether no trial is expected to save more training time than it costs."""
        if self._best is None:
            return False
        cost = self._cost
        hours = cost.training_gpu_hours
        if hours is None:
            hours = cost.training_steps * self._best * cost.devices / 3600
        if np.isinf(hours):
            return False
        saved = gain * hours
        spent = seconds * cost.devices / 3600
        if (saved > spent).any():
            return False
        best = int(gain.argmax())
        self.stopped_because = (
            f"another trial no longer pays: it is expected to save {saved[best]:.2g} of "
            f"{hours:.3g} training GPU-hours and to cost {spent[best]:.2g}"
        )
        return True

    def _index(self, layout: Layout) -> int:
        index = self._prior.place(layout)
        assert index is not None, "candidates are the prior's layouts"
        return index
