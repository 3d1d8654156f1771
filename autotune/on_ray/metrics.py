"""What a search has found so far, as metrics of Ray, which Prometheus scrapes (docs/monitoring.md).

All are gauges, also those that only grow: a counter of a search that has ended would stay in Ray,
and be added to that of the resumed one. A figure that is not known has no sample.
"""

import dataclasses
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from ray.util.metrics import Gauge

from autotune.request import Request
from autotune.store.record import TrialRecord
from autotune.trial.trial import Outcome, StepReport, TrialSpec

# Ray forgets the value of a gauge that is not set again within two of its reports, which are 10 s
# apart, or 1 s at least.
_REFRESH_SECONDS = 1.0

_Tags = frozenset[tuple[str, str]]
# Beside these, `trainable` says whether figures are simulated or replayed.
_TAGS = ("space", "run", "trainable")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MetricDescription:
    """One metric."""

    name: str
    """Without the ``ray_`` that Ray puts before it; its unit comes last."""
    help: str
    tags: tuple[str, ...] = ()
    """Tags that it has beside space, run and trainable."""

    @property
    def exported_name(self) -> str:
        """The name in Prometheus."""
        return f"ray_{self.name}"


BEST_STEP = MetricDescription(
    name="autotune_best_step_seconds",
    help="Step time of the fastest trial that ended ok, in seconds.",
)
BEST_MFU = MetricDescription(
    name="autotune_best_mfu_ratio",
    help="Highest model FLOPs utilisation of a trial that ended ok, 0 to 1; absent where the "
    "device's bf16 peak is unknown.",
)
TRIALS = MetricDescription(
    name="autotune_finished_trials",
    help="Number of finished trials.",
    tags=("outcome", "purpose"),
)
GPU_HOURS = MetricDescription(
    name="autotune_used_gpu_hours",
    help="Device hours that finished trials held their nodes.",
    tags=("outcome", "purpose"),
)
RUNNING = MetricDescription(
    name="autotune_running_trial_info",
    help="1 for the trial that runs; its number and its layout are tags.",
    tags=("trial", "layout"),
)
RUNNING_STEP = MetricDescription(
    name="autotune_running_step_seconds",
    help="Time of the last step of the trial that runs, in seconds; a reduced trial's steps have "
    "fewer micro-batches.",
)
RUNNING_MEMORY = MetricDescription(
    name="autotune_running_peak_memory_gib",
    help="Peak memory of a device of the trial that runs, in GiB.",
)
LAST_ERROR = MetricDescription(
    name="autotune_step_time_prediction_error_ratio",
    help="Predicted over measured step time, minus 1, of the last trial that ended ok; predicted "
    "when the search proposed it.",
)
MEAN_ERROR = MetricDescription(
    name="autotune_step_time_prediction_mean_absolute_error_ratio",
    help="The same without its sign, mean over all trials that ended ok.",
)

METRICS = (
    BEST_STEP,
    BEST_MFU,
    TRIALS,
    GPU_HOURS,
    RUNNING,
    RUNNING_STEP,
    RUNNING_MEMORY,
    LAST_ERROR,
    MEAN_ERROR,
)
"""All metrics of a search."""


class RayMetrics:
    """Sets the metrics of a search on the connected Ray. A `Listener`."""

    def __init__(self) -> None:
        self._metrics: dict[MetricDescription, Gauge] = {}
        self._known: dict[tuple[MetricDescription, _Tags], float] = {}
        self._lock = threading.Lock()
        self._errors: list[float] = []
        self._ended = threading.Event()
        self._refresher = threading.Thread(target=self._refresh, daemon=True, name="metrics")

    def search_begins(
        self, request: Request, directory: Path, finished: Sequence[TrialRecord]
    ) -> None:
        """Metrics of a resumed search go on with the trials that finished before."""
        values = (request.space.name, str(directory), request.trainable)
        tags = dict(zip(_TAGS, values, strict=True))
        self._metrics = {
            metric: Gauge(metric.name, metric.help, (*_TAGS, *metric.tags)) for metric in METRICS
        }
        for made in self._metrics.values():
            made.set_default_tags(tags)
        for record in finished:
            self.trial_finished(record)
        self._refresher.start()

    def trial_started(self, spec: TrialSpec) -> None:
        self._set(RUNNING, 1.0, trial=spec.trial_id, layout=spec.layout.describe())

    def step_done(self, spec: TrialSpec, step: StepReport) -> None:
        self._set(RUNNING_STEP, step.step_seconds)
        self._set(RUNNING_MEMORY, step.peak_memory_gib)

    def trial_begins_again(self, spec: TrialSpec, reason: str) -> None:
        self._forget(RUNNING_STEP, RUNNING_MEMORY)

    def trial_finished(self, record: TrialRecord) -> None:
        self._forget(RUNNING, RUNNING_STEP, RUNNING_MEMORY)
        measured = record.measurement
        tags = {"outcome": record.outcome.value, "purpose": record.purpose}
        self._add(TRIALS, 1, tags)
        self._add(GPU_HOURS, record.gpu_seconds / 3600, tags)
        if record.outcome is not Outcome.OK:
            return
        self._set(BEST_STEP, _better(min, self._value(BEST_STEP), measured.step_seconds))
        self._set(BEST_MFU, _better(max, self._value(BEST_MFU), measured.mfu))
        if record.prediction is not None and measured.step_seconds is not None:
            error = record.prediction.step_seconds / measured.step_seconds - 1
            self._errors.append(abs(error))
            self._set(LAST_ERROR, error)
            self._set(MEAN_ERROR, sum(self._errors) / len(self._errors))

    def search_ends(self) -> None:
        """The gauges end some seconds after the search."""
        self._ended.set()
        self._refresher.join()

    def _value(self, metric: MetricDescription, **tags: str) -> float | None:
        return self._known.get((metric, frozenset(tags.items())))

    def _set(self, metric: MetricDescription, value: float | None, **tags: str) -> None:
        """Set a gauge, where its value is known."""
        if value is None:
            return
        with self._lock:
            self._known[metric, frozenset(tags.items())] = value
            self._metrics[metric].set(value, tags)

    def _add(self, metric: MetricDescription, more: float, tags: dict[str, str]) -> None:
        self._set(metric, (self._value(metric, **tags) or 0.0) + more, **tags)

    def _forget(self, *metrics: MetricDescription) -> None:
        with self._lock:
            for key in [key for key in self._known if key[0] in metrics]:
                del self._known[key]

    def _refresh(self) -> None:
        while not self._ended.wait(_REFRESH_SECONDS):
            with self._lock:
                for (metric, tags), value in self._known.items():
                    self._metrics[metric].set(value, dict(tags))


def _better(
    choose: Callable[..., float | None], known: float | None, new: float | None
) -> float | None:
    values = [value for value in (known, new) if value is not None]
    return choose(values, default=None)
