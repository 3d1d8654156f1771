"""The Ray Tune loop: each layout is a trial of it. Everything that matters is in the ledger.

Tune decides when a trial starts and on which placement group; the adapters below translate between
its hooks and the ledger's methods. Tune's own experiment state is not used: it can be torn by a
crash, the run directory cannot.
"""

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic
import ray
from ray import cloudpickle, tune
from ray.tune.search import Searcher

from autotune.errors import NodeCheckFailed, NodeOutOfMemory, NodesGone, first_line
from autotune.ledger.ledger import Ledger
from autotune.on_ray.layout_trial import LayoutTrial
from autotune.on_ray.nodes import free_nodes, missing_nodes
from autotune.trial.trainable import Trainable
from autotune.trial.trial import (
    Ended,
    Outcome,
    StepReport,
    TrialSpec,
    to_json,
)

# A trial whose node went away, or was slow, is started once more.
_ATTEMPTS = 2
_LOOK_FOR_NODES_SECONDS = 1.0
# From free nodes to the first step: Ray's actors, imports from a cold disk, the check of the nodes.
_START_SECONDS = 600.0
# Ours are the records; Tune's would cost time and write into the working directory.
_TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C must reach us as KeyboardInterrupt
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}

_ended = pydantic.TypeAdapter(Ended)
_step_report = pydantic.TypeAdapter(StepReport)


def run_trials(
    ledger: Ledger,
    trainable: Trainable,
    *,
    virtual: bool = False,
    wait_for_nodes_seconds: float = 300.0,
) -> None:
    """Run the ledger's trials on the connected Ray until it hands out no more.

    On a `virtual` cluster nodes are only counted. Raises NodeCheckFailed where a node is not fit,
    NodesGone where lost nodes are not back after `wait_for_nodes_seconds`, and RunDirectoryFailed;
    KeyboardInterrupt goes through.
    """
    os.environ.update(_TUNE_ENVIRONMENT)
    # Failed attempts come back to us; Tune would print their tracebacks as well.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    adapter = _Adapter(ledger, virtual=virtual, wait_for_nodes_seconds=wait_for_nodes_seconds)
    with tempfile.TemporaryDirectory(prefix="autotune-") as scratch:
        tuner = tune.Tuner(
            tune.with_parameters(LayoutTrial, worker=trainable),
            tune_config=tune.TuneConfig(
                search_alg=_AskTell(adapter),
                num_samples=-1,
                max_concurrent_trials=1,  # every layout takes the whole cluster
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,
                verbose=0,
                stop=_Stopper(adapter),
                callbacks=[_Records(adapter)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=_ATTEMPTS - 1),
            ),
        )
        tuner.fit()
    if adapter.failure is not None:
        raise adapter.failure


class _Adapter:
    """What the hooks of Tune share: the ledger, its trials by Tune's names, and what went wrong."""

    def __init__(self, ledger: Ledger, *, virtual: bool, wait_for_nodes_seconds: float) -> None:
        self.ledger = ledger
        self.virtual = virtual
        self.failure: Exception | None = None
        """Why the search cannot go on; Tune stops at its next turn."""
        self.avoid: list[str] = []
        """Nodes with a slow device, which trials go around."""
        self._cluster = ledger.request.space.cluster
        self._wait_for_nodes_seconds = wait_for_nodes_seconds
        self._looked_at = time.monotonic()
        self._missing_since: float | None = None
        self._waiting_since: float | None = None
        self._trial_ids: dict[str, str] = {}

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Tune pickles its hooks for its own snapshots, which we never read: nothing to keep."""
        return (object, ())

    def ask(self, tune_id: str) -> TrialSpec | None:
        spec = None
        with self._failures_kept():
            spec = self.ledger.next_trial()
            if spec is not None:
                self._trial_ids[tune_id] = spec.trial_id
                self._waiting_since = time.monotonic()
        return spec

    def has_nodes(self) -> None:
        """A trial that waited for its nodes has begun."""
        self._waiting_since = None

    def took_step(self, tune_id: str, result: dict[str, Any]) -> bool:
        """Take a result in; whether the trial should stop."""
        if "unfit_node" in result:
            self.failure = NodeCheckFailed(result["unfit_node"])
            return True
        if "step_report" not in result:
            return False
        report = _step_report.validate_python(result["step_report"])
        stop = True
        with self._failures_kept():
            stop = self.ledger.step_done(self._trial_ids[tune_id], report)
        return stop

    def completed(self, tune_id: str, result: dict[str, Any]) -> None:
        if self.failure is not None:
            return  # cut short: what is not on record is run again when the search is resumed
        with self._failures_kept():
            trial_id = self._trial_ids.pop(tune_id)
            slow = self.ledger.slow_device(trial_id)
            named = None
            if slow is not None and result["nodes"]:
                node = result["nodes"][slow.rank // self._cluster.gpus_per_node]
                named = f"node {node['address']}, rank {slow.rank}: {slow.says}"
                if self._can_go_around(trial_id):
                    self.avoid.append(node["node_id"])
                    self.ledger.run_again(trial_id, "slow device", slow=named)
                    return
            if "ended" in result:
                ended = _ended.validate_python(result["ended"])
                self.ledger.trial_ended(trial_id, ended, slow=named)
            else:
                self.ledger.trial_stopped(trial_id, slow=named)

    def _can_go_around(self, trial_id: str) -> bool:
        """Whether the trial may run once more, and a node is free to take the slow one's place."""
        first = self.ledger.attempts(trial_id) < _ATTEMPTS
        return first and bool(free_nodes(self._cluster, avoid=self.avoid))

    def attempt_lost(self, tune_id: str, reason: str) -> None:
        self._waiting_since = time.monotonic()
        self.ledger.attempt_lost(self._trial_ids[tune_id], reason)

    def lost(self, tune_id: str, ended: Ended) -> None:
        with self._failures_kept():
            trial_id = self._trial_ids.pop(tune_id)
            # Tune does not repeat a trial whose actor it found dead before the first step.
            lost = ended.outcome is Outcome.LOST
            if lost and self.ledger.attempts(trial_id) < _ATTEMPTS:
                self.ledger.run_again(trial_id, ended.reason)
            else:
                self.ledger.trial_ended(trial_id, ended)

    def cannot_go_on(self) -> bool:
        """Whether Tune should stop; looks from time to time whether the nodes are all there."""
        now = time.monotonic()
        if self.virtual or self.failure or now - self._looked_at < _LOOK_FOR_NODES_SECONDS:
            return self.failure is not None
        self._looked_at = now
        missing = missing_nodes(self._cluster, avoid=self.avoid)
        self._missing_since = (self._missing_since or now) if missing else None
        if missing and now - (self._missing_since or now) > self._wait_for_nodes_seconds:
            self.failure = NodesGone(missing)
        allowed = self._wait_for_nodes_seconds + _START_SECONDS
        if self._waiting_since is not None and now - self._waiting_since > allowed:
            held = self._cluster.too_small("others hold those that the cluster has")
            self.failure = NodesGone(held)
        return self.failure is not None

    @contextlib.contextmanager
    def _failures_kept(self) -> Iterator[None]:
        """Keep an error for the end: Tune would wrap it, or go on without telling."""
        try:
            yield
        except Exception as error:
            self.failure = self.failure or error


class _AskTell(Searcher):
    """Tune's searcher: asks the ledger."""

    def __init__(self, adapter: _Adapter) -> None:
        super().__init__()
        self._adapter = adapter

    def suggest(self, trial_id: str) -> Any:
        spec = self._adapter.ask(trial_id)
        if spec is None:
            return Searcher.FINISHED
        return {
            "spec": to_json(spec),
            "virtual": self._adapter.virtual,
            "avoid": list(self._adapter.avoid),
        }

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing: the ledger is told by `_Records`."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the run directory is the only state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: a resumed search is a new one that is told what is known."""


class _Stopper(tune.Stopper):
    """Tune's stopper: sees every result first, and cuts slow trials between steps."""

    def __init__(self, adapter: _Adapter) -> None:
        self._adapter = adapter

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self._adapter.took_step(trial_id, result)

    def stop_all(self) -> bool:
        return self._adapter.cannot_go_on()


class _Records(tune.Callback):
    """Tune's callback: puts finished trials on record."""

    def __init__(self, adapter: _Adapter) -> None:
        self._adapter = adapter

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._adapter.completed(trial.trial_id, trial.last_result)

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._adapter.has_nodes()

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._adapter.attempt_lost(trial.trial_id, _end_of_attempt(trial).reason)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._adapter.lost(trial.trial_id, _end_of_attempt(trial))


def _end_of_attempt(trial: Any) -> Ended:
    """What ended a trial's last attempt: its nodes, or Ray's memory monitor on the head."""
    file = trial.pickled_error_file
    if file is None or not Path(file).exists():
        return Ended(outcome=Outcome.LOST, reason="its nodes went away")
    error: Any = cloudpickle.loads(Path(file).read_bytes())
    # Ours travels inside Ray's, whose own text is a remote traceback.
    while getattr(error, "cause", None) is not None:
        error = error.cause
    no_memory = isinstance(error, ray.exceptions.OutOfMemoryError | NodeOutOfMemory)
    return Ended(outcome=Outcome.OOM if no_memory else Outcome.LOST, reason=first_line(error))
