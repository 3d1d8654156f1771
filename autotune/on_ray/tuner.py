"""The Ray Tune loop: runs each layout as a Tune trial. All state of the search is in the ledger.

Tune schedules the trials and their placement groups; the adapters below connect Tune's hooks to the
ledger's methods. Tune's experiment state is not used, because a crash can corrupt it; the run
directory is always consistent.
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

# A trial whose node was lost, or had a slow device, is repeated once.
_ATTEMPTS = 2
_NODE_CHECK_SECONDS = 1.0
# From free nodes to the first step: Ray's actors, imports from a cold disk, check of the nodes.
_START_SECONDS = 600.0
# Turn Tune's own logs off: they take time, and write into the working directory.
_TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C must raise KeyboardInterrupt here
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}

_ended_adapter = pydantic.TypeAdapter(Ended)
_step_report_adapter = pydantic.TypeAdapter(StepReport)


def run_trials(
    ledger: Ledger,
    trainable: Trainable,
    *,
    virtual: bool = False,
    wait_for_nodes_seconds: float = 300.0,
) -> None:
    """Run the ledger's trials on the connected Ray until none is left.

    On a `virtual` cluster trials are simulated. Raises NodeCheckFailed where a node fails the
    check, NodesGone where lost nodes are not back after `wait_for_nodes_seconds`,
    RunDirectoryFailed, and KeyboardInterrupt.
    """
    os.environ.update(_TUNE_ENVIRONMENT)
    # The adapters receive failed attempts; Tune would also print their tracebacks.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    adapter = _Adapter(ledger, virtual=virtual, wait_for_nodes_seconds=wait_for_nodes_seconds)
    with tempfile.TemporaryDirectory(prefix="autotune-") as scratch:
        tuner = tune.Tuner(
            tune.with_parameters(LayoutTrial, worker=trainable),
            tune_config=tune.TuneConfig(
                search_alg=_LedgerSearcher(adapter),
                num_samples=-1,
                max_concurrent_trials=1,  # every layout uses the whole cluster
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                storage_path=scratch,
                verbose=0,
                stop=_Stopper(adapter),
                callbacks=[_Recorder(adapter)],
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
                failure_config=tune.FailureConfig(max_failures=_ATTEMPTS - 1),
            ),
        )
        tuner.fit()
    if adapter.failure is not None:
        raise adapter.failure


class _Adapter:
    """State shared by Tune's hooks: the ledger, trial ids by Tune's ids, and the failure."""

    def __init__(self, ledger: Ledger, *, virtual: bool, wait_for_nodes_seconds: float) -> None:
        self.ledger = ledger
        self.virtual = virtual
        self.failure: Exception | None = None
        """Why the search cannot continue; Tune then stops in its next iteration."""
        self.avoid: list[str] = []
        """Ids of nodes with a slow device; later trials are not placed on them."""
        self._cluster = ledger.request.space.cluster
        self._wait_for_nodes_seconds = wait_for_nodes_seconds
        self._nodes_checked_at = time.monotonic()
        self._missing_since: float | None = None
        self._requested_at: float | None = None
        self._trial_ids: dict[str, str] = {}

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Tune pickles its hooks into snapshots, which are never read: store nothing."""
        return (object, ())

    def ask(self, tune_id: str) -> TrialSpec | None:
        spec = None
        with self._failures_kept():
            spec = self.ledger.next_trial()
            if spec is not None:
                self._trial_ids[tune_id] = spec.trial_id
                self._requested_at = time.monotonic()
        return spec

    def started(self) -> None:
        """A trial that waited for its nodes has started."""
        self._requested_at = None

    def receive_result(self, tune_id: str, result: dict[str, Any]) -> bool:
        """Pass a result to the ledger; return whether the trial should stop."""
        if "unfit_node" in result:
            self.failure = NodeCheckFailed(result["unfit_node"])
            return True
        if "step_report" not in result:
            return False
        report = _step_report_adapter.validate_python(result["step_report"])
        stop = True
        with self._failures_kept():
            stop = self.ledger.step_done(self._trial_ids[tune_id], report)
        return stop

    def completed(self, tune_id: str, result: dict[str, Any]) -> None:
        if self.failure is not None:
            return  # not recorded: the trial runs again when the search is resumed
        with self._failures_kept():
            trial_id = self._trial_ids.pop(tune_id)
            slow = self.ledger.slow_device(trial_id)
            description = None
            if slow is not None and result["nodes"]:
                node = result["nodes"][slow.rank // self._cluster.gpus_per_node]
                description = f"node {node['address']}, rank {slow.rank}: {slow.description}"
                if self._can_replace_node(trial_id):
                    self.avoid.append(node["node_id"])
                    self.ledger.run_again(trial_id, "slow device", slow=description)
                    return
            if "ended" in result:
                ended = _ended_adapter.validate_python(result["ended"])
                self.ledger.trial_ended(trial_id, ended, slow=description)
            else:
                self.ledger.trial_stopped(trial_id, slow=description)

    def _can_replace_node(self, trial_id: str) -> bool:
        """Whether the trial may be repeated, and a free node can replace the slow one."""
        may_repeat = self.ledger.attempts(trial_id) < _ATTEMPTS
        return may_repeat and bool(free_nodes(self._cluster, avoid=self.avoid))

    def attempt_lost(self, tune_id: str, reason: str) -> None:
        self._requested_at = time.monotonic()
        with self._failures_kept():
            self.ledger.attempt_lost(self._trial_ids[tune_id], reason)

    def lost(self, tune_id: str, ended: Ended) -> None:
        with self._failures_kept():
            trial_id = self._trial_ids.pop(tune_id)
            # Tune does not retry a trial whose actor died before the first step.
            lost = ended.outcome is Outcome.LOST
            if lost and self.ledger.attempts(trial_id) < _ATTEMPTS:
                self.ledger.run_again(trial_id, ended.reason)
            else:
                self.ledger.trial_ended(trial_id, ended)

    def cannot_go_on(self) -> bool:
        """Whether Tune should stop; checks every second whether nodes are missing."""
        now = time.monotonic()
        if self.virtual or self.failure or now - self._nodes_checked_at < _NODE_CHECK_SECONDS:
            return self.failure is not None
        self._nodes_checked_at = now
        missing = missing_nodes(self._cluster, avoid=self.avoid)
        self._missing_since = (self._missing_since or now) if missing else None
        if missing and now - (self._missing_since or now) > self._wait_for_nodes_seconds:
            self.failure = NodesGone(missing)
        allowed = self._wait_for_nodes_seconds + _START_SECONDS
        if self._requested_at is not None and now - self._requested_at > allowed:
            problem = self._cluster.too_small("but those of the cluster are in use")
            self.failure = NodesGone(problem)
        return self.failure is not None

    @contextlib.contextmanager
    def _failures_kept(self) -> Iterator[None]:
        """Keep an exception to raise it after Tune: Tune would wrap or ignore it."""
        try:
            yield
        except Exception as error:
            self.failure = self.failure or error


class _LedgerSearcher(Searcher):
    """Tune's searcher: gets the next trial from the ledger."""

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
        """Nothing: `_Recorder` passes results to the ledger."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: all state is in the run directory."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger resumes from the run directory."""


class _Stopper(tune.Stopper):
    """Tune's stopper: receives every result first, and stops slow trials between steps."""

    def __init__(self, adapter: _Adapter) -> None:
        self._adapter = adapter

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self._adapter.receive_result(trial_id, result)

    def stop_all(self) -> bool:
        return self._adapter.cannot_go_on()


class _Recorder(tune.Callback):
    """Tune's callback: records finished trials."""

    def __init__(self, adapter: _Adapter) -> None:
        self._adapter = adapter

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._adapter.completed(trial.trial_id, trial.last_result)

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._adapter.started()

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._adapter.attempt_lost(trial.trial_id, _end_of_attempt(trial).reason)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._adapter.lost(trial.trial_id, _end_of_attempt(trial))


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
