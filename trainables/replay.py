"""A trainable that trains nothing and returns the results of recorded runs."""

from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from autotune.calibration.recorded_runs import RecordedRun, read_sweeps
from autotune.cluster import Cluster
from autotune.errors import InputError
from autotune.inputs import shown
from autotune.trial.trainable import (
    RankHost,
    Trainable,
    TrainableDescription,
    TrainableSetup,
)
from autotune.trial.trial import Ended, Outcome, RankStep, StepReport, TrialSpec


class ReplayTrainable:
    """Replays recorded runs. A `Trainable`."""

    def __init__(self, runs: Sequence[RecordedRun]) -> None:
        """`runs` hold every layout that is asked for."""
        self._runs = {run.layout: run for run in runs}

    @property
    def host_factory(self) -> Callable[..., RankHost] | None:
        """No processes."""
        return None

    def check(self, cluster: Cluster, hosts: Sequence[RankHost]) -> None:
        """Every node is fit."""

    def run(
        self, spec: TrialSpec, hosts: Sequence[RankHost]
    ) -> Generator[StepReport | Ended, None, None]:
        """The recorded step time for each step, or the recorded failure."""
        run = self._runs[spec.layout]
        if run.step_seconds is None:
            yield Ended(outcome=run.outcome, reason=f"replayed: recorded as {run.outcome}")
            return
        for step in range(spec.steps):
            slowest = RankStep(
                rank=0,
                step=step,
                step_seconds=run.step_seconds,
                loss=None,
                grad_norm=None,
                peak_memory_gib=run.peak_memory_gib,
                peak_reserved_gib=None,
            )
            yield StepReport(step=step, ranks=(slowest,))
        yield Ended(outcome=Outcome.OK, reason="")


def _make(setup: TrainableSetup) -> Trainable:
    assert setup.runs is not None and setup.layouts is not None, "a request to replay has both"
    sweeps = {sweep.name: sweep for sweep in read_sweeps(Path(setup.runs))}
    found = sweeps.get(setup.space.name)
    if found is None or not set(setup.layouts) <= {run.layout for run in found.runs}:
        raise InputError(
            f"{shown(setup.runs)} no longer holds what was to be replayed", field="runs"
        )
    return ReplayTrainable(found.runs)


DESCRIPTION = TrainableDescription(
    name="replay",
    trains="recorded",
    trainer="hagemann2023",
    make=_make,
    export_format=None,  # its kernels are of another code base
)
