"""Pruning rules: which layouts a finished trial rules out.

The rules have no exception in the 984 recorded runs of Hagemann et al. 2023. Each rule was checked
on all pairs of runs that differ in nothing else (385, 83, 60 and 53 pairs).
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from autotune.layout import LAYOUT_COLUMNS, Layout
from autotune.search.protocol import Observation
from autotune.trial.trial import Outcome


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


class Unpruned:
    """The layouts that are neither tried nor ruled out, in groups: a result concerns only one.

    A group has the layouts that are equal in every dimension in which no rule allows a difference.
    """

    def __init__(self, layouts: Iterable[Layout]) -> None:
        """`layouts` gives the order in which `rule_out` returns them; duplicates are dropped."""
        self._groups: dict[tuple[Any, ...], dict[Layout, None]] = {}
        for layout in layouts:
            self.like(layout)[layout] = None

    def like(self, layout: Layout) -> dict[Layout, None]:
        """The group of a layout: all that a trial of it can rule out, whatever its result."""
        return self._groups.setdefault(_values(layout, _ALWAYS_EQUAL), {})

    def rule_out(self, observation: Observation) -> list[Pruned]:
        """Remove the tried layout and those that the observation rules out; return the latter."""
        group = self.like(observation.layout)
        group.pop(observation.layout, None)
        pruned = prune(observation, group)
        for found in pruned:
            del group[found.layout]
        return pruned


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """Which layouts a tried one rules out."""

    outcomes: frozenset[Outcome]
    """Outcomes of the tried layout from which the rule concludes."""
    may_differ: tuple[str, ...]
    """Dimensions in which the layouts may differ; all others must be equal."""
    excludes: Callable[[Layout, Layout], bool]
    """Whether a layout is ruled out by a tried one, if they are equal in all other dimensions."""
    reason: str
    """Why, with {tried} for the tried layout."""


def _reason(observation: Observation, layout: Layout) -> str | None:
    tried = observation.layout
    if layout == tried:
        return None
    for rule in _RULES:
        if (
            observation.outcome in rule.outcomes
            and rule.excludes(layout, tried)
            and _equal_except(rule.may_differ, layout, tried)
        ):
            return rule.reason.format(tried=tried.describe())
    return None


def _needs_as_much_memory(layout: Layout, tried: Layout) -> bool:
    """Whether `layout` has at least the micro-batch size of `tried`, at most its recomputation and
    no more sequence parallelism. Then it needs at least as much memory."""
    if layout.micro_batch_size < tried.micro_batch_size:
        return False
    if layout.micro_batch_size > tried.micro_batch_size and not _accumulate_alike(layout, tried):
        return False
    if layout.recomputes > tried.recomputes:
        return False
    return tried.sequence_parallel or not layout.sequence_parallel


def _accumulate_alike(layout: Layout, tried: Layout) -> bool:
    """Whether both layouts accumulate gradients over micro-batches, or neither does.

    With gradient accumulation ZeRO holds another copy of its gradient shard, so one large
    micro-batch can need less memory than two small ones.
    """
    return (layout.gradient_accumulation_steps > 1) == (tried.gradient_accumulation_steps > 1)


def _only_recomputes_more(layout: Layout, tried: Layout) -> bool:
    return tried.recomputes == 0 and layout.recomputes > 0


def _equal_except(dimensions: Sequence[str], layout: Layout, tried: Layout) -> bool:
    others = [name for name in LAYOUT_COLUMNS if name not in dimensions]
    return _values(layout, others) == _values(tried, others)


def _values(layout: Layout, dimensions: Sequence[str]) -> tuple[Any, ...]:
    return tuple(getattr(layout, name) for name in dimensions)


_RULES = (
    _Rule(
        outcomes=frozenset({Outcome.OOM}),
        may_differ=(
            "micro_batch_size",
            "gradient_accumulation_steps",
            "activation_checkpointing",
            "sequence_parallel",
        ),
        excludes=_needs_as_much_memory,
        reason="needs at least the memory of {tried}, which ran out",
    ),
    _Rule(
        outcomes=frozenset({Outcome.OK, Outcome.STOPPED}),
        may_differ=("activation_checkpointing",),
        excludes=_only_recomputes_more,
        reason="recomputes more than {tried}, which ran: it can only be slower",
    ),
)
_ALWAYS_EQUAL = tuple(
    name for name in LAYOUT_COLUMNS if all(name not in rule.may_differ for rule in _RULES)
)
