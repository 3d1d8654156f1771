"""How far a search came with how many trials, beside what other ways would have cost.

What random order and running every layout would have cost is predicted: by the cost model,
corrected by the median error of the run's own trials, with their figures where there are some.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from autotune.cost.columns import Array
from autotune.report.facts import RunFacts
from autotune.trial.trial import Outcome

CLOSE = 0.01
"""A layout at most this much slower than the best one counts as equally fast."""
_QUANTILES = {"low": 0.1, "median": 0.5, "high": 0.9}
_MOST_POINTS = 60


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """Cost of the search, and predicted cost of others."""

    trials: int | None
    """Exploring trials until the best layout was found, that trial included; None where its
    exploring trial is not on record."""
    gpu_hours: float
    """Device hours of all trials."""
    layouts: int
    """Layouts of the space."""
    brute_force_gpu_hours: float | None
    """Predicted device hours of a trial of each layout; None where nothing is predicted."""
    random_trials: float | None
    """Predicted trials, on average, until random order finds a layout as fast as the search's best
    (`CLOSE`)."""
    random_gpu_hours: float | None
    """Predicted device hours of these."""
    random_curve: Sequence[dict[str, Any]]
    """Best step time that random order has found by then: trials, gpu_hours, and the median, low
    (10 %) and high (90 %) of step_seconds; null where it has found none."""


def progress(facts: RunFacts) -> list[dict[str, Any]]:
    """The best step time after each exploring trial: trials, gpu_hours, step_seconds (null while
    none has run). Layouts that failed their longer trial do not count."""
    rows: list[dict[str, Any]] = []
    best: float | None = None
    gpu_seconds = 0.0
    for number, record in enumerate(facts.explored, start=1):
        seconds = record.measurement.step_seconds
        gpu_seconds += record.gpu_seconds
        if facts.outcome_of(record) is Outcome.OK and seconds is not None:
            best = min(seconds, best or seconds)
        rows.append({"trials": number, "gpu_hours": gpu_seconds / 3600, "step_seconds": best})
    return rows


def effort(facts: RunFacts) -> Effort | None:
    """The cost of the search and of others; None where no layout ran."""
    if facts.best is None:
        return None
    layouts = facts.request.all_layouts()
    numbered = enumerate(facts.explored, start=1)
    found = next((n for n, record in numbered if record.layout == facts.best.layout), None)
    hours: Array | None = None
    expected = None
    model = facts.cost_model
    if model is not None:
        estimates = model.estimate(layouts)
        seconds = facts.predicted_trial_seconds(layouts, estimates)
        hours = seconds * facts.space.cluster.devices / 3600
        expected = estimates.step_seconds * (facts.time_factor or 1.0)
        expected[estimates.fit_probability < 0.5] = np.inf
        places = {layout: place for place, layout in enumerate(layouts)}
        for record in facts.records:
            expected[places[record.layout]] = np.inf
        for record in facts.sound or facts.ranked[:1]:
            expected[places[record.layout]] = record.measurement.step_seconds or np.inf
    mean_hours = None if hours is None else float(hours.mean())
    close = 0
    if expected is not None:
        fastest = facts.best.measurement.step_seconds or np.inf
        close = int(np.count_nonzero(expected <= fastest * (1 + CLOSE)))
    # Expected place of the first of `close` layouts in a random order of all.
    random_trials = (len(layouts) + 1) / (close + 1) if close else None
    return Effort(
        trials=found,
        gpu_hours=facts.gpu_hours,
        layouts=len(layouts),
        brute_force_gpu_hours=None if hours is None else float(hours.sum()),
        random_trials=random_trials,
        random_gpu_hours=(
            None if random_trials is None or mean_hours is None else random_trials * mean_hours
        ),
        random_curve=(
            []
            if expected is None or mean_hours is None
            else _random_curve(np.sort(expected), mean_hours)
        ),
    )


def _random_curve(step_seconds: Array, hours_per_trial: float) -> list[dict[str, Any]]:
    """The best of k layouts drawn at random without replacement, for k up to all of them.

    It is among the i fastest with the probability that k draws hold at least one of these.
    """
    count = len(step_seconds)
    points: NDArray[np.int64] = np.unique(
        np.geomspace(1, count, num=min(count, _MOST_POINTS)).round().astype(np.int64)
    )
    ranks = np.arange(1, count + 1)
    slower = count - ranks
    rows = []
    for drawn in map(int, points):
        none = _log_choices(slower, drawn) - _log_choices(np.array([count]), drawn)
        at_least_one = 1 - np.exp(none)
        row: dict[str, Any] = {"trials": drawn, "gpu_hours": drawn * hours_per_trial}
        for name, quantile in _QUANTILES.items():
            seconds = float(step_seconds[int(np.argmax(at_least_one >= quantile - 1e-12))])
            row[name] = seconds if np.isfinite(seconds) else None
        rows.append(row)
    return rows


def _log_choices(of: NDArray[np.int64], number: int) -> Array:
    """Logarithm of the ways to draw `number` of so many in order; -inf where there are fewer."""
    possible = of >= number
    kept = np.where(possible, of, number)
    log: Array = special.gammaln(kept + 1) - special.gammaln(kept - number + 1)
    return np.where(possible, log, -np.inf)
