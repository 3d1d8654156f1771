"""The protocol between the tuner and whatever runs a trial. Implementations: `trainables`."""

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Protocol

from autotune.cluster import Cluster
from autotune.trial.trial import Ended, StepReport, TrialSpec


class RankHost(Protocol):
    """Owns the devices of one node and starts ranks on them.

    Every call may raise NodeLost when the node is gone.
    """

    def listen(self) -> tuple[str, int]:
        """Open the rendezvous for rank 0 of the next job; its address and port."""

    def start(self, job: Mapping[str, Any]) -> None:
        """Start this node's ranks of a job, fresh processes each."""

    def events(self, timeout_seconds: float) -> list[dict[str, Any]]:
        """What the ranks said since the last call; waits up to the timeout for something."""

    def stop(self) -> None:
        """Kill the ranks of the current job, and return when they are gone; wakes `events`."""

    def close(self) -> None:
        """Give the node back: no process is left."""


class Trainable(Protocol):
    """Runs trials on a group of nodes."""

    @property
    def host_factory(self) -> Callable[..., RankHost] | None:
        """Called once on each reserved node, with its `address`; None: trials need no processes."""

    def check(self, cluster: Cluster, hosts: Sequence[RankHost]) -> None:
        """Look whether the nodes are fit to be measured on. Raises NodeCheckFailed."""

    def run(
        self, spec: TrialSpec, hosts: Sequence[RankHost]
    ) -> Generator[StepReport | Ended, None, None]:
        """Run one trial: a report per step, then exactly one Ended.

        Closing the iterator ends the trial at once; no rank is left. Raises NodeLost.
        """
