"""Predictions averaged over the trainers that the training code may be (Bayesian model averaging).

Each trainer's predictions are corrected by the trials on their own. The weight of a trainer is the
probability that it explains the trials, so that a few of them tell which trainer it resembles.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import softmax

from autotune.cost.columns import Array
from autotune.search.correction import Covariance, MemoryCorrection, Regression, features_of
from autotune.search.prior import Expected, Prior

# Probability before any trial that the training code is the trainer that it is said to be.
_AS_STATED = 0.8
# Probability that one trainer describes both time and memory; else they are independent, as where
# training code keeps the states of one trainer and overlaps like another.
_ONE_TRAINER = 0.5
# Standard deviations in the logarithm, as multiples of the cost model's known error on the device
# (`time_spread`, `memory_spread`): of effects that the formulas leave out, and of a measured peak.
_LOCAL_TIME = 0.5
_LOCAL_MEMORY = 1.0
_NOISE_OF_MEMORY = 0.25
# Errors of memory are alike where the same causes take the same shares of the device's memory: a
# tenth of it is as far as one doubling of a layout's size.
_PER_SHARE = 10.0
_SAME_SHARE = 1e-6
_LEAST_VARIANCE = 1e-8

Indices = NDArray[np.int64]


class AveragedPredictions:
    """Time and memory of n layouts, by each trainer of the prior and averaged."""

    def __init__(self, prior: Prior) -> None:
        """Without trials."""
        trainers = prior.trainers
        self._trainers = trainers
        features = features_of(prior.layouts)
        self._time = [
            Regression(Covariance(t.time_factors, features, _LOCAL_TIME * prior.time_spread))
            for t in trainers
        ]
        self._memory = [_memory_of(trainer, prior.memory_spread) for trainer in trainers]
        self._log_prior = np.log(_prior_of_pairs(len(trainers)))
        self._ran_out_alike = np.zeros(len(prior.layouts), dtype=np.bool_)

    def measure(self, index: int, log_seconds: float, noise: float) -> None:
        """Learn the step time of the layout at `index`; `noise` is its standard deviation."""
        for trainer, time in zip(self._trainers, self._time, strict=True):
            time.measure(index, log_seconds - float(trainer.log_seconds[index]), noise)

    def observe_memory(self, index: int, *, ran_out: bool, peak: float | None) -> None:
        """Learn whether the layout at `index` ran out of memory, and its log(peak / capacity)."""
        for memory in self._memory:
            memory.observe(index, ran_out=ran_out, peak=peak)
        if ran_out:
            shares = self._trainers[0].memory_shares
            difference = np.abs(shares - shares[index]).max(axis=1)
            self._ran_out_alike |= difference < _SAME_SHARE

    def log_seconds(self, indices: Indices) -> Array:
        """Expected log of the step time of the layouts at `indices`."""
        return self._averaged(self._time_of, self._weights[0], indices)

    def log_memory(self, indices: Indices) -> Array:
        """Expected log(peak / capacity) of the layouts at `indices`."""

        def of_trainer(number: int, indices: Indices) -> Array:
            memory: Array = self._trainers[number].log_memory[indices]
            return memory + self._memory[number].mean[indices]

        return self._averaged(of_trainer, self._weights[1], indices)

    def fit_probability(self, indices: Indices, *, as_stated: bool = False) -> Array:
        """Probability that the layouts at `indices` do not run out of memory; `as_stated`: if the
        training code is the trainer that it is said to be. 0 for a layout that takes the same
        memory for the same causes as one that ran out: it has another kernel, for example."""
        weights = self._only_stated if as_stated else self._weights[1]

        def of_trainer(number: int, indices: Indices) -> Array:
            return self._memory[number].fit_probability(indices)

        probability = self._averaged(of_trainer, weights, indices)
        probability[self._ran_out_alike[indices]] = 0.0
        return probability

    def speed(self, indices: Indices) -> Array:
        """Speed of the layouts at `indices` over that of the fastest, as stated."""
        mean = self._time_of(0, indices)
        result: Array = np.exp(mean.min() - mean)
        return result

    def improvement(self, indices: Indices, best: float) -> Array:
        """Expected improvement of the layouts at `indices` over `best`, of the log of step time."""

        def of_trainer(number: int, indices: Indices) -> Array:
            variance = self._time[number].variance[indices]
            deviation = np.sqrt(np.maximum(variance, _LEAST_VARIANCE))
            normalised = (best - self._time_of(number, indices)) / deviation
            result: Array = deviation * (
                normalised * stats.norm.cdf(normalised) + stats.norm.pdf(normalised)
            )
            return result

        return self._averaged(of_trainer, self._weights[0], indices)

    @property
    def _weights(self) -> tuple[Array, Array]:
        """Probabilities of the trainers, for time and for memory."""
        time = np.array([regression.log_evidence for regression in self._time])
        memory = np.array([correction.log_evidence for correction in self._memory])
        pairs = softmax(self._log_prior + time[:, None] + memory[None, :])
        return pairs.sum(axis=1), pairs.sum(axis=0)

    @property
    def _only_stated(self) -> Array:
        weights: Array = np.eye(len(self._trainers))[0]
        return weights

    def _time_of(self, number: int, indices: Indices) -> Array:
        mean: Array = self._trainers[number].log_seconds[indices]
        return mean + self._time[number].mean[indices]

    def _averaged(
        self, of_trainer: Callable[[int, Indices], Array], weights: Array, indices: Indices
    ) -> Array:
        """The mean over trainers; those whose weight is 0 are left out."""
        result = np.zeros(len(indices))
        for number in map(int, np.flatnonzero(weights)):
            result += weights[number] * of_trainer(number, indices)
        return result


def _memory_of(trainer: Expected, spread: float) -> MemoryCorrection:
    covariance = Covariance(
        trainer.memory_factors, _PER_SHARE * trainer.memory_shares, _LOCAL_MEMORY * spread
    )
    return MemoryCorrection(covariance, trainer.log_memory, _NOISE_OF_MEMORY * spread)


def _prior_of_pairs(count: int) -> Array:
    """[count, count] probability of each pair of trainers, for time and for memory."""
    single = np.full(count, (1 - _AS_STATED) / max(count - 1, 1))
    single[0] = _AS_STATED if count > 1 else 1.0
    return _ONE_TRAINER * np.diag(single) + (1 - _ONE_TRAINER) * np.outer(single, single)
