"""Connects Tune's hooks to the ledger: passes results on, and knows why a search cannot go on."""

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import pydantic

from autotune.errors import NodeCheckFailed, NodesGone
from autotune.ledger.ledger import Ledger
from autotune.on_ray.nodes import free_nodes, missing_nodes
from autotune.trial.trial import Ended, Outcome, StepReport, TrialSpec

ATTEMPTS = 2
"""A trial whose node was lost, or had a slow device, is repeated once."""

_NODE_CHECK_SECONDS = 1.0
# From free nodes to the first step: Ray's actors, imports from a cold disk, check of the nodes.
_START_SECONDS = 600.0

_ended_adapter = pydantic.TypeAdapter(Ended)
_step_report_adapter = pydantic.TypeAdapter(StepReport)


class Adapter:
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
        self._stopped = threading.Event()

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
        may_repeat = self.ledger.attempts(trial_id) < ATTEMPTS
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
            if lost and self.ledger.attempts(trial_id) < ATTEMPTS:
                self.ledger.run_again(trial_id, ended.reason)
            else:
                self.ledger.trial_ended(trial_id, ended)

    def stop(self) -> None:
        """Make Tune's loop end where it next asks whether it should stop."""
        self._stopped.set()

    def cannot_go_on(self) -> bool:
        """Whether Tune should stop; checks every second whether nodes are missing.

        Raises SystemExit after `stop` and at the search's deadline: Tune then ends at once, without
        waiting for its trials.
        """
        if self._stopped.is_set() or self.ledger.end_at_deadline():
            raise SystemExit
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

    @property
    def title(self) -> str:
        """The search's name in Ray's dashboard."""
        return f"{self.ledger.request.space.name} {self.ledger.store.directory}"

    @contextlib.contextmanager
    def _failures_kept(self) -> Iterator[None]:
        """Keep an exception to raise it after Tune: Tune would wrap or ignore it."""
        try:
            yield
        except Exception as error:
            self.failure = self.failure or error
