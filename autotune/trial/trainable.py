"""The protocol between the tuner and whatever runs a trial, and what a trainable says of itself.

Implementations: `trainables`, and other packages' (see `autotune.trial.registry`).
"""

import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Literal, Protocol

from autotune.cluster import Cluster
from autotune.layout import SEARCHED, Layout
from autotune.space import SearchSpace
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
        """What the ranks reported since the last call; waits up to the timeout for something."""

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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainableSetup:
    """What a trainable is made from."""

    space: SearchSpace
    """Whose layouts it will run."""
    layouts: Sequence[Layout] | None = None
    """The only layouts that it will run; None: any of the space."""
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Environment of the ranks, on top of the nodes' own."""
    runs: str | None = None
    """Recorded runs, for a trainable that replays them."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainableDescription:
    """What the tuner has to know of a trainable before it makes one."""

    name: str
    """Its name on the command line and in every row."""
    trains: Literal["real", "recorded", "nothing"]
    """Whether figures are measured on the cluster, were recorded earlier, or are simulated. Only
    real trials need devices, and only recorded ones need recorded runs."""
    trainer: str
    """The trainer whose step the cost model predicts: constants are fitted under this name
    (`autotune.cost.trainers`)."""
    make: Callable[[TrainableSetup], Trainable]
    """Makes the trainable, on the head; imports what it needs only then. Raises InputError."""
    reduced_trials: bool = True
    """Whether it can run a layout with fewer micro-batches per step than the batch asks for."""
    exportable: bool = True
    """Whether its best layout can be exported to be trained by our worker and other frameworks."""
    dimensions: tuple[str, ...] = SEARCHED
    """The dimensions of a layout that it can vary; the others stay at one value."""

    @property
    def notice(self) -> str | None:
        """What people are told before they read a figure; None where figures are measured."""
        return _NOTICES[self.trains]


_NOTICES = {
    "real": None,
    "recorded": "replayed: figures are recorded ones of earlier runs",
    "nothing": "simulated: figures are predictions",
}
