"""How trials correct the cost model: Gaussian processes over the logarithm of its error.

The covariance of two layouts' errors has two parts: wrong constants, which both feel in proportion
to their sensitivities, and what the formulas leave out, which layouts share that differ little.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from autotune.cost.columns import Array, mapped
from autotune.layout import DIMENSIONS, Layout

# Distance in `features` over which what the formulas leave out is shared.
_LENGTH = 1.5
_NEWTON_STEPS = 20


@dataclasses.dataclass(frozen=True, slots=True)
class Covariance:
    """Prior covariance between layouts' errors."""

    factors: Array
    """[n, k] effects of wrong constants."""
    features: Array
    """[n, f] places of the layouts."""
    local: float
    """Standard deviation of what the formulas leave out."""

    def between(self, places: Sequence[int]) -> Array:
        """[n, m] covariance of all layouts with those at `places`."""
        some = self.features[places]
        squared = (
            (self.features**2).sum(axis=1)[:, None]
            + (some**2).sum(axis=1)[None, :]
            - 2 * self.features @ some.T
        )
        near = np.exp(-np.maximum(squared, 0) / (2 * _LENGTH**2))
        result: Array = self.factors @ self.factors[places].T + self.local**2 * near
        return result

    def variance(self) -> Array:
        """[n] prior variance of each layout."""
        result: Array = (self.factors**2).sum(axis=1) + self.local**2
        return result


def features_of(layouts: Sequence[Layout]) -> Array:
    """Where layouts lie [n, f]: the places that their dimensions declare, side by side."""
    places = [
        mapped([getattr(layout, name) for layout in layouts], dimension.place)
        for name, dimension in DIMENSIONS.items()
        if dimension.place is not None
    ]
    return np.column_stack([np.array(place, dtype=np.float64) for place in places])


def corrected_time(
    covariance: Covariance, places: Sequence[int], errors: Sequence[float], noise: Sequence[float]
) -> tuple[Array, Array]:
    """Mean and standard deviation [n] of the error, given some that were measured.

    `errors` are logarithms of measured over predicted time, `noise` their standard deviations.
    """
    if not places:
        variance = covariance.variance()
        return np.zeros_like(variance), np.sqrt(variance)
    cross = covariance.between(places)
    among = cross[list(places)] + np.diag(np.square(noise))
    mean = cross @ np.linalg.solve(among, np.array(errors))
    explained = np.einsum("nm,mn->n", cross, np.linalg.solve(among, cross.T))
    return mean, np.sqrt(np.maximum(covariance.variance() - explained, 1e-8))


def corrected_memory(
    covariance: Covariance,
    places: Sequence[int],
    log_memory: Array,
    ran_out: Sequence[bool],
    peaks: Sequence[float | None],
    spread: float,
) -> Array:
    """Most probable error [n] of log_memory, given what ran out, what did not, and peaks.

    A layout that ran out says that its memory is above the capacity, with a logistic error of that
    `spread`; one that fitted, that it is below; a measured peak (logarithm of its share of the
    capacity) says where it is. Newton's method on the log-posterior at the observed layouts.
    """
    if not places:
        return np.zeros_like(log_memory)
    cross = covariance.between(places)
    among = cross[list(places)] + 1e-8 * np.eye(len(places))
    inverse = np.linalg.inv(among)
    predicted = log_memory[list(places)]
    measured = np.array([np.nan if peak is None else peak for peak in peaks])
    known = ~np.isnan(measured)
    side = np.where(ran_out, -1.0, 1.0)
    error = np.zeros(len(places))
    for _ in range(_NEWTON_STEPS):
        wrong = 1 / (1 + np.exp(np.clip(-side * (predicted + error) / spread, -30, 30)))
        slope = np.where(known, (measured - predicted - error) / spread**2, -side * wrong / spread)
        bend = np.where(known, 1 / spread**2, wrong * (1 - wrong) / spread**2)
        gradient = slope - inverse @ error
        error = error + np.linalg.solve(np.diag(bend) + inverse, gradient)
    result: Array = cross @ (inverse @ error)
    return result
