"""What ranks did when in the traced steps of a trial."""

import dataclasses
from collections.abc import Iterable
from typing import Literal, NamedTuple

import pydantic
from pydantic.dataclasses import dataclass

Kind = Literal["forward", "backward", "send", "receive", "wait", "reduction", "update"]
"""What a rank does: a pass of a micro-batch (a backward pass includes recomputation), a message to
or from a neighbouring stage, waiting for one, the reduction of gradients, the optimiser's step."""


class Traced(NamedTuple):
    """Something that a rank did without a break."""

    step: int
    """From 0; the warm-up steps come first."""
    kind: Kind
    """forward, backward, send, receive, reduction or update. Receiving includes the wait."""
    micro_batch: int | None
    """From 0; null for what belongs to no micro-batch."""
    start_seconds: pydantic.FiniteFloat
    """When it began, on a clock that all ranks share, since the first traced event of the
    trial."""
    end_seconds: pydantic.FiniteFloat
    """When it ended, on the same clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankTrace:
    """The traced steps of one rank."""

    rank: int
    """Global rank, from 0."""
    clock_offset_seconds: pydantic.FiniteFloat
    """What was added to the clock of the rank's machine, to get that of rank 0's machine: 0 on that
    machine itself, on others the median over some barriers, which all ranks leave at about the same
    time."""
    intervals: tuple[Traced, ...]
    """In the order in which they began."""


def merged(traces: Iterable[RankTrace]) -> tuple[RankTrace, ...]:
    """One trace per rank, in rank order, of traces that came in pieces; times begin at 0."""
    pieces: dict[int, list[RankTrace]] = {}
    for trace in traces:
        pieces.setdefault(trace.rank, []).append(trace)
    origin = min(
        (t.start_seconds for all in pieces.values() for p in all for t in p.intervals), default=0.0
    )
    return tuple(
        dataclasses.replace(
            pieces[rank][0],
            intervals=tuple(
                traced._replace(
                    start_seconds=traced.start_seconds - origin,
                    end_seconds=traced.end_seconds - origin,
                )
                for piece in pieces[rank]
                for traced in piece.intervals
            ),
        )
        for rank in sorted(pieces)
    )
