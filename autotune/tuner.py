"""The Ray Tune loop: each layout is a trial of it. Everything that matters is in the ledger.

Tune decides when a trial starts and on which placement group; the adapters below translate between
its hooks and the ledger's methods. Tune's own experiment state is not used: it can be torn by a
crash, the run directory cannot.
"""

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import pydantic
import ray
from ray import cloudpickle, tune
from ray.tune.search import Searcher

from autotune.errors import NodeCheckFailed
from autotune.fidelity import run_in_parts
from autotune.ledger import Ledger
from autotune.placement import NodeGroup, node_group
from autotune.trainable import Trainable
from autotune.trial import (
    Ended,
    Outcome,
    StepReport,
    TrialSpec,
    to_json,
    trial_spec_from_json,
)

# A trial whose node went away is started once more.
_ATTEMPTS = 2
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


def run_trials(ledger: Ledger, trainable: Trainable, *, virtual: bool = False) -> None:
    """Run the ledger's trials on the connected Ray until it hands out no more.

    On a `virtual` cluster nodes are only counted. Raises NodeCheckFailed where a node is not fit;
    KeyboardInterrupt goes through.
    """
    os.environ.update(_TUNE_ENVIRONMENT)
    # Failed attempts come back to us; Tune would print their tracebacks as well.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    adapter = _Adapter(ledger, virtual=virtual)
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
    if adapter.unfit_node is not None:
        raise NodeCheckFailed(adapter.unfit_node)


class LayoutTrial(tune.Trainable):
    """One layout, as Tune sees it: `step()` is one training step. Lives on the head.

    The node actors are kept from one trial to the next of the same node count.
    """

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """Whole nodes, as many as the layout needs."""
        spec = trial_spec_from_json(config["spec"])
        return node_group(spec.cluster, spec.layout.world_size, virtual=config["virtual"])

    def setup(self, config: dict[str, Any], worker: Trainable | None = None) -> None:
        """Take the nodes, check them, and begin the first trial."""
        assert worker is not None, "given by tune.with_parameters"
        spec = trial_spec_from_json(config["spec"])
        self._worker = worker
        self._unfit_node: str | None = None
        self._nodes: NodeGroup | None = None
        if worker.host_factory is not None:
            group = ray.util.get_current_placement_group()
            assert group is not None, "Tune places the trainable in the trial's group"
            self._nodes = NodeGroup(group, spec.cluster, worker.host_factory)
        try:
            worker.check(spec.cluster, self._hosts)
        except NodeCheckFailed as error:
            self._unfit_node = str(error)
        self._begin(spec)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """End what is left of the last trial and begin the next on the same nodes."""
        self._events.close()
        self._begin(trial_spec_from_json(new_config["spec"]))
        return True

    def step(self) -> dict[str, Any]:
        """The next training step, or the trial's end. Raises NodeLost."""
        if self._unfit_node is not None:
            return {"unfit_node": self._unfit_node, "done": True}
        event = next(self._events)
        if isinstance(event, StepReport):
            return {"step_report": to_json(event)}
        return {"ended": to_json(event), "done": True}

    def cleanup(self) -> None:
        """Leave nothing behind."""
        self._events.close()
        if self._nodes is not None:
            self._nodes.close()

    @property
    def _hosts(self) -> list[Any]:
        return [] if self._nodes is None else list(self._nodes.hosts)

    def _begin(self, spec: TrialSpec) -> None:
        self._events = run_in_parts(spec, self._worker, self._hosts)


class _Adapter:
    """What the three hooks of Tune share: the ledger, and its trials by Tune's names."""

    def __init__(self, ledger: Ledger, *, virtual: bool) -> None:
        self.ledger = ledger
        self.virtual = virtual
        self.unfit_node: str | None = None
        self._trial_ids: dict[str, str] = {}

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Tune pickles its hooks for its own snapshots, which we never read: nothing to keep."""
        return (object, ())

    def ask(self, tune_id: str) -> TrialSpec | None:
        if self.unfit_node is not None:
            return None
        spec = self.ledger.next_trial()
        if spec is not None:
            self._trial_ids[tune_id] = spec.trial_id
        return spec

    def took_step(self, tune_id: str, result: dict[str, Any]) -> bool:
        """Take a result in; whether the trial should stop."""
        if "unfit_node" in result:
            self.unfit_node = result["unfit_node"]
            return True
        if "step_report" not in result:
            return False
        report = _step_report.validate_python(result["step_report"])
        return self.ledger.step_done(self._trial_ids[tune_id], report)

    def completed(self, tune_id: str, result: dict[str, Any], attempts: int) -> None:
        trial_id = self._trial_ids.pop(tune_id)
        if "unfit_node" in result:
            return
        if "ended" in result:
            ended = _ended.validate_python(result["ended"])
            self.ledger.trial_ended(trial_id, ended, attempts=attempts)
        else:
            self.ledger.trial_stopped(trial_id, attempts=attempts)

    def lost(self, tune_id: str, reason: str, attempts: int) -> None:
        ended = Ended(outcome=Outcome.LOST, reason=reason)
        self.ledger.trial_ended(self._trial_ids.pop(tune_id), ended, attempts=attempts)


class _AskTell(Searcher):
    """Tune's searcher: asks the ledger."""

    def __init__(self, adapter: _Adapter) -> None:
        super().__init__()
        self._adapter = adapter

    def suggest(self, trial_id: str) -> Any:
        spec = self._adapter.ask(trial_id)
        if spec is None:
            return Searcher.FINISHED
        return {"spec": to_json(spec), "virtual": self._adapter.virtual}

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
        return self._adapter.unfit_node is not None


class _Records(tune.Callback):
    """Tune's callback: puts finished trials on record."""

    def __init__(self, adapter: _Adapter) -> None:
        self._adapter = adapter

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._adapter.completed(trial.trial_id, trial.last_result, trial.num_failures + 1)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._adapter.lost(trial.trial_id, _reason(trial), trial.num_failures)


def _reason(trial: Any) -> str:
    """The sentence of the error that ended a trial's last attempt."""
    file = trial.pickled_error_file
    if file is None or not Path(file).exists():
        return "its nodes went away"
    error: Any = cloudpickle.loads(Path(file).read_bytes())
    # Ours travels inside Ray's, whose own text is a remote traceback.
    while getattr(error, "cause", None) is not None:
        error = error.cause
    return (str(error) or type(error).__name__).splitlines()[0]
