"""What a finished trial rules out: rules without exceptions on 984 recorded runs.

The runs are those of Hagemann et al. 2023; each rule was checked on every pair of them that differs
in nothing else (385, 83, 60 and 53 pairs).
"""

import dataclasses
from collections.abc import Iterable

from autotune.layout import Layout
from autotune.search.protocol import Observation
from autotune.trial.trial import Outcome

_TOOK_PART = frozenset({Outcome.OK, Outcome.STOPPED})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """A layout that need not be run, and why."""

    layout: Layout
    reason: str
    """The trial that rules it out, and by which rule."""


def prune(observation: Observation, candidates: Iterable[Layout]) -> list[Pruned]:
    """The candidates that the observation rules out, each with its reason."""
    found = ((layout, _reason(observation, layout)) for layout in candidates)
    return [Pruned(layout=layout, reason=reason) for layout, reason in found if reason]


def _reason(observation: Observation, layout: Layout) -> str | None:
    seen = observation.layout
    if layout == seen:
        return None
    if observation.outcome is Outcome.OOM and _needs_at_least_as_much(layout, seen):
        return f"needs at least the memory of {seen.describe()}, which ran out"
    if observation.outcome in _TOOK_PART and _only_recomputes_more(layout, seen):
        return f"recomputes more than {seen.describe()}, which ran: it can only be slower"
    return None


def _needs_at_least_as_much(layout: Layout, seen: Layout) -> bool:
    """Larger micro-batch, less recomputation, sequence parallelism off; all else equal."""
    if layout.micro_batch_size < seen.micro_batch_size:
        return False
    if layout.micro_batch_size > seen.micro_batch_size and not _accumulate_alike(layout, seen):
        return False
    if layout.recomputes > seen.recomputes:
        return False
    if layout.sequence_parallel and not seen.sequence_parallel:
        return False
    return _equal_but_for(
        layout,
        seen,
        "micro_batch_size",
        "gradient_accumulation_steps",
        "activation_checkpointing",
        "sequence_parallel",
    )


def _accumulate_alike(layout: Layout, seen: Layout) -> bool:
    """Whether both keep gradients between micro-batches, or neither does.

    ZeRO holds a further copy of its gradient shard while it accumulates, so the step from two
    micro-batches to a single larger one can free memory.
    """
    return (layout.gradient_accumulation_steps > 1) == (seen.gradient_accumulation_steps > 1)


def _only_recomputes_more(layout: Layout, seen: Layout) -> bool:
    return (
        seen.recomputes == 0
        and layout.recomputes > 0
        and _equal_but_for(layout, seen, "activation_checkpointing")
    )


def _equal_but_for(layout: Layout, seen: Layout, *dimensions: str) -> bool:
    same = {dimension: getattr(seen, dimension) for dimension in dimensions}
    return dataclasses.replace(layout, **same) == seen
