"""The measured schedule of a traced step."""

from collections.abc import Iterator, Mapping, Sequence

from autotune.errors import InputError
from autotune.layout import Layout
from autotune.pipeline.schedule import PASSES, Interval, Schedule
from autotune.trial.trace import Kind, RankTrace, Traced

_Pass = tuple[int, Kind, int | None]
"""Stage, kind and micro-batch of a pass."""


def measured_schedule(traces: Sequence[RankTrace], layout: Layout) -> Schedule:
    """The schedule of the last step that was traced. The row of a stage is its first rank.

    Time in which a rank receives what its neighbour has not computed yet is a `wait`. Raises
    InputError where the traces cannot be those of the layout.
    """
    rows = _last_step(traces, range(0, layout.world_size, layout.ranks_per_stage))
    passes = {
        (stage, traced.kind, traced.micro_batch): traced
        for stage, row in enumerate(rows)
        for traced in row
        if traced.kind in PASSES
    }
    needed = len(rows) * len(PASSES) * layout.gradient_accumulation_steps
    if len(passes) != needed:
        raise InputError(
            f"a traced step of {layout.describe()} must have {needed} passes, got {len(passes)}"
        )
    origin = min(traced.start_seconds for row in rows for traced in row)
    return Schedule(
        source="measured",
        stages=tuple(
            tuple(
                Interval(
                    kind=kind,
                    micro_batch=traced.micro_batch,
                    start_seconds=start - origin,
                    end_seconds=end - origin,
                )
                for traced in row
                for kind, start, end in _parts(stage, traced, passes)
            )
            for stage, row in enumerate(rows)
        ),
    )


def _last_step(traces: Sequence[RankTrace], ranks: Sequence[int]) -> list[list[Traced]]:
    """What those ranks did in the last step. Raises InputError where one of them is missing."""
    by_rank = {trace.rank: trace.intervals for trace in traces}
    step = max((traced.step for own in by_rank.values() for traced in own), default=None)
    rows = [[t for t in by_rank.get(rank, ()) if t.step == step] for rank in ranks]
    for rank, row in zip(ranks, rows, strict=True):
        if not row:
            raise InputError(f"the trace must have rank {rank}, got ranks {sorted(by_rank)}")
    return rows


def _parts(
    stage: int, traced: Traced, passes: Mapping[_Pass, Traced]
) -> Iterator[tuple[Kind, float, float]]:
    """Kind, start and end: of the event itself, or of the wait and the message."""
    start, end = traced.start_seconds, traced.end_seconds
    if traced.kind == "receive":
        own_forward = passes[stage, "forward", traced.micro_batch]
        # An activation is received before the forward pass, a gradient after it.
        is_activation = own_forward.start_seconds >= end
        source: _Pass = (
            (stage - 1, "forward", traced.micro_batch)
            if is_activation
            else (stage + 1, "backward", traced.micro_batch)
        )
        # Clocks of different machines may differ by more than the message took.
        computed = min(max(start, passes[source].end_seconds), end) if source in passes else start
        if computed > start:
            yield "wait", start, computed
        start = computed
    yield traced.kind, start, end
