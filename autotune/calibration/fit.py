"""Fit the cost model's constants to runs, and measure the accuracy on hold-out runs.

Step times: robust least squares of log residuals, because single rows are off by tens of per cent
for reasons outside any layout. Memory: maximum likelihood of which layouts ran out of memory, and
of measured peaks. Each constant has a log-normal prior whose standard deviation is its `spread`, so
constants that the runs do not determine keep their values.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from autotune.calibration.recorded_runs import RecordedRun, Sweep
from autotune.cluster import Cluster
from autotune.cost.columns import Array
from autotune.cost.constants import Constants, known_constants
from autotune.cost.model import CostModel, Prepared
from autotune.cost.trainers import StatedTrainer, constants_for
from autotune.hardware import Device, Measured, Network
from autotune.trial.trial import Outcome

# Scale of the soft-L1 loss: log residuals beyond it count less and less.
_OUTLIER = 0.02
# Weight of a constant's prior relative to one residual at the outlier scale.
_TIME_PRIOR = 0.04
_MEMORY_PRIOR = 0.5
# Starting points of the memory fit.
_MEMORY_STARTS = 3
# Scale of the memory error under which the hold-out sweeps are most likely (0.02 to 0.1 were tried;
# DECISIONS.md).
_MEMORY_SPREAD = 0.03


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Accuracy of the predictions on one sweep."""

    rows: int
    ok: int
    oom: int
    step_time_mape: float | None
    """Mean absolute error relative to the measured time, of layouts that ran; null without any."""
    oom_f1: float | None
    """F1 score of "out of memory", predicted where fit_probability < 0.5; null without any."""
    oom_precision: float | None
    oom_recall: float | None
    spearman: float | None
    """Rank correlation of predicted and measured times; null below three different times."""


def fit(
    sweeps: Sequence[Sweep], start: Constants | None = None, *, only_of: str | None = None
) -> dict[str, float]:
    """Constants fitted to all sweeps, which must be of one trainer on one device.

    The fit begins with the constants `start`, which are also the centre of the prior; None: those
    known before any fit. `only_of`: only constants of that kind (`Constant.of`) are fitted; None:
    all. Deterministic.
    """
    if start is None:
        start = constants_before_any_fit(sweeps[0].cluster, sweeps[0].trainer)
    constants = dict(start)
    models = [
        CostModel(s.model, s.precision, s.cluster, trainer=s.trainer, constants=constants)
        for s in sweeps
    ]
    constants = _fit_memory(models, sweeps, constants, only_of)
    return _fit_time(models, sweeps, constants, only_of)


def leave_one_out(sweeps: Sequence[Sweep]) -> dict[str, dict[str, float]]:
    """Leave-one-out: for each sweep the constants fitted to all others. Needs two sweeps."""
    return {
        held_out.name: fit([sweep for sweep in sweeps if sweep is not held_out])
        for held_out in sweeps
    }


def accuracy(sweep: Sweep, constants: Constants) -> Accuracy:
    """Accuracy of predictions with these constants on a sweep."""
    model = CostModel(
        sweep.model, sweep.precision, sweep.cluster, trainer=sweep.trainer, constants=constants
    )
    estimates = model.estimate([run.layout for run in sweep.runs])
    timed = np.array([run.step_seconds is not None for run in sweep.runs])
    measured = np.array([run.step_seconds for run in sweep.timed], dtype=float)
    predicted = estimates.step_seconds[timed]
    known = np.array([run.outcome in (Outcome.OK, Outcome.OOM) for run in sweep.runs])
    ran_out = np.array([run.outcome is Outcome.OOM for run in sweep.runs])[known]
    predicted_oom = (estimates.fit_probability < 0.5)[known]
    true_positives = int((predicted_oom & ran_out).sum())
    precision = true_positives / predicted_oom.sum() if predicted_oom.any() else None
    recall = true_positives / ran_out.sum() if ran_out.any() else None
    positives = predicted_oom.sum() + ran_out.sum()
    return Accuracy(
        rows=len(sweep.runs),
        ok=len(measured),
        oom=int(ran_out.sum()),
        step_time_mape=float(np.mean(np.abs(predicted / measured - 1))) if timed.any() else None,
        oom_f1=2 * true_positives / positives if positives else None,
        oom_precision=precision,
        oom_recall=recall,
        spearman=_rank_correlation(predicted, measured),
    )


def _rank_correlation(predicted: Array, measured: Array) -> float | None:
    if min(len(np.unique(predicted)), len(np.unique(measured))) < 3:
        return None
    return float(stats.spearmanr(predicted, measured).statistic)


def _fit_time(
    models: Sequence[CostModel],
    sweeps: Sequence[Sweep],
    constants: dict[str, float],
    only_of: str | None,
) -> dict[str, float]:
    prepared = _prepared(models, [sweep.timed for sweep in sweeps])
    seconds = [run.step_seconds for sweep in sweeps for run in sweep.timed]
    measured = np.log(np.array(seconds, dtype=float))
    names = _names_to_fit(constants, "time", only_of)
    if not len(measured) or not names:
        return constants

    def residuals(offsets: Array) -> Array:
        moved = _with_offsets(constants, names, offsets)
        predicted = np.concatenate(
            [m.estimate(layouts, moved).step_seconds for m, layouts in prepared]
        )
        return np.concatenate([np.log(predicted) - measured, _TIME_PRIOR * offsets])

    solution = optimize.least_squares(
        residuals, np.zeros(len(names)), loss="soft_l1", f_scale=_OUTLIER, max_nfev=100
    )
    fitted = _with_offsets(constants, names, solution.x)
    errors = residuals(solution.x)[: len(measured)]
    # Robust standard deviation: 1.48 median absolute deviations.
    fitted["time_spread"] = max(0.01, float(1.48 * np.median(np.abs(errors))))
    return fitted


def _fit_memory(
    models: Sequence[CostModel],
    sweeps: Sequence[Sweep],
    constants: dict[str, float],
    only_of: str | None,
) -> dict[str, float]:
    runs = [[r for r in s.runs if r.outcome in (Outcome.OK, Outcome.OOM)] for s in sweeps]
    prepared = _prepared(models, runs)
    ran_out = np.array([run.outcome is Outcome.OOM for sweep in runs for run in sweep])
    peaks = np.array([run.peak_memory_gib or np.nan for sweep in runs for run in sweep])
    measured = ~np.isnan(peaks) & ~ran_out
    names = _names_to_fit(constants, "memory", only_of)
    if not len(ran_out) or not names:
        return constants
    spread = _MEMORY_SPREAD

    def objective(offsets: Array) -> float:
        moved = _with_offsets(constants, names, offsets)
        peaks_and_capacities = [
            (model.memory(layouts, moved).total, model.capacity_gib(moved))
            for model, layouts in prepared
        ]
        predicted = np.concatenate([peak for peak, _ in peaks_and_capacities])
        excess = (
            np.concatenate([np.log(peak / capacity) for peak, capacity in peaks_and_capacities])
            / spread
        )
        excess = np.clip(excess, -12, 12)
        log_loss = np.where(ran_out, np.logaddexp(0, -excess), np.logaddexp(0, excess))
        error = np.log(predicted[measured] / peaks[measured]) / (2 * spread)
        return float(
            log_loss[~measured].sum()
            + np.sqrt(1 + error**2).sum()
            + _MEMORY_PRIOR * (offsets**2).sum()
        )

    best = None
    for seed in range(_MEMORY_STARTS):
        # The likelihood has flat parts and kinks: use several starts and a derivative-free method.
        offsets = np.random.default_rng(seed).normal(0, 0.5 if seed else 0.0, len(names))
        rough = optimize.minimize(objective, offsets, method="L-BFGS-B", options={"maxiter": 300})
        refined = optimize.minimize(
            objective,
            rough.x,
            method="Powell",
            options={"maxiter": 6000, "xtol": 1e-3, "ftol": 1e-5},
        )
        if best is None or refined.fun < best.fun:
            best = refined
    assert best is not None
    fitted = _with_offsets(constants, names, best.x)
    excess = [
        np.log(model.memory(layouts, fitted).total / model.capacity_gib(fitted))
        for model, layouts in prepared
    ]
    return {**fitted, "memory_spread": _likeliest_spread(np.concatenate(excess), ran_out)}


def _likeliest_spread(excess: Array, ran_out: NDArray[np.bool_]) -> float:
    """Maximum-likelihood scale of a logistic error, given the outcomes.

    At least the scale of the hold-out sweeps, because a fit is too good on its own runs.
    """
    sign = np.where(ran_out, -1.0, 1.0)
    scales = np.array([_MEMORY_SPREAD, *np.arange(0.04, 0.21, 0.01)])
    log_loss = [np.logaddexp(0, sign * excess / scale).sum() for scale in scales]
    return float(scales[int(np.argmin(log_loss))])


def constants_before_any_fit(cluster: Cluster, trainer: StatedTrainer) -> Constants:
    """The constants of the cluster's device and network without any fitted ones."""
    return constants_for(
        before_any_fit(cluster.device), trainer, network_before_any_fit(cluster.links)
    )


def before_any_fit(device: Device) -> Device:
    """The device without fitted constants; those that a fit replaced are restored."""
    return dataclasses.replace(
        device,
        constants=_unfitted(device.constants),
        trainers={name: _unfitted(constants) for name, constants in device.trainers.items()},
    )


def network_before_any_fit(network: Network) -> Network:
    """The network without fitted constants; those that a fit replaced are restored."""
    return dataclasses.replace(network, constants=_unfitted(network.constants))


def _unfitted(constants: Mapping[str, Measured]) -> dict[str, Measured]:
    unfitted = {}
    for name, constant in constants.items():
        if constant.kind != "fitted":
            unfitted[name] = constant
        elif constant.unfitted is not None:
            replaced = constant.unfitted
            unfitted[name] = Measured(
                value=replaced.value, kind=replaced.kind, source=replaced.source
            )
    return unfitted


def _names_to_fit(constants: Mapping[str, float], predicts: str, only_of: str | None) -> list[str]:
    known = known_constants()
    return [
        name
        for name, constant in known.items()
        if constant.predicts == predicts
        and only_of in (None, constant.of)
        and constant.spread > 0
        and constants[name] > 0
    ]


def _with_offsets(
    constants: Mapping[str, float], names: Sequence[str], offsets: Array
) -> dict[str, float]:
    """The constants, `names` multiplied by exp(spread * offset)."""
    known = known_constants()
    factors = np.exp([known[name].spread for name in names] * offsets)
    return {
        **constants,
        **{n: constants[n] * float(f) for n, f in zip(names, factors, strict=True)},
    }


def _prepared(
    models: Sequence[CostModel], runs: Sequence[Sequence[RecordedRun]]
) -> list[tuple[CostModel, Prepared]]:
    pairs = zip(models, runs, strict=True)
    return [
        (model, model.prepare([run.layout for run in sweep])) for model, sweep in pairs if sweep
    ]
