"""What is known of a run, in the form in which reports show it: read from its directory once."""

import dataclasses
import functools
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autotune.cost.columns import Array
from autotune.cost.model import CostModel, Estimates
from autotune.cost.uncertainty import step_time_interval
from autotune.errors import InputError
from autotune.layout import DIMENSIONS, SEARCHED, Layout
from autotune.ledger.ledger import INTERRUPTED
from autotune.ledger.ranking import Ranking, equal_within_noise
from autotune.ledger.search_setup import cost_model_of, trial_seconds
from autotune.request import Request
from autotune.space import SearchSpace
from autotune.store.record import TrialRecord
from autotune.store.run_directory import RunStore, open_run
from autotune.store.status import read_status
from autotune.trial.trial import Outcome

REPORT_FILE = "report.html"
"""Name of the report in a run directory."""

_WORDS = {"real": "measured", "recorded": "replayed", "nothing": "simulated"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Predicted:
    """Predictions of the cost model for layouts, in their order; no trial corrects them."""

    layouts: Sequence[Layout]
    estimates: Estimates
    low: Array
    """[n] lower bound in seconds of the step time's 80 % interval."""
    high: Array
    """[n] upper bound."""

    def place(self, layout: Layout) -> int:
        """Index of a layout in the arrays."""
        return self._places[layout]

    @functools.cached_property
    def _places(self) -> dict[Layout, int]:
        return {layout: place for place, layout in enumerate(self.layouts)}


class RunFacts:
    """The trials of a run, their ranking, and predictions to compare them with."""

    def __init__(self, directory: str | Path) -> None:
        """Raises InputError where `directory` holds no run that can be read, or the trainable is
        not installed."""
        self.directory = Path(directory)
        try:
            self.store: RunStore = open_run(self.directory)
            self.request: Request = self.store.request
            self.records: list[TrialRecord] = self.store.trials()
            """All finished trials, oldest first."""
            description = self.request.description
        except InputError as error:
            if str(directory) in str(error):
                raise
            raise InputError(f"{str(self.directory)!r} cannot be read: {error}") from None
        self._ranking = Ranking(
            self.space.precision, comparable_losses=description.comparable_losses
        )
        for record in self.records:
            self._ranking.add(record)

    @property
    def space(self) -> SearchSpace:
        """The search space."""
        return self.request.space

    @property
    def word(self) -> str:
        """What the figures of the trials are: measured, replayed or simulated."""
        return _WORDS[self.request.description.trains]

    @functools.cached_property
    def ranked(self) -> list[TrialRecord]:
        """Records of the layouts that ran, best first."""
        return list(self._ranking.in_order())

    @property
    def best(self) -> TrialRecord | None:
        """The best record; None where no layout ran."""
        return self.ranked[0] if self.ranked else None

    @property
    def warning(self) -> str | None:
        """A warning that the best layout failed its confirmation; None where it did not."""
        return self._ranking.warning

    @functools.cached_property
    def failed(self) -> Mapping[Layout, TrialRecord]:
        """Layouts that ran in their exploring trial and failed the longer one, with that trial."""
        return self._ranking.failed

    @functools.cached_property
    def sound(self) -> list[TrialRecord]:
        """`ranked` without the layouts that failed their longer trial."""
        return [record for record in self.ranked if record.layout not in self.failed]

    @functools.cached_property
    def equal_to_best(self) -> list[TrialRecord]:
        """Records whose step time does not differ from the best one's by more than the noise."""
        best = self.best
        return [r for r in self.sound if best and r != best and equal_within_noise(best, r)]

    @functools.cached_property
    def stopped_because(self) -> str | None:
        """Why the search ended; None where nothing ran, or where that is not on record."""
        best = self.store.best()
        return None if best is None else best["stopped_because"]

    @functools.cached_property
    def explored(self) -> list[TrialRecord]:
        """Trials that explored, in full or with fewer micro-batches."""
        return [record for record in self.records if record.purpose != "confirm"]

    @functools.cached_property
    def worked(self) -> list[TrialRecord]:
        """Exploring trials that ran to their end."""
        return [record for record in self.explored if record.outcome is Outcome.OK]

    def outcome_of(self, record: TrialRecord) -> Outcome:
        """The outcome of a trial; of an exploring one whose layout failed its longer trial, that of
        the longer one."""
        failed = self.failed.get(record.layout)
        return record.outcome if failed is None else failed.outcome

    @property
    def gpu_hours(self) -> float:
        """Device hours that all trials held their nodes."""
        return sum(record.gpu_seconds for record in self.records) / 3600

    @property
    def memory_limit_gib(self) -> float | None:
        """Memory that a rank may use; None where it is not known."""
        cluster = self.space.cluster
        return cluster.memory_gib or cluster.device.memory_gib

    def counts(self) -> Mapping[Outcome, int]:
        """Number of trials by outcome, in the order of `Outcome`; those without trials left out."""
        counted = {o: sum(r.outcome is o for r in self.records) for o in Outcome}
        return {outcome: count for outcome, count in counted.items() if count}

    @functools.cached_property
    def varied(self) -> list[str]:
        """The searched dimensions in which the explored layouts differ."""
        layouts = [record.layout for record in self.explored]
        return [name for name in SEARCHED if len({getattr(lay, name) for lay in layouts}) > 1]

    @functools.cached_property
    def cost_model(self) -> CostModel | None:
        """The cost model of the request; None where it does not know the device."""
        try:
            return cost_model_of(self.request)
        except InputError:
            return None

    @functools.cached_property
    def predicted(self) -> Predicted | None:
        """Predictions for the layouts of all trials; None where the device is not known."""
        return self.predict(list(dict.fromkeys(record.layout for record in self.records)))

    def predict(self, layouts: Sequence[Layout]) -> Predicted | None:
        """Predictions for layouts; None where the device is not known, or there are none."""
        if self.cost_model is None or not layouts:
            return None
        prepared = self.cost_model.prepare(layouts)
        low, high = step_time_interval(self.cost_model, prepared)
        estimates = self.cost_model.estimate(prepared)
        return Predicted(layouts=layouts, estimates=estimates, low=low, high=high)

    @functools.cached_property
    def time_factor(self) -> float | None:
        """Median of step time / predicted step time over the layouts that ran; None where either
        is missing."""
        if self.predicted is None or not self.ranked:
            return None
        return statistics.median(
            seconds / float(self.predicted.estimates.step_seconds[self.predicted.place(r.layout)])
            for r in self.ranked
            if (seconds := r.measurement.step_seconds) is not None
        )

    def predicted_trial_seconds(self, layouts: Sequence[Layout], estimates: Estimates) -> Array:
        """Expected seconds [n] of a trial of each layout: one that runs out of memory ends at its
        start. Predicted step times are corrected by `time_factor`."""
        costs = np.array([trial_seconds(self.request, layout) for layout in layouts])
        starting, steps = costs.reshape(-1, 2).T
        running: Array = steps * estimates.step_seconds * (self.time_factor or 1.0)
        return starting + estimates.fit_probability * running


def value_word(layout: Layout, dimension: str) -> str:
    """The value of a dimension as text, as command lines take it."""
    value = getattr(layout, dimension)
    return str(value).lower() if isinstance(value, bool) else str(value)


def dimension_label(name: str) -> str:
    """The name of a dimension as a heading."""
    assert name in DIMENSIONS, name
    return name.replace("_", " ").replace("rmsnorm", "RMSNorm").replace("zero", "ZeRO")


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage; a dash where it is null."""
    return "–" if value is None else f"{value:.{digits}%}"  # noqa: RUF001


def number(value: float | None, form: str = ".3g", unit: str = "") -> str:
    """A figure with its unit; a dash where it is null."""
    return "–" if value is None else f"{value:{form}}{' ' + unit if unit else ''}"  # noqa: RUF001


def request_rows(facts: RunFacts) -> list[tuple[str, Any]]:
    """The request of the run as rows of a table."""
    request = facts.request
    rows = {
        "space": request.space.name,
        "trainable": request.trainable,
        "search": request.search,
        "seed": request.seed,
        "most exploring trials": request.max_trials,
        "GPU-hours allowed": number(request.gpu_hours),
        "steps of a trial": f"{facts.space.warmup_steps} + {facts.space.measured_steps}",
        "precision": facts.space.precision,
    }
    return list(rows.items())


def notices(facts: RunFacts) -> list[str]:
    """What a reader must know before any figure."""
    found = [facts.request.description.notice, facts.warning]
    slow = sorted({r.slow_device for r in facts.records if r.slow_device is not None})
    return [*filter(None, found), *(f"slow device: {device}" for device in slow)]


def state(facts: RunFacts) -> str:
    """How far the search is, as a sentence."""
    counted = ", ".join(f"{count} {outcome}" for outcome, count in facts.counts().items())
    trials = f"{counted_as(len(facts.records), 'trial')} ({counted or 'none finished'})"
    hours = f"{hours_text(facts.gpu_hours)} GPU-hours"
    if facts.word != "measured":
        hours += f" ({facts.word})"
    return f"{trials}, {hours}. {_end(facts)}"


def _end(facts: RunFacts) -> str:
    status = read_status(facts.directory)
    if status is not None and status.running:
        if status.is_gone:
            return "The search was killed; it can be resumed."
        return (
            f"The search still runs on {status.host}, as of {status.updated_at:%Y-%m-%d %H:%M} UTC."
        )
    if facts.stopped_because == INTERRUPTED:
        return "The search was interrupted; it can be resumed."
    if facts.stopped_because is None:
        return "No layout worked." if status is not None else "Why it ended is not on record."
    return f"The search ended: {facts.stopped_because}."


def counted_as(count: int, word: str) -> str:
    """A number and what is counted, as in ``1 trial`` and ``2 trials``."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def hours_text(hours: float) -> str:
    """GPU-hours as text."""
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"
