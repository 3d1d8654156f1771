"""Correction of the cost model by trials: Gaussian processes over its error in the logarithm.

The prior covariance of two layouts' errors is a sum of two kernels. The first is due to wrong
constants: the product of the layouts' sensitivities to each constant. The second is due to effects
that the formulas leave out: a squared exponential of the distance of the layouts' features.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.special import expit

from autotune.cost.columns import Array, mapped
from autotune.layout import DIMENSIONS, Layout

# Length scale of the squared exponential kernel, in units of `features`.
_LENGTH_SCALE = 1.5
_NEWTON_STEPS = 100
_HALVINGS = 30
# Newton's method has converged where no error changes by more.
_CONVERGED = 1e-10


@dataclasses.dataclass(frozen=True, slots=True)
class Covariance:
    """Prior covariance of the layouts' errors; n layouts, k constants, f features."""

    factors: Array
    """[n, k] change of the error if a constant is off by one standard deviation."""
    features: Array
    """[n, f] features of the layouts (`features_of`)."""
    local: float
    """Standard deviation of the effects that the formulas leave out."""

    def between(self, indices: Sequence[int]) -> Array:
        """[n, m] covariance of all layouts with those at `indices`."""
        features = self.features[indices]
        squared = (
            (self.features**2).sum(axis=1)[:, None]
            + (features**2).sum(axis=1)[None, :]
            - 2 * self.features @ features.T
        )
        similarity = np.exp(-np.maximum(squared, 0) / (2 * _LENGTH_SCALE**2))
        result: Array = self.factors @ self.factors[indices].T + self.local**2 * similarity
        return result

    def variance(self) -> Array:
        """[n] prior variance of each layout."""
        result: Array = (self.factors**2).sum(axis=1) + self.local**2
        return result


def features_of(layouts: Sequence[Layout]) -> Array:
    """Features of layouts [n, f]: those of all dimensions (`Dimension.place`), concatenated."""
    columns = [
        mapped([getattr(layout, name) for layout in layouts], dimension.place)
        for name, dimension in DIMENSIONS.items()
        if dimension.place is not None
    ]
    return np.column_stack([np.array(column, dtype=np.float64) for column in columns])


class Regression:
    """Gaussian process regression over n layouts, extended by one measurement at a time.

    It keeps the Cholesky factor of the measurements' covariance, continued to all layouts: a row
    [n] per measurement. So measurement number m takes O(m n) operations, and never a solution of
    all of them anew, which takes O(m^3). The order of the measurements decides the rounding.
    """

    def __init__(self, prior: Covariance) -> None:
        """Without measurements the mean is 0."""
        self._prior = prior
        self.variance: Array = prior.variance()
        """[n] posterior variance of each layout's error."""
        self.mean: Array = np.zeros_like(self.variance)
        """[n] posterior mean of each layout's error."""
        self._rows = _Rows(len(self.variance))

    def covariance_with(self, index: int) -> Array:
        """[n] posterior covariance of all layouts with the one at `index`."""
        rows = self._rows.filled
        result: Array = self._prior.between([index])[:, 0] - rows[:, index] @ rows
        return result

    def measure(self, index: int, error: float, noise: float) -> Array:
        """Take in the error of the layout at `index`, measured with a standard deviation of
        `noise`. Returns the row [n] whose outer product with itself was subtracted from the
        posterior covariance."""
        covariance = self.covariance_with(index)
        deviation = np.sqrt(covariance[index] + noise**2)
        row: Array = covariance / deviation
        self.mean = self.mean + row * ((error - self.mean[index]) / deviation)
        self.variance = self.variance - row**2
        self._rows.append(row)
        return row


class MemoryCorrection:
    """Maximum a posteriori error of log(peak / capacity) for all n layouts.

    Likelihood of a layout that ran: Gaussian with standard deviation `spread` where its peak was
    measured; else logistic with that scale, for running out of memory or not. The Gaussian ones are
    a regression, and Newton's method finds the mode over the others alone, given that.
    """

    def __init__(self, prior: Covariance, log_memory: Array, spread: float) -> None:
        """`log_memory` [n] is the predicted log(peak / capacity)."""
        self._prior = prior
        self._log_memory = log_memory
        self._spread = spread
        self._observations: dict[int, tuple[bool, float | None]] = {}
        self._mean: Array | None = None
        self._start()

    def observe(self, index: int, *, ran_out: bool, peak: float | None) -> None:
        """Learn whether the layout at `index` ran out of memory, and its log(peak / capacity)
        where it was measured. An earlier observation of the same layout is replaced."""
        replaces = index in self._observations
        self._observations[index] = ran_out, peak
        if not replaces:
            self._learn(index, ran_out, peak)
            return
        self._start()
        for earlier, observation in self._observations.items():
            self._learn(earlier, *observation)

    @property
    def mean(self) -> Array:
        """[n] the most probable error of each layout."""
        if self._mean is None:
            self._mean = self._regression.mean
            if self._without_peak:
                self._mean = self._mean + self._from_outcomes()
        return self._mean

    def _start(self) -> None:
        self._regression = Regression(self._prior)
        self._without_peak: list[int] = []
        self._ran_out: list[bool] = []
        # Posterior covariance of all layouts with each one whose peak is not known.
        self._columns = _Rows(len(self._log_memory))

    def _learn(self, index: int, ran_out: bool, peak: float | None) -> None:
        self._mean = None
        if peak is None:
            self._columns.append(self._regression.covariance_with(index))
            self._without_peak.append(index)
            self._ran_out.append(ran_out)
            return
        row = self._regression.measure(index, peak - self._log_memory[index], self._spread)
        columns = self._columns.filled
        columns -= np.outer(row[self._without_peak], row)

    def _from_outcomes(self) -> Array:
        """[n] change of the regression's mean by the layouts whose peak is not known."""
        known = self._without_peak
        columns = self._columns.filled
        prior = columns[:, known] + 1e-8 * np.eye(len(known))
        predicted = self._log_memory[known] + self._regression.mean[known]
        # In units of `spread`; where it ran out, the other way round.
        sign = np.where(self._ran_out, -1.0, 1.0) / self._spread

        def log_posterior(weights: Array) -> float:
            error = prior @ weights
            likelihood = -np.logaddexp(0, sign * (predicted + error)).sum()
            return float(likelihood - weights @ error / 2)

        weights = np.zeros(len(known))
        for _ in range(_NEWTON_STEPS):
            error = prior @ weights
            # Probability of the opposite outcome; slope and curvature of the log likelihood.
            miss = expit(sign * (predicted + error))
            slope = -sign * miss
            curvature = sign**2 * miss * (1 - miss)
            # Rasmussen and Williams 2006, algorithm 3.1: nothing is inverted.
            root = np.sqrt(curvature)
            wanted = curvature * error + slope
            factor = cho_factor(np.eye(len(known)) + root[:, None] * prior * root)
            step = wanted - root * cho_solve(factor, root * (prior @ wanted)) - weights
            step = _uphill(log_posterior, weights, step)
            weights = weights + step
            if np.abs(prior @ step).max() < _CONVERGED:
                break
        result: Array = weights @ columns
        return result


def _uphill(function: Callable[[Array], float], start: Array, step: Array) -> Array:
    """The step, halved until the function does not decrease: a full step of Newton's method may go
    so far beyond the maximum that the next one returns to the start."""
    least = function(start)
    for _ in range(_HALVINGS):
        if function(start + step) >= least:
            return step
        step = step / 2
    return np.zeros_like(step)  # the function is flat to rounding


class _Rows:
    """A matrix to which rows are appended; its storage doubles when it is full."""

    def __init__(self, columns: int) -> None:
        self._storage: Array = np.empty((1, columns))
        self._count = 0

    @property
    def filled(self) -> Array:
        """The rows so far, as a view."""
        return self._storage[: self._count]

    def append(self, row: Array) -> None:
        if self._count == len(self._storage):
            self._storage = np.concatenate([self._storage, np.empty_like(self._storage)])
        self._storage[self._count] = row
        self._count += 1
