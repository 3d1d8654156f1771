"""Search by the cost model, corrected after every trial.

The next layout is the one whose trial promises most: expected improvement over the best so far,
times the probability that it fits, per second that the trial is expected to take. A layout that
will probably run out of memory is not ruled out: its trial is short, and the fastest layouts are
often those that just fit.
"""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from autotune.cost.columns import Array
from autotune.cost.model import fit_probability
from autotune.layout import Layout
from autotune.search.candidates import Candidates
from autotune.search.correction import (
    Covariance,
    corrected_memory,
    corrected_time,
    features_of,
)
from autotune.search.prior import Prediction, Prior
from autotune.search.protocol import NOTHING_LEFT, Observation
from autotune.trial.trial import Outcome

# Standard deviations of the logarithm, as shares of how far off the cost model is known to be on
# the device: of what the formulas leave out of one layout, and of a measurement.
_LOCAL_TIME = 0.5
_LOCAL_MEMORY = 1.0
_NOISE = 0.25
_LEAST_NOISE = 0.01
# Few steps, none of them measured to the end.
_NOISE_OF_STOPPED = 3
# Layouts whose expected values differ by less are equal, and the seed decides.
_EQUAL = 1e-3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrialCost:
    """What a trial takes, and what a faster layout is worth."""

    seconds: Callable[[Layout], tuple[float, float]]
    """Of a layout's trial: seconds before the first step, which are all that it costs if it runs
    out of memory, and how many whole steps its steps are worth."""
    devices: int
    """Devices that a trial holds."""
    training_gpu_hours: float | None = None
    """Device hours of the training run that the layout is for; infinite: every trial pays; None:
    `training_steps` at the best speed so far."""
    training_steps: float
    """Optimiser steps of the training run, where its hours are not given."""


class GuidedSearch:
    """Bayesian search with the cost model as its prior. A `Search`."""

    def __init__(self, prior: Prior, cost: TrialCost, seed: int) -> None:
        """Search the layouts of `prior`."""
        self._prior = prior
        self._cost = cost
        self._seed = seed
        self._candidates = Candidates(prior.layouts)
        self._size = len(self._candidates)
        costs = np.array([cost.seconds(layout) for layout in prior.layouts]).reshape(-1, 2)
        self._startup_seconds, self._steps = costs.T
        features = features_of(prior.layouts)
        self._time = Covariance(prior.time_factors, features, _LOCAL_TIME * prior.time_spread)
        self._memory = Covariance(
            prior.memory_factors, features, _LOCAL_MEMORY * prior.memory_spread
        )
        self._noise = max(_LEAST_NOISE, _NOISE * prior.time_spread)
        self._timed: list[tuple[int, float, float]] = []
        self._fitted: dict[int, tuple[bool, float | None]] = {}
        self._finished: dict[int, float] = {}
        self.stopped_because = NOTHING_LEFT
        self._correct()

    def ask(self) -> Layout | None:
        """The most promising layout, or None when no trial pays any more."""
        places = [self._place(layout) for layout in self._candidates]
        if not places:
            return None
        left = np.array(places)
        improvement, probability, seconds = self._promise(left)
        gain = improvement * probability
        # Before anything has run a result counts, not its price.
        value = gain if self._best is None else gain / seconds
        chosen = int(left[self._choose(value)])
        if self._does_not_pay(gain, seconds):
            return None
        layout = self._prior.layouts[chosen]
        self._candidates.remove([layout])
        return layout

    def tell(self, observation: Observation) -> None:
        """Correct the model by what was measured."""
        self._candidates.remove([observation.layout])
        place = self._prior.place(observation.layout)
        if place is None:
            return
        seconds = observation.step_seconds
        if seconds is not None:
            finished = observation.outcome is Outcome.OK
            error = float(np.log(seconds)) - float(self._prior.log_seconds[place])
            noise = self._noise * (1 if finished else _NOISE_OF_STOPPED)
            self._timed.append((place, error, noise))
            if finished:
                self._finished[place] = seconds
        ran_out = observation.outcome is Outcome.OOM
        if ran_out:
            self._finished.pop(place, None)  # it ran before, but not for long
        if ran_out or seconds is not None:
            peak = observation.peak_memory_gib
            share = None
            if peak is not None and not ran_out:
                share = float(np.log(peak / self._prior.estimates.capacity_gib))
            self._fitted[place] = (ran_out, share)
        self._correct()

    def discard(self, layouts: Iterable[Layout]) -> None:
        """Never propose these."""
        self._candidates.remove(layouts)

    def prediction(self, layout: Layout) -> Prediction | None:
        """What is expected of a layout after all that was told."""
        place = self._prior.place(layout)
        if place is None:
            return None
        return self._prior.prediction_at(place, self._log_seconds, self._log_memory)

    @property
    def _best(self) -> float | None:
        """Step time of the fastest layout that ran."""
        return min(self._finished.values(), default=None)

    def _correct(self) -> None:
        mean, self._deviation = corrected_time(
            self._time,
            [place for place, _, _ in self._timed],
            [error for _, error, _ in self._timed],
            [noise for _, _, noise in self._timed],
        )
        self._log_seconds = self._prior.log_seconds + mean
        self._log_memory = self._prior.log_memory + corrected_memory(
            self._memory,
            list(self._fitted),
            self._prior.log_memory,
            [ran_out for ran_out, _ in self._fitted.values()],
            [peak for _, peak in self._fitted.values()],
            self._prior.memory_spread,
        )

    def _promise(self, places: NDArray[np.int64]) -> tuple[Array, Array, Array]:
        """Expected improvement (of log time), probability to fit, expected seconds of a trial."""
        mean, deviation = self._log_seconds[places], self._deviation[places]
        probability = fit_probability(np.exp(self._log_memory[places]), self._prior.memory_spread)
        if self._best is None:
            # Nothing has run that could be improved on: the fastest that is likely to fit.
            improvement = np.exp(mean.min() - mean)
        else:
            normalised = (np.log(self._best) - mean) / deviation
            improvement = deviation * (
                normalised * stats.norm.cdf(normalised) + stats.norm.pdf(normalised)
            )
        running = self._steps[places] * np.exp(mean)
        return improvement, probability, self._startup_seconds[places] + probability * running

    def _choose(self, value: Array) -> int:
        """Place of the largest value; equals are drawn from, by the seed."""
        equal = np.flatnonzero(value >= value.max() * (1 - _EQUAL))
        # A function of the seed and of how many layouts are gone: a resumed search draws the same.
        random = np.random.default_rng((self._seed, self._size - len(self._candidates)))
        return int(random.choice(equal))

    def _does_not_pay(self, gain: Array, seconds: Array) -> bool:
        """Whether even the best trial costs more than what it is expected to save."""
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

    def _place(self, layout: Layout) -> int:
        place = self._prior.place(layout)
        assert place is not None, "candidates are the prior's layouts"
        return place
