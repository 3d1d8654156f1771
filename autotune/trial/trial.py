"""A trial: what is run, what comes back from each step, and how it ends."""

import enum

import pydantic
from pydantic.dataclasses import dataclass

from autotune.cluster import Cluster
from autotune.layout import Layout
from autotune.model import Model, Precision


class Outcome(enum.StrEnum):
    """How a trial ended. Each is a result; only `lost` may be tried again."""

    OK = "ok"
    """All steps were measured."""
    STOPPED = "stopped"
    """Cut between steps because it was slower than the best allows."""
    OOM = "oom"
    """A rank ran out of memory."""
    TIMEOUT = "timeout"
    """A step or the trial overran its deadline."""
    CRASHED = "crashed"
    """A rank failed in any other way."""
    LOST = "lost"
    """Its nodes went away in every attempt."""
    INVALID = "invalid"
    """It ran, but its numbers cannot be true."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSpec:
    """Everything that the workers need to know; plain data that survives JSON."""

    trial_id: str
    """Number of the trial in its run, as text."""
    layout: Layout
    """What is measured."""
    model: Model
    """What is trained."""
    cluster: Cluster
    """Where, including the memory budget per rank."""
    precision: Precision
    """What it is trained in."""
    warmup_steps: int
    """First steps, left out of every figure."""
    measured_steps: int
    """Steps after them."""
    log_dir: str | None
    """Folder for rank-N.log; None sends the ranks' output to the standard error."""
    data: str | None = None
    """File or folder whose bytes are the tokens; None: the sources of Python's library."""
    synthetic_data: bool = False
    """Random tokens instead of text."""
    seed: int = 0
    """Seed of weights and synthetic tokens."""
    step_deadline_seconds: float | None = None
    """A step after the first that takes longer ends the trial as a timeout; None: no limit."""
    trial_timeout_seconds: float | None = None
    """The whole trial may take this long; None: no limit."""
    micro_batch_counts: tuple[int, ...] = ()
    """A reduced trial runs all steps with each of these counts of micro-batches instead of the
    layout's own; empty: it is a whole one."""

    @property
    def steps(self) -> int:
        """All steps, measured or not."""
        return self.warmup_steps + self.measured_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStep:
    """One optimiser step, seen from one rank."""

    rank: int
    """Global rank, from 0."""
    step: int
    """From 0; the warm-up steps come first."""
    step_seconds: float
    """Wall time between synchronisations."""
    loss: float | None
    """Mean over the global batch: the same on every rank; null where nothing was trained."""
    grad_norm: float | None
    """Global gradient norm before clipping."""
    peak_memory_gib: float | None
    """Most memory in use so far: resident pages on CPUs, the CUDA allocator's on GPUs."""
    peak_reserved_gib: float | None
    """What the limit counts: private virtual memory on CPUs, CUDA's reserved memory on GPUs."""
    probe_seconds: float | None = None
    """Right after the step, a fixed matrix product on this device alone, which waits for nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """One optimiser step over all ranks."""

    step: int
    """From 0; the warm-up steps come first."""
    ranks: tuple[RankStep, ...]
    """One entry per rank, in rank order."""
    micro_batches: int | None = None
    """Of a reduced trial's step; None is the layout's own count."""

    @property
    def step_seconds(self) -> float:
        """The slowest rank's time: the step's."""
        return max(rank.step_seconds for rank in self.ranks)

    @property
    def loss(self) -> float | None:
        """Mean loss over the global batch."""
        return self.ranks[0].loss

    @property
    def grad_norm(self) -> float | None:
        """Global gradient norm before clipping."""
        return self.ranks[0].grad_norm

    @property
    def peak_memory_gib(self) -> float | None:
        """Maximum over ranks so far."""
        peaks = (rank.peak_memory_gib for rank in self.ranks)
        return max((peak for peak in peaks if peak is not None), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The last thing that a trial says."""

    outcome: Outcome
    reason: str
    """Why, in one sentence; empty for ok."""
    startup_seconds: float | None = None
    """From the start of the trial until every rank could begin its first step."""


def to_json(value: object) -> object:
    """A dataclass of ours as plain JSON values; `from_json` reads it back equal."""
    return pydantic.TypeAdapter(type(value)).dump_python(value, mode="json")


def trial_spec_from_json(values: object) -> TrialSpec:
    """Read what `to_json` wrote."""
    return pydantic.TypeAdapter(TrialSpec).validate_python(values)
