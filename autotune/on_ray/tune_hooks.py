"""Tune's hooks, which ask the adapter for trials and tell it what becomes of them."""

from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle, tune
from ray.tune.search import Searcher

from autotune.errors import NodeOutOfMemory, first_line
from autotune.on_ray.adapter import Adapter
from autotune.on_ray.ray_internals import forget_trial
from autotune.trial.trial import Ended, Outcome, to_json


class LedgerSearcher(Searcher):
    """Tune's searcher: gets the next trial from the ledger."""

    def __init__(self, adapter: Adapter) -> None:
        super().__init__()
        self._adapter = adapter

    def suggest(self, trial_id: str) -> Any:
        spec = self._adapter.ask(trial_id)
        if spec is None:
            return Searcher.FINISHED
        return {
            "spec": to_json(spec),
            "title": self._adapter.title,
            "virtual": self._adapter.virtual,
            "avoid": list(self._adapter.avoid),
        }

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing: `Recorder` passes results to the ledger."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: all state is in the run directory."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger resumes from the run directory."""


class LedgerStopper(tune.Stopper):
    """Tune's stopper: receives every result first, and stops slow trials between steps."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self._adapter.receive_result(trial_id, result)

    def stop_all(self) -> bool:
        return self._adapter.cannot_go_on()


class Recorder(tune.Callback):
    """Tune's callback: records finished trials."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._last_ended: Any = None

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._adapter.completed(trial.trial_id, trial.last_result)
        self._forget_the_one_before(trial)

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._adapter.started()

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._adapter.attempt_lost(trial.trial_id, _end_of_attempt(trial).reason)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._adapter.lost(trial.trial_id, _end_of_attempt(trial))
        self._forget_the_one_before(trial)

    def _forget_the_one_before(self, trial: Any) -> None:
        """Tune goes on to use the trial that has just ended, but none that ended before."""
        if self._last_ended is not None:
            forget_trial(self._last_ended)
        self._last_ended = trial


def _end_of_attempt(trial: Any) -> Ended:
    """Outcome of a trial's failed attempt: lost nodes, or out of memory by Ray's memory monitor."""
    file = trial.pickled_error_file
    if file is None or not Path(file).exists():
        return Ended(outcome=Outcome.LOST, reason="its nodes went away")
    error: Any = cloudpickle.loads(Path(file).read_bytes())
    # Unwrap Ray's exceptions, whose text is a remote traceback.
    while getattr(error, "cause", None) is not None:
        error = error.cause
    out_of_memory = isinstance(error, ray.exceptions.OutOfMemoryError | NodeOutOfMemory)
    return Ended(outcome=Outcome.OOM if out_of_memory else Outcome.LOST, reason=first_line(error))
