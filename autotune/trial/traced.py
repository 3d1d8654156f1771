"""What a rank of a layout does in a step, counted without devices."""

from collections.abc import Mapping, Sequence
from typing import Any

import pydantic
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveMemory:
    """Tensors that lived at the peak."""

    gib: float
    phase: str
    """Phase in which they were allocated."""
    place: str
    """Code that allocated them: file:line function, or the operation of the backward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedCollective:
    """Collectives of one kind in one kind of group, in one step."""

    group: str
    """Axes along which the ranks of the group differ: "tensor", "data", "pipeline", or several
    joined by "+"."""
    kind: str
    """all_reduce, all_gather, reduce_scatter, broadcast, reduce, all_to_all, send or receive."""
    size: int
    """Ranks of the group."""
    count: int
    bytes: int
    """Bytes of the whole tensors, all of the count together: of an all-gather those of its output,
    of a reduce-scatter those of its input."""
    dtype: str
    beside_computation: bool
    """Whether the device may compute while it runs: it was started asynchronously, or in a stream
    of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedRank:
    """A step of one rank, counted by running its code on tensors without values.

    Nothing was timed. The memory is that of tensors, as they were requested: without the device's
    context, and without what an allocator rounds up or leaves unused.
    """

    rank: int
    stage: int
    """Its pipeline stage, from 0."""
    peak_memory_gib: float
    phases: Mapping[str, float]
    """Peak in GiB by phase: forward, backward, reduction, update."""
    live_at_peak: Sequence[LiveMemory]
    """Largest first."""
    collectives: Sequence[TracedCollective]
    """Most bytes first."""
    flops: int
    """Of matrix products and attention; causal attention is counted in full."""
    operations: int
    """Operations that a device would be given, of which fused ones are one."""

    def exchanged_bytes(self, group: str) -> int:
        """Bytes of the collectives of that group; an all-reduce, which is a reduce-scatter and an
        all-gather, counts twice."""
        return sum(
            one.bytes * (2 if one.kind == "all_reduce" else 1)
            for one in self.collectives
            if one.group == group
        )


_ranks = pydantic.TypeAdapter(list[TracedRank])


def traced_to_json(ranks: Sequence[TracedRank]) -> list[dict[str, Any]]:
    """Plain values, which `traced_from_json` reads back."""
    values: list[dict[str, Any]] = _ranks.dump_python(list(ranks), mode="json")
    return values


def traced_from_json(values: object) -> list[TracedRank]:
    """The ranks that `traced_to_json` wrote."""
    return _ranks.validate_python(values)
