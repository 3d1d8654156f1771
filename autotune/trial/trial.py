"""A trial: its specification, the reports of its steps, and its outcome."""

import enum
from typing import Any

import pydantic
from pydantic.dataclasses import dataclass

from autotune.cluster import Cluster
from autotune.layout import Layout
from autotune.model import Model, Precision
from autotune.space import SearchSpace
from autotune.trial.trace import RankTrace


class Outcome(enum.StrEnum):
    """How a trial ended. All outcomes are results; only `lost` may be repeated."""

    OK = "ok"
    """All steps were measured."""
    STOPPED = "stopped"
    """Stopped between steps, because it was too slow compared to the best trial."""
    OOM = "oom"
    """A rank ran out of memory."""
    TIMEOUT = "timeout"
    """A step or the trial exceeded its deadline."""
    CRASHED = "crashed"
    """A rank failed in any other way."""
    LOST = "lost"
    """Its nodes were lost in every attempt."""
    INVALID = "invalid"
    """It ran, but its figures are implausible (autotune.ledger.plausibility)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSpec:
    """Specification of a trial for the workers; can be converted to JSON and back."""

    trial_id: str
    """Number of the trial in its run, as text."""
    layout: Layout
    """The layout to measure."""
    model: Model
    """The model to train."""
    cluster: Cluster
    """The cluster, including the memory limit per rank."""
    precision: Precision
    """Precision of training."""
    warmup_steps: int
    """Warm-up steps at the start, and after each change of the number of micro-batches, which are
    not measured."""
    measured_steps: int
    """Measured steps after the warm-up."""
    log_dir: str | None
    """Folder for rank-N.log; None: the ranks' output goes to stderr."""
    data: str | None = None
    """File or folder whose bytes are the tokens; None: the sources of Python's library."""
    synthetic_data: bool = False
    """Random tokens instead of text."""
    seed: int = 0
    """Seed of weights and synthetic tokens."""
    step_deadline_seconds: float | None = None
    """Deadline of every step but the first; a longer step is a timeout; None: no limit."""
    trial_timeout_seconds: float | None = None
    """Timeout of the whole trial; None: no limit."""
    micro_batch_counts: tuple[int, ...] = ()
    """Numbers of micro-batches of a reduced trial, which runs all steps with each of them, one
    after the other, instead of the layout's own number; empty: a full trial."""
    trace_steps: int = 0
    """Last steps whose passes every rank records; 0: none."""

    @property
    def first_traced_step(self) -> int:
        """The first step whose passes are recorded; `all_steps` where none is."""
        return max(0, self.all_steps - self.trace_steps)

    @property
    def steps(self) -> int:
        """Steps of the trial (per number of micro-batches), warm-up included."""
        return self.warmup_steps + self.measured_steps

    @property
    def all_steps(self) -> int:
        """Steps of the trial with all numbers of micro-batches."""
        return self.steps * (len(self.micro_batch_counts) or 1)

    def micro_batches(self, step: int) -> int | None:
        """Micro-batches of a step of a reduced trial; None: the layout's own number."""
        counts = self.micro_batch_counts
        return counts[step // self.steps] if counts else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStep:
    """One rank's report of one optimiser step."""

    rank: int
    """Global rank, from 0."""
    step: int
    """From 0, through all numbers of micro-batches; warm-up steps come first with each."""
    step_seconds: float
    """Wall time between synchronisations."""
    loss: float | None
    """Mean loss over the global batch, the same on all ranks; null where nothing was trained."""
    grad_norm: float | None
    """Global gradient norm before clipping."""
    peak_memory_gib: float | None
    """Peak memory in use so far: resident set on CPUs, allocated by PyTorch on GPUs."""
    peak_reserved_gib: float | None
    """Peak memory that the limit counts: private virtual memory on CPUs, reserved on GPUs."""
    probe_seconds: float | None = None
    """Time of a fixed matrix product on this device right after the step, without communication."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """One optimiser step over all ranks."""

    step: int
    """From 0, through all numbers of micro-batches; warm-up steps come first with each."""
    ranks: tuple[RankStep, ...]
    """One entry per rank, in rank order."""
    micro_batches: int | None = None
    """`TrialSpec.micro_batches` of the step."""

    @property
    def step_seconds(self) -> float:
        """Step time: the longest over ranks."""
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
        """Peak memory so far: maximum over ranks."""
        peaks = (rank.peak_memory_gib for rank in self.ranks)
        return max((peak for peak in peaks if peak is not None), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The last event of a trial: how it ended."""

    outcome: Outcome
    reason: str
    """Why, in one sentence; empty for ok."""
    startup_seconds: float | None = None
    """From the start of the trial until every rank could begin its first step."""
    trace: tuple[RankTrace, ...] = ()
    """The traced steps of every rank; empty where none was traced to its end."""


def spec_of(
    space: SearchSpace, layout: Layout, *, trial_id: str, log_dir: str | None, **others: Any
) -> TrialSpec:
    """A trial of a layout of the space, with its steps; `others` are further fields."""
    fields = {
        "warmup_steps": space.warmup_steps,
        "measured_steps": space.measured_steps,
        **others,
    }
    return TrialSpec(
        trial_id=trial_id,
        layout=layout,
        model=space.model,
        cluster=space.cluster,
        precision=space.precision,
        log_dir=log_dir,
        **fields,
    )


def to_json(value: object) -> object:
    """A dataclass of this project as plain JSON values."""
    return pydantic.TypeAdapter(type(value)).dump_python(value, mode="json")


def trial_spec_from_json(values: object) -> TrialSpec:
    """Read a TrialSpec from the values that `to_json` returned."""
    return pydantic.TypeAdapter(TrialSpec).validate_python(values)
