"""Corrections that grow by one trial at a time are those that all trials give at once."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from autotune.cost.columns import Array
from autotune.search.correction import Covariance, MemoryCorrection, Regression

COUNT = 12
_random = np.random.default_rng(1)
PRIOR = Covariance(
    factors=0.3 * _random.standard_normal((COUNT, 4)),
    features=_random.integers(0, 3, (COUNT, 5)).astype(float),
    local=0.1,
)
LOG_MEMORY = 0.3 * _random.standard_normal(COUNT)
NOISE = 0.02

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


@given(index=indices, bound=errors, noise=st.sampled_from([0.01, 0.1]), is_above=st.booleans())
def test_an_outcome_gives_the_mean_and_the_variance_that_it_has(
    index: int, bound: float, noise: float, is_above: bool
) -> None:
    """Compared with integrals over the error of the layout."""
    regression = Regression(PRIOR)
    before = regression.covariance_with(index)
    regression.compare(index, bound, noise, is_above=is_above)
    deviation = np.sqrt(before[index])
    error = np.linspace(-8, 8, 20_001) * deviation
    sign = 1 if is_above else -1
    density = stats.norm.pdf(error, scale=deviation) * stats.norm.cdf(
        sign * (error - bound) / noise
    )
    probability = np.trapezoid(density, error)
    assume(probability > 1e-6)
    mean = np.trapezoid(density * error, error) / probability
    variance = np.trapezoid(density * (error - mean) ** 2, error) / probability
    assert regression.log_evidence == pytest.approx(np.log(probability), abs=1e-3)
    assert regression.mean[index] == pytest.approx(mean, abs=1e-3)
    assert regression.variance[index] == pytest.approx(variance, abs=1e-3)
    # The others follow as they are correlated.
    assert regression.mean == pytest.approx(before / before[index] * mean, abs=1e-3)


@given(
    seen=st.lists(
        st.tuples(indices, st.booleans(), st.none() | errors).map(
            lambda seen: (seen[0], seen[1], None if seen[1] else seen[2])
        ),
        max_size=20,
    )
)
def test_an_observation_of_memory_replaces_that_of_the_same_layout(
    seen: list[tuple[int, bool, float | None]],
) -> None:
    correction, expected = (MemoryCorrection(PRIOR, LOG_MEMORY, NOISE) for _ in range(2))
    for index, ran_out, peak in seen:
        correction.observe(index, ran_out=ran_out, peak=peak)
    for index, (ran_out, peak) in {index: observed for index, *observed in seen}.items():
        expected.observe(index, ran_out=ran_out, peak=peak)
    assert correction.mean == pytest.approx(expected.mean, abs=1e-9)
    assert correction.log_evidence == pytest.approx(expected.log_evidence)


def test_whoever_is_seen_to_fit_probably_fits() -> None:
    everything = np.arange(COUNT)
    for ran_out in (False, True):
        correction = MemoryCorrection(PRIOR, LOG_MEMORY, NOISE)
        before = correction.fit_probability(everything)
        correction.observe(3, ran_out=ran_out, peak=None)
        after = correction.fit_probability(everything)
        assert after[3] < 0.2 if ran_out else after[3] > 0.8
        alike = PRIOR.between([3])[:, 0] > 0.5 * PRIOR.variance()[3]
        assert ((after < before) == ran_out)[alike].all()


def test_the_evidence_of_measurements_is_their_joint_density() -> None:
    regression = Regression(PRIOR)
    at, error, noise = [2, 5, 2], np.array([0.1, -0.2, 0.15]), 0.05
    for index, value in zip(at, error, strict=True):
        regression.measure(index, value, noise)
    covariance = PRIOR.between(at)[at] + noise**2 * np.eye(3)
    expected = stats.multivariate_normal.logpdf(error, cov=covariance)
    assert regression.log_evidence == pytest.approx(expected)


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
    correction = MemoryCorrection(PRIOR, LOG_MEMORY, NOISE)
    for index in range(COUNT):
        compared.clear()
        regression.measure(index, 0.1, 0.01)
        correction.observe(index, ran_out=index % 3 == 0, peak=0.1 if index % 3 == 1 else None)
        assert correction.mean.shape == (COUNT,)
        assert sum(compared) == 2
