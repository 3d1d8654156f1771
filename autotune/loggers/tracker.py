"""What loggers have in common: which figures of a trial are logged, and when."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from autotune.request import Request
from autotune.store.record import TrialRecord
from autotune.trial.trial import StepReport, TrialSpec

Parameter = str | int | float | bool

_TRIAL_FIGURES = (
    "step_seconds",
    "step_seconds_iqr",
    "tokens_per_second_per_gpu",
    "mfu",
    "hardware_flops_utilisation",
    "peak_memory_gib",
    "final_loss",
    "predicted_step_seconds",
    "predicted_peak_memory_gib",
    "predicted_fit_probability",
    "startup_seconds",
    "gpu_seconds",
)


class Tracker(Protocol):
    """An experiment tracker. Whatever it raises ends the logging, never the search."""

    def open(self, space: str, directory: Path) -> None:
        """Called once: the name of the space and the run directory of the search."""

    def begin(self, name: str, parameters: Mapping[str, Parameter]) -> None:
        """Begin the run of a trial."""

    def step(self, step: int, figures: Mapping[str, float]) -> None:
        """Add figures of a step to the current run."""

    def end(self, record: TrialRecord, figures: Mapping[str, float]) -> None:
        """End the current run."""

    def abandon(self) -> None:
        """End the current run as one that was cut short."""

    def close(self) -> None:
        """Nothing is logged any more."""


class LogsTrials:
    """Logs each trial as a run of a tracker. A `Listener`.

    Figures of a step begin with ``step/``, those of a whole trial with ``trial/``. What was not
    measured is not logged.
    """

    def __init__(self, tracker: Callable[[], Tracker]) -> None:
        """The tracker is made when the search begins."""
        self._make = tracker
        self._tracker: Tracker | None = None
        self._is_running = False

    def search_begins(
        self, request: Request, directory: Path, finished: Sequence[TrialRecord]
    ) -> None:
        """Trials that finished before are in the log already, if it was asked for then."""
        self._request = request
        self._tracker = self._make()
        self._tracker.open(request.space.name, directory)

    def trial_started(self, spec: TrialSpec) -> None:
        self._cut_short()
        parameters = {
            "space": self._request.space.name,
            "trainable": self._request.trainable,
            "simulated": self._request.simulated,
            **spec.layout.columns(),
        }
        self._to.begin(f"{spec.trial_id} {spec.layout.describe()}", parameters)
        self._is_running = True

    def step_done(self, spec: TrialSpec, step: StepReport) -> None:
        figures = {
            "step/step_seconds": step.step_seconds,
            "step/loss": step.loss,
            "step/grad_norm": step.grad_norm,
            "step/peak_memory_gib": step.peak_memory_gib,
            "step/micro_batches": step.micro_batches,
        }
        self._to.step(step.step, _known(figures))

    def trial_begins_again(self, spec: TrialSpec, reason: str) -> None:
        self.trial_started(spec)

    def trial_finished(self, record: TrialRecord) -> None:
        row = record.row()
        self._to.end(record, _known({f"trial/{name}": row[name] for name in _TRIAL_FIGURES}))
        self._is_running = False

    def search_ends(self) -> None:
        self._cut_short()
        self._to.close()

    @property
    def _to(self) -> Tracker:
        assert self._tracker is not None, "the search has begun"
        return self._tracker

    def _cut_short(self) -> None:
        if self._is_running:
            self._is_running = False
            self._to.abandon()


def _known(figures: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in figures.items() if value is not None}
