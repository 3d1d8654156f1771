"""Interface between the tuner and a trainable, which runs trials, and a trainable's description.

Implementations are in `trainables` and in other packages (see `autotune.trial.registry`).
"""

import dataclasses
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from autotune.cluster import Cluster
from autotune.layout import SEARCHED, Layout
from autotune.model import Model
from autotune.space import SearchSpace
from autotune.trial.traced import TracedRank
from autotune.trial.trial import Ended, StepReport, TrialSpec


class RankHost(Protocol):
    """Manages the devices of one node and starts ranks on them.

    Every call may raise NodeLost.
    """

    def listen(self) -> tuple[str, int]:
        """Reserve a port for the rendezvous of the next job; return address and port."""

    def start(self, job: Mapping[str, Any]) -> None:
        """Start this node's ranks of a job, each in a new process."""

    def events(self, timeout_seconds: float) -> list[dict[str, Any]]:
        """Reports of the ranks since the last call; waits up to the timeout for the first one."""

    def stop(self) -> None:
        """Kill the ranks of the current job and wait for their end; makes `events` return."""

    def close(self) -> None:
        """Release the node; no process is left."""


class Trainable(Protocol):
    """Runs trials on a group of nodes."""

    @property
    def host_factory(self) -> Callable[..., RankHost] | None:
        """Called once on each reserved node, with its `address`; None: trials need no processes."""

    def check(self, cluster: Cluster, hosts: Sequence[RankHost]) -> None:
        """Check the nodes before the first trial. Raises NodeCheckFailed."""

    def run(
        self, spec: TrialSpec, hosts: Sequence[RankHost]
    ) -> Generator[StepReport | Ended, None, None]:
        """Run one trial: a report per step, then exactly one Ended.

        A reduced trial, which is asked for only where the description allows it, starts once: the
        ranks change the number of micro-batches between two steps.
        Closing the generator ends the trial and all its ranks at once. Raises NodeLost.
        """


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One point of one curve."""

    curve: str
    """``facts``, ``bandwidth``, ``matrix_products``, ``attention KERNEL``, or an operation between
    ranks and where its groups are, as in ``all_reduce within`` (`autotune.calibration.probed`)."""
    point: Mapping[str, Any]
    """Its figures by name; an ``error`` where the curve could not be measured any further."""


class Prober(Protocol):
    """Measures devices and network of a group of nodes."""

    @property
    def host_factory(self) -> Callable[..., RankHost]:
        """Called once on each reserved node, with its `address`."""

    def measure(
        self, cluster: Cluster, hosts: Sequence[RankHost], *, seconds: float
    ) -> Generator[Finding | None, None, None]:
        """Measure for about so many seconds; None every second without news.

        Closing the generator ends all ranks at once. Raises NodeCheckFailed and NodeLost.
        """


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainableSetup:
    """Arguments of a trainable's factory (`TrainableDescription.make`)."""

    space: SearchSpace
    """The search space."""
    layouts: Sequence[Layout] | None = None
    """The only layouts that are run; None: all of the space."""
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Environment variables of the ranks, in addition to those of the nodes."""
    runs: str | None = None
    """Path of recorded runs, for a trainable that replays them."""
    command: Mapping[str, Any] | None = None
    """The training command, for a trainable that runs one (`TrainableDescription.read_command`)."""
    simulated_trainer: Mapping[str, Any] | None = None
    """For a trainable that simulates any trainer: the content of its file; None: its own."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CommandLine:
    """How a training command is started for a layout without the tuner."""

    argv: Sequence[str]
    """The program and its arguments."""
    env: Mapping[str, str]
    """Environment variables."""
    files: Mapping[str, str]
    """Texts of files in its scratch directory, by name."""
    directory: str | None
    """Working directory; None: that of the caller."""
    per_rank: bool
    """Whether it is started once for each rank, instead of once on each node."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainableDescription:
    """What the tuner needs to know about a trainable before creating it."""

    name: str
    """Its name on the command line and in every row."""
    trains: Literal["real", "recorded", "nothing"]
    """Where figures come from: measured on the cluster ("real"), replayed ("recorded") or
    simulated ("nothing"). Only "real" needs devices, and only "recorded" needs recorded runs."""
    trainer: str | Mapping[str, Any]
    """The trainer whose step the cost model predicts: its name or the content of its file
    (`autotune.cost.trainers`). Constants are fitted under its name."""
    make: Callable[[TrainableSetup], Trainable]
    """Creates the trainable on the head; heavy imports belong here. Raises InputError."""
    check_model: Callable[[Model], None] = lambda model: None
    """Raises InputError for a model that it cannot train. Called before anything starts."""
    make_prober: Callable[[Literal["gpu", "cpu"], Mapping[str, str]], Prober] | None = None
    """Creates what measures devices of that kind and their network, with such variables for its
    ranks; None: it has no ranks."""
    trace_ranks: Callable[[TrialSpec, Sequence[int]], list[TracedRank]] | None = None
    """Runs the code of the first rank of each of these pipeline stages (from 0) without devices,
    and counts a step. Raises TracingFailed. None: its code cannot be traced."""
    read_command: Callable[[str], dict[str, Any]] | None = None
    """For a trainable that runs a training command: reads the file of --command into plain values,
    which are stored with the request. Raises InputError."""
    command_template: Callable[[Path, Path], str] | None = None
    """The text of a file to begin with, from the paths of a script and of that file."""
    how_read: Callable[[Mapping[str, Any], Path], list[str]] | None = None
    """Sentences on how figures were found in a folder of logs, with such values."""
    command_line: Callable[[TrainableSetup, Layout, Mapping[str, str]], CommandLine] | None = None
    """For a trainable that runs a training command: how it is started for a layout. The mapping has
    texts for what neither of them knows: seed, steps, rank, local_rank, node_rank, master_addr,
    master_port, scratch_directory and log_directory."""
    configured: Callable[[Mapping[str, Any]], "TrainableDescription"] | None = None
    """The description of this trainable with such values. Raises InputError."""
    simulates_trainers: bool = False
    """Whether it simulates any trainer, also one that predictions are not made for."""
    comparable_losses: bool = True
    """Whether all layouts train the same model on the same data, so that trials with another final
    loss are wrong."""
    limits_memory: bool = True
    """Whether its ranks on CPUs are held to the memory limit of the space; else what counts is the
    memory of this machine."""
    records_passes: bool = False
    """Whether its ranks record their passes in the steps that `TrialSpec.trace_steps` asks for."""
    reduced_trials: bool = False
    """Whether it runs the numbers of micro-batches that `TrialSpec.micro_batch_counts` asks for."""
    export_format: str | None = "deepspeed"
    """The export format that starts its training code (`autotune.export`); a search exports its
    best layout to it. None: nothing starts that code but a search."""
    dimensions: tuple[str, ...] = SEARCHED
    """The dimensions of a layout that it can vary; the others are fixed to one value."""
    values: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    """By dimension, the only values that it knows; a dimension that is absent can have any."""
    warmup_steps: int | None = None
    """Warm-up steps of its trials; None: those of the space."""
    measured_steps: int | None = None
    """Measured steps of its trials; None: those of the space."""
    trial_timeout_seconds: float | None = None
    """Timeout of its trials where the user gives none; None: the default."""

    @property
    def notice(self) -> str | None:
        """Warning shown with figures that are not measured; None where they are."""
        return _NOTICES[self.trains]


_NOTICES = {
    "real": None,
    "recorded": "replayed: figures are recorded ones of earlier runs",
    "nothing": "simulated: figures are predictions",
}
