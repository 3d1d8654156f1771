"""Early stopping of trials that are slower than the best one."""

from autotune.trial.trial import TrialSpec

# Deadline of a step as a multiple of the time that stops the trial, and its minimum: a noisy step
# must not be taken for one that hangs.
_DEADLINE_OVER_LIMIT = 5
_SHORTEST_DEADLINE_SECONDS = 20.0
# A single step can be slow by chance, so two measured steps are required.
_STEPS_BEFORE_STOPPING = 2


class SlowerThanBest:
    """Stops a trial if all its measured steps take more than `factor` times the best median."""

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
            return None  # all steps are already measured
        limit = self._factor * self.best_step_seconds
        if min(measured) <= limit:
            return None
        return (
            f"{len(measured)} steps of at least {min(measured):.3g} s, more than {self._factor:g} "
            f"times the best ({self.best_step_seconds:.3g} s)"
        )

    @property
    def step_deadline_seconds(self) -> float | None:
        """Deadline of one step; None until a trial has finished."""
        if self.best_step_seconds is None:
            return None
        limit = _DEADLINE_OVER_LIMIT * self._factor * self.best_step_seconds
        return max(_SHORTEST_DEADLINE_SECONDS, limit)
