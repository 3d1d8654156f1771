"""Correction of the cost model by trials: Gaussian processes over its error in the logarithm.

The prior covariance of two layouts' errors is a sum of two kernels. The first is due to wrong
constants: the product of the layouts' sensitivities to each constant. The second is due to effects
that the formulas leave out: a squared exponential of the distance of the layouts' features.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from autotune.cost.columns import Array, mapped
from autotune.layout import DIMENSIONS, Layout

# Length scale of the squared exponential kernel, in units of `features`.
_LENGTH_SCALE = 1.5
_NEWTON_STEPS = 20


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


def corrected_time(
    covariance: Covariance, indices: Sequence[int], errors: Sequence[float], noise: Sequence[float]
) -> tuple[Array, Array]:
    """Posterior mean and standard deviation [n] of the error of log time.

    `errors` are log(measured / predicted time) of the layouts at `indices`, `noise` the standard
    deviations of these measurements.
    """
    if not indices:
        variance = covariance.variance()
        return np.zeros_like(variance), np.sqrt(variance)
    cross = covariance.between(indices)
    prior = cross[list(indices)] + np.diag(np.square(noise))
    mean = cross @ np.linalg.solve(prior, np.array(errors))
    explained = np.einsum("nm,mn->n", cross, np.linalg.solve(prior, cross.T))
    return mean, np.sqrt(np.maximum(covariance.variance() - explained, 1e-8))


def corrected_memory(
    covariance: Covariance,
    indices: Sequence[int],
    log_memory: Array,
    ran_out: Sequence[bool],
    peaks: Sequence[float | None],
    spread: float,
) -> Array:
    """Maximum a posteriori error [n] of `log_memory` = log(peak / capacity).

    Likelihood of the layouts at `indices`: logistic with scale `spread` for running out of memory
    or not; Gaussian with that standard deviation where a peak was measured (`peaks` are
    log(measured peak / capacity)). Newton's method on the log posterior at these layouts.
    """
    if not indices:
        return np.zeros_like(log_memory)
    cross = covariance.between(indices)
    prior = cross[list(indices)] + 1e-8 * np.eye(len(indices))
    inverse = np.linalg.inv(prior)
    predicted = log_memory[list(indices)]
    measured = np.array([np.nan if peak is None else peak for peak in peaks])
    has_peak = ~np.isnan(measured)
    sign = np.where(ran_out, -1.0, 1.0)
    error = np.zeros(len(indices))
    for _ in range(_NEWTON_STEPS):
        # Probability of the opposite outcome; slope and curvature of the log likelihood.
        miss = 1 / (1 + np.exp(np.clip(-sign * (predicted + error) / spread, -30, 30)))
        slope = np.where(
            has_peak, (measured - predicted - error) / spread**2, -sign * miss / spread
        )
        curvature = np.where(has_peak, 1 / spread**2, miss * (1 - miss) / spread**2)
        gradient = slope - inverse @ error
        error = error + np.linalg.solve(np.diag(curvature) + inverse, gradient)
    result: Array = cross @ (inverse @ error)
    return result
