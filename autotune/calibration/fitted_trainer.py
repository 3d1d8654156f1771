"""A trainer of the user's: which known one it resembles, and its own constants, from its runs.

What a trainer sends and hides is one of a few known ways (`autotune.cost.trainers.alternatives`).
Each is fitted to one half of the runs, and the one that predicts the other half best is taken. The
constants of hardware and network are not fitted: they are those of the files.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from autotune.calibration.fit import fit
from autotune.calibration.recorded_runs import Sweep
from autotune.cost.constants import Constants, bounds_of, known_constants
from autotune.cost.model import CostModel
from autotune.cost.trainers import Trainer, alternatives, constants_for, hiding_all, trainer_of
from autotune.errors import InputError
from autotune.hardware import Measured, Stated
from autotune.trial.trial import Outcome

LEAST_RUNS = 4
"""So many runs at least are needed: two to fit to, and two that are left out."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FittedTrainer:
    """A trainer that was fitted to runs, and what its accuracy follows from."""

    trainer: Trainer
    resembles: str
    """The trainer that it has what it sends and hides from."""
    left_out: tuple[Sweep, ...]
    """The half of the runs that the constants `on_half` were not fitted to."""
    on_half: Constants
    """Constants that were fitted to the other half."""


def fit_trainer(sweeps: Sequence[Sweep], *, name: str, source: str) -> FittedTrainer:
    """The trainer `name` that explains the runs, which must be of one trainer on one device.

    `source` says what it is fitted on. Raises InputError for too few runs.
    """
    counted = sum(len(sweep.runs) for sweep in sweeps)
    if counted < LEAST_RUNS:
        raise InputError(
            f"the runs must have at least {LEAST_RUNS} layouts that ran or ran out of memory, "
            f"got {counted}"
        )
    halves = [[_half(sweep, rest) for sweep in sweeps] for rest in (0, 1)]
    fitted_to, left_out = ([sweep for sweep in half if sweep.runs] for half in halves)
    stated = trainer_of(sweeps[0].trainer)
    tried: list[_Tried] = []

    def best_with(candidates: Iterable[Trainer]) -> _Tried:
        for candidate in candidates:
            if not _lacks_some(candidate, sweeps):
                constants = _fit(candidate, fitted_to)
                tried.append(_Tried(candidate, constants, _misfit(candidate, left_out, constants)))
        return min(tried, key=lambda one: one.misfit)

    best = best_with([stated, *alternatives(stated)]).trainer
    best, on_half, _ = best_with([hiding_all(best)])
    final = _fit(best, sweeps)
    return FittedTrainer(
        trainer=dataclasses.replace(
            best,
            name=name,
            source=f"{source}; what it sends and hides is that of {best.name}",
            constants=_constants_of(best, sweeps, final, source),
        ),
        resembles=best.name,
        left_out=tuple(dataclasses.replace(sweep, trainer=best) for sweep in left_out),
        on_half=on_half,
    )


class _Tried(NamedTuple):
    trainer: Trainer
    on_half: Constants
    misfit: float


def _half(sweep: Sweep, rest: int) -> Sweep:
    return dataclasses.replace(sweep, runs=sweep.runs[rest::2])


def _lacks_some(trainer: Trainer, sweeps: Sequence[Sweep]) -> bool:
    return any(trainer.why_unsupported(run.layout) for sweep in sweeps for run in sweep.runs)


def _start(trainer: Trainer, sweeps: Sequence[Sweep]) -> Constants:
    cluster = sweeps[0].cluster
    return constants_for(cluster.device, trainer, cluster.network)


def _fit(trainer: Trainer, sweeps: Sequence[Sweep]) -> Constants:
    of_trainer = [dataclasses.replace(sweep, trainer=trainer) for sweep in sweeps]
    return fit(of_trainer, _start(trainer, sweeps), only_of="trainer")


def _misfit(trainer: Trainer, sweeps: Sequence[Sweep], constants: Constants) -> float:
    """Sum of the errors of log(step time) and log(peak memory); where a peak is not known, by how
    much the prediction is on the wrong side of the capacity."""
    total = 0.0
    for sweep in sweeps:
        model = CostModel(
            sweep.model, sweep.precision, sweep.cluster, trainer=trainer, constants=constants
        )
        found = model.estimate([run.layout for run in sweep.runs])
        for run, seconds, peak in zip(
            sweep.runs, found.step_seconds, found.peak_memory_gib, strict=True
        ):
            excess = float(np.log(peak / found.capacity_gib))
            if run.outcome is Outcome.OOM:
                total += max(-excess, 0.0)
            elif run.peak_memory_gib is None:
                total += max(excess, 0.0)
            else:
                total += abs(float(np.log(peak / run.peak_memory_gib)))
            if run.step_seconds is not None:
                total += abs(float(np.log(seconds / run.step_seconds)))
    return total


def _constants_of(
    trainer: Trainer, sweeps: Sequence[Sweep], fitted: Constants, source: str
) -> dict[str, Measured]:
    """The constants of the trainer's file: those that the fit changed, and those of `trainer`."""
    before = _start(trainer, sweeps)
    constants = dict(trainer.constants)
    for name, value in fitted.items():
        if known_constants()[name].of != "trainer" or np.isclose(value, before[name], rtol=1e-3):
            continue
        old = constants.get(name)
        lower, upper = bounds_of(name)
        constants[name] = Measured(
            value=float(f"{min(max(value, lower), upper):.4g}"),
            kind="fitted",
            source=source,
            unfitted=old and Stated(value=old.value, kind=old.kind, source=old.source),
        )
    return constants
