"""When a trial that runs well is ended all the same: it cannot win any more."""

from autotune.trial.trial import TrialSpec

# A step may take this many times what would stop the trial anyway, but never less than the floor:
# a stuck step is not confused with a noisy one.
_DEADLINE_OVER_LIMIT = 5
_SHORTEST_DEADLINE_SECONDS = 20.0
# One step can be slow by accident; the second makes it a pattern.
_STEPS_BEFORE_STOPPING = 2


class SlowerThanBest:
    """Stops layouts whose every measured step is slower than `factor` times the best's median."""

    def __init__(self, factor: float) -> None:
        """`factor` is at least 1."""
        self._factor = factor
        self.best_step_seconds: float | None = None
        """Median step time of the best finished trial so far."""

    def reason_to_stop(self, spec: TrialSpec, step_seconds: list[float]) -> str | None:
        """Why the trial should stop after these steps (warm-up included), or None."""
        measured = step_seconds[spec.warmup_steps :]
        if self.best_step_seconds is None or len(measured) < _STEPS_BEFORE_STOPPING:
            return None
        if len(measured) >= spec.measured_steps:
            return None  # already paid for
        limit = self._factor * self.best_step_seconds
        if min(measured) <= limit:
            return None
        return (
            f"{len(measured)} steps of at least {min(measured):.3g} s, more than {self._factor:g} "
            f"times the best ({self.best_step_seconds:.3g} s)"
        )

    @property
    def step_deadline_seconds(self) -> float | None:
        """How long one step may take; None while there is no best to compare with."""
        if self.best_step_seconds is None:
            return None
        limit = _DEADLINE_OVER_LIMIT * self._factor * self.best_step_seconds
        return max(_SHORTEST_DEADLINE_SECONDS, limit)
