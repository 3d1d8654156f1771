"""Pruning rules: which layouts a finished trial rules out.

The rules have no exception in the 984 recorded runs of Hagemann et al. 2023. Each rule was checked
on all pairs of runs that differ in nothing else (385, 83, 60 and 53 pairs).
"""

import dataclasses
from collections.abc import Iterable

from autotune.layout import Layout
from autotune.search.protocol import Observation
from autotune.trial.trial import Outcome

_RAN = frozenset({Outcome.OK, Outcome.STOPPED})


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """A layout that need not be run, and why."""

    layout: Layout
    reason: str
    """The trial that rules it out, and by which rule."""


def prune(observation: Observation, candidates: Iterable[Layout]) -> list[Pruned]:
    """The candidates that the observation rules out, each with its reason."""
    reasons = ((layout, _reason(observation, layout)) for layout in candidates)
    return [Pruned(layout=layout, reason=reason) for layout, reason in reasons if reason]


def _reason(observation: Observation, layout: Layout) -> str | None:
    tried = observation.layout
    if layout == tried:
        return None
    if observation.outcome is Outcome.OOM and _needs_as_much_memory(layout, tried):
        return f"needs at least the memory of {tried.describe()}, which ran out"
    if observation.outcome in _RAN and _only_recomputes_more(layout, tried):
        return f"recomputes more than {tried.describe()}, which ran: it can only be slower"
    return None


def _needs_as_much_memory(layout: Layout, tried: Layout) -> bool:
    """Whether `layout` has at least the micro-batch size of `tried`, at most its recomputation and
    no more sequence parallelism, all else equal. Then it needs at least as much memory."""
    if layout.micro_batch_size < tried.micro_batch_size:
        return False
    if layout.micro_batch_size > tried.micro_batch_size and not _accumulate_alike(layout, tried):
        return False
    if layout.recomputes > tried.recomputes:
        return False
    if layout.sequence_parallel and not tried.sequence_parallel:
        return False
    return _equal_except(
        layout,
        tried,
        "micro_batch_size",
        "gradient_accumulation_steps",
        "activation_checkpointing",
        "sequence_parallel",
    )


def _accumulate_alike(layout: Layout, tried: Layout) -> bool:
    """Whether both layouts accumulate gradients over micro-batches, or neither does.

    With gradient accumulation ZeRO holds another copy of its gradient shard, so one large
    micro-batch can need less memory than two small ones.
    """
    return (layout.gradient_accumulation_steps > 1) == (tried.gradient_accumulation_steps > 1)


def _only_recomputes_more(layout: Layout, tried: Layout) -> bool:
    return (
        tried.recomputes == 0
        and layout.recomputes > 0
        and _equal_except(layout, tried, "activation_checkpointing")
    )


def _equal_except(layout: Layout, tried: Layout, *dimensions: str) -> bool:
    same = {dimension: getattr(tried, dimension) for dimension in dimensions}
    return dataclasses.replace(layout, **same) == tried
