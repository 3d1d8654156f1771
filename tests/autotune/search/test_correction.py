"""Corrections that grow by one trial at a time are those that all trials give at once."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.cost.columns import Array
from autotune.search.correction import Covariance, MemoryCorrection, Regression
from tests.conftest import examples

COUNT = 12
_random = np.random.default_rng(1)
PRIOR = Covariance(
    factors=0.3 * _random.standard_normal((COUNT, 4)),
    features=_random.integers(0, 3, (COUNT, 5)).astype(float),
    local=0.1,
)
LOG_MEMORY = 0.3 * _random.standard_normal(COUNT)
SPREAD = 0.1

indices = st.integers(0, COUNT - 1)
errors = st.floats(-1, 1)


@given(
    measured=st.lists(st.tuples(indices, errors, st.sampled_from([0.01, 0.03, 0.2])), max_size=20)
)
def test_the_regression_is_that_of_all_measurements_at_once(
    measured: list[tuple[int, float, float]],
) -> None:
    regression = Regression(PRIOR)
    for measurement in measured:
        regression.measure(*measurement)
    everything = PRIOR.between(range(COUNT))
    mean, covariance = np.zeros(COUNT), everything
    if measured:
        at, error, noise = (np.array(column) for column in zip(*measured, strict=True))
        cross = everything[:, at]
        of_measurements = cross[at] + np.diag(noise**2)
        mean = cross @ np.linalg.solve(of_measurements, error)
        covariance = everything - cross @ np.linalg.solve(of_measurements, cross.T)
    assert regression.mean == pytest.approx(mean, abs=1e-8)
    assert regression.variance == pytest.approx(np.diag(covariance), abs=1e-8)
    for index in range(COUNT):
        assert regression.covariance_with(index) == pytest.approx(covariance[index], abs=1e-8)


observations = st.lists(
    st.tuples(indices, st.booleans(), st.none() | errors).map(
        lambda seen: (seen[0], seen[1], None if seen[1] else seen[2])
    ),
    max_size=20,
)


def slope_of_posterior(
    seen: Sequence[tuple[int, bool, float | None]], error: Array
) -> tuple[Array, Array]:
    """Gradient of the log posterior at the observed layouts' errors, times their covariance; and
    the mean of all layouts that those errors imply."""
    at = [index for index, _, _ in seen]
    gradient = []
    for (index, ran_out, peak), own in zip(seen, error, strict=True):
        memory = LOG_MEMORY[index] + own
        if peak is not None:
            gradient.append((peak - memory) / SPREAD**2)
        elif ran_out:
            gradient.append(1 / (1 + np.exp(memory / SPREAD)) / SPREAD)
        else:
            gradient.append(-1 / (1 + np.exp(-memory / SPREAD)) / SPREAD)
    implied = PRIOR.between(at) @ np.array(gradient)
    return implied[at] - error, implied


@examples(200)
@given(seen=observations)
def test_the_memory_correction_is_the_mode_of_the_posterior(
    seen: list[tuple[int, bool, float | None]],
) -> None:
    """At the mode the errors are the prior covariance times the likelihood's gradient."""
    correction = MemoryCorrection(PRIOR, LOG_MEMORY, SPREAD)
    for index, ran_out, peak in seen:
        correction.observe(index, ran_out=ran_out, peak=peak)
    last = {index: (index, ran_out, peak) for index, ran_out, peak in seen}
    kept = list(last.values())
    if not kept:
        assert not correction.mean.any()
        return
    slope, implied = slope_of_posterior(kept, correction.mean[list(last)])
    assert slope == pytest.approx(np.zeros(len(kept)), abs=1e-4)
    assert correction.mean == pytest.approx(implied, abs=1e-4)


def test_a_trial_is_compared_once_with_every_layout_whatever_the_trials_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared = []

    def counted(self: Covariance, indices: Sequence[int]) -> Array:
        compared.append(len(indices))
        return between(self, indices)

    between = Covariance.between
    monkeypatch.setattr(Covariance, "between", counted)
    regression = Regression(PRIOR)
    correction = MemoryCorrection(PRIOR, LOG_MEMORY, SPREAD)
    for index in range(COUNT):
        compared.clear()
        regression.measure(index, 0.1, 0.01)
        correction.observe(index, ran_out=index % 3 == 0, peak=0.1 if index % 3 == 1 else None)
        assert correction.mean.shape == (COUNT,)
        assert sum(compared) == 2
