"""Correction of the cost model by trials: Gaussian processes over its error in the logarithm.

The prior covariance of two layouts' errors is a sum of two kernels. The first is due to wrong
constants: the product of the layouts' sensitivities to each constant. The second is due to effects
that the formulas leave out: a squared exponential of the distance of the layouts' features.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import log_ndtr

from autotune.cost.columns import Array, mapped
from autotune.layout import DIMENSIONS, Layout

# Length scale of the squared exponential kernel, in units of `features`.
_LENGTH_SCALE = 1.5


@dataclasses.dataclass(frozen=True, slots=True)
class Covariance:
    """Prior covariance of the layouts' errors; n layouts, k constants, f features."""

    factors: Array
    """[n, k] change of the error if a constant is off by one standard deviation."""
    features: Array
    """[n, f] features of the layouts: those that are alike have like errors."""
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
    """Gaussian process regression over n layouts, extended by one result at a time.

    It keeps the Cholesky factor of the results' covariance, continued to all layouts: a row [n] per
    result. So result number m takes O(m n) operations, and never a solution of all of them anew,
    which takes O(m^3). The order of the results decides the rounding.
    """

    def __init__(self, prior: Covariance) -> None:
        """Without results the mean is 0."""
        self._prior = prior
        self.variance: Array = prior.variance()
        """[n] posterior variance of each layout's error."""
        self.mean: Array = np.zeros_like(self.variance)
        """[n] posterior mean of each layout's error."""
        self.log_evidence = 0.0
        """Logarithm of the probability (density) of all results before they were known."""
        self._rows = _Rows(len(self.variance))

    def covariance_with(self, index: int) -> Array:
        """[n] posterior covariance of all layouts with the one at `index`."""
        rows = self._rows.filled
        result: Array = self._prior.between([index])[:, 0] - rows[:, index] @ rows
        return result

    def measure(self, index: int, error: float, noise: float) -> None:
        """Take in the error of the layout at `index`, measured with a standard deviation of
        `noise`."""
        covariance = self.covariance_with(index)
        deviation = np.sqrt(covariance[index] + noise**2)
        surprise = (error - self.mean[index]) / deviation
        self.log_evidence += float(stats.norm.logpdf(surprise) - np.log(deviation))
        self._update(covariance / deviation, surprise, 1.0)

    def compare(self, index: int, bound: float, noise: float, *, is_above: bool) -> None:
        """Take in that the error of the layout at `index` is above `bound`, or below.

        `noise` is the standard deviation of the bound. The posterior is then the Gaussian with the
        mean and the variance that it really has (assumed density filtering: Rasmussen and Williams
        2006, section 3.6 and equations 3.57 and 3.58).
        """
        covariance = self.covariance_with(index)
        deviation = np.sqrt(covariance[index] + noise**2)
        sign = 1.0 if is_above else -1.0
        margin = sign * (self.mean[index] - bound) / deviation
        log_probability = float(log_ndtr(margin))
        hazard = float(np.exp(stats.norm.logpdf(margin) - log_probability))
        self.log_evidence += log_probability
        self._update(covariance / deviation, sign * hazard, hazard * (margin + hazard))

    def _update(self, row: Array, surprise: float, known: float) -> None:
        """Move the mean by `surprise` rows; subtract `known` times the row's outer product with
        itself from the covariance."""
        self.mean = self.mean + row * surprise
        row = row * np.sqrt(np.clip(known, 0.0, 1.0))
        self.variance = self.variance - row**2
        self._rows.append(row)


class MemoryCorrection:
    """Error of log(peak / capacity) for all n layouts, from peaks and from who ran out of memory.

    A layout runs out of memory where its peak is above the capacity.
    """

    def __init__(self, prior: Covariance, log_memory: Array, noise: float) -> None:
        """`log_memory` [n] is the predicted log(peak / capacity), `noise` the standard deviation
        of a measurement of it."""
        self._prior = prior
        self._log_memory = log_memory
        self._noise = noise
        self._observations: dict[int, tuple[bool, float | None]] = {}
        self._regression = Regression(prior)

    def observe(self, index: int, *, ran_out: bool, peak: float | None) -> None:
        """Learn whether the layout at `index` ran out of memory, and its log(peak / capacity)
        where it was measured. An earlier observation of the same layout is replaced."""
        replaces = index in self._observations
        self._observations[index] = ran_out, peak
        if not replaces:
            self._learn(index, ran_out, peak)
            return
        self._regression = Regression(self._prior)
        for earlier, observation in self._observations.items():
            self._learn(earlier, *observation)

    @property
    def mean(self) -> Array:
        """[n] expected error of each layout."""
        return self._regression.mean

    @property
    def log_evidence(self) -> float:
        """As of `Regression`."""
        return self._regression.log_evidence

    def fit_probability(self, indices: NDArray[np.int64]) -> Array:
        """Probability that the layouts at `indices` do not run out of memory."""
        variance = np.maximum(self._regression.variance[indices], 0.0) + self._noise**2
        excess = self._log_memory[indices] + self.mean[indices]
        result: Array = stats.norm.cdf(-excess / np.sqrt(variance))
        return result

    def _learn(self, index: int, ran_out: bool, peak: float | None) -> None:
        predicted = float(self._log_memory[index])
        if peak is None:
            self._regression.compare(index, -predicted, self._noise, is_above=ran_out)
        else:
            self._regression.measure(index, peak - predicted, self._noise)


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
