"""Bayesian optimisation with the cost model as the prior mean.

The acquisition function is expected improvement over the best layout so far, times the probability
to fit into memory, per expected second of the trial. A layout that will probably run out of memory
is not ruled out: its trial is short, and the fastest layouts are often those that just fit.
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

# Standard deviations in the logarithm, as multiples of the cost model's known error on the device
# (`time_spread`, `memory_spread`): of effects that the formulas leave out, and of a measurement.
_LOCAL_TIME = 0.5
_LOCAL_MEMORY = 1.0
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
        self._time_observations: list[tuple[int, float, float]] = []
        self._memory_observations: dict[int, tuple[bool, float | None]] = {}
        self._finished: dict[int, float] = {}
        self.stopped_because = NOTHING_LEFT
        self._correct()

    def ask(self) -> Layout | None:
        """The layout with the best acquisition value; None where no trial pays off any more."""
        if not len(self._candidates):
            return None
        indices = np.array([self._index(layout) for layout in self._candidates])
        improvement, probability, seconds = self._expectations(indices)
        gain = improvement * probability
        # Until a first layout has run, the trial's cost is ignored.
        value = gain if self._best is None else gain / seconds
        chosen = int(indices[self._choose(value)])
        if self._does_not_pay(gain, seconds):
            return None
        layout = self._prior.layouts[chosen]
        self._candidates.remove([layout])
        return layout

    def tell(self, observation: Observation) -> None:
        """Update the Gaussian processes with the result."""
        self._candidates.remove([observation.layout])
        index = self._prior.place(observation.layout)
        if index is None:
            return
        seconds = observation.step_seconds
        if seconds is not None:
            finished = observation.outcome is Outcome.OK
            error = float(np.log(seconds)) - float(self._prior.log_seconds[index])
            noise = self._noise * (1 if finished else _NOISE_OF_STOPPED)
            self._time_observations.append((index, error, noise))
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
            self._memory_observations[index] = (ran_out, share)
        self._correct()

    def discard(self, layouts: Iterable[Layout]) -> None:
        """Never propose these."""
        self._candidates.remove(layouts)

    def prediction(self, layout: Layout) -> Prediction | None:
        """The corrected prediction for a layout."""
        index = self._prior.place(layout)
        if index is None:
            return None
        return self._prior.prediction_at(index, self._log_seconds, self._log_memory)

    @property
    def _best(self) -> float | None:
        """Step time of the fastest layout that ran."""
        return min(self._finished.values(), default=None)

    def _correct(self) -> None:
        mean, self._deviation = corrected_time(
            self._time,
            [index for index, _, _ in self._time_observations],
            [error for _, error, _ in self._time_observations],
            [noise for _, _, noise in self._time_observations],
        )
        self._log_seconds = self._prior.log_seconds + mean
        self._log_memory = self._prior.log_memory + corrected_memory(
            self._memory,
            list(self._memory_observations),
            self._prior.log_memory,
            [ran_out for ran_out, _ in self._memory_observations.values()],
            [peak for _, peak in self._memory_observations.values()],
            self._prior.memory_spread,
        )

    def _expectations(self, indices: NDArray[np.int64]) -> tuple[Array, Array, Array]:
        """Expected improvement (of log time), probability to fit, expected seconds of a trial."""
        mean, deviation = self._log_seconds[indices], self._deviation[indices]
        probability = fit_probability(np.exp(self._log_memory[indices]), self._prior.memory_spread)
        if self._best is None:
            # No layout has run yet: speed relative to the fastest candidate.
            improvement = np.exp(mean.min() - mean)
        else:
            normalised = (np.log(self._best) - mean) / deviation
            improvement = deviation * (
                normalised * stats.norm.cdf(normalised) + stats.norm.pdf(normalised)
            )
        running = self._steps[indices] * np.exp(mean)
        return improvement, probability, self._startup_seconds[indices] + probability * running

    def _choose(self, value: Array) -> int:
        """Index of the largest value; ties are broken at random, by the seed."""
        tied = np.flatnonzero(value >= value.max() * (1 - _TIE_TOLERANCE))
        # Seeded by the number of layouts no longer candidates: a resumed search draws the same.
        random = np.random.default_rng((self._seed, self._size - len(self._candidates)))
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
