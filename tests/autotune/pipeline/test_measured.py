"""A traced step as a schedule."""

import pytest

from autotune.errors import InputError
from autotune.layout import Layout
from autotune.pipeline.measured import measured_schedule
from autotune.pipeline.schedule import Interval
from autotune.trial.trace import RankTrace, Traced, merged

LAYOUT = Layout(pipeline_parallel=2, data_parallel=2, gradient_accumulation_steps=1)


def trace(rank: int, *intervals: tuple[int, str, int | None, float, float]) -> RankTrace:
    return RankTrace(
        rank=rank,
        clock_offset_seconds=0.0,
        intervals=tuple(Traced(*interval) for interval in intervals),  # type: ignore[arg-type]
    )


FIRST = trace(
    0,
    (4, "forward", 0, 1.0, 1.5),
    (5, "forward", 0, 10.0, 11.0),
    (5, "send", 0, 11.0, 11.25),
    (5, "receive", 0, 11.25, 15.5),
    (5, "backward", 0, 15.5, 17.5),
    (5, "update", None, 17.5, 18.0),
)
SECOND = trace(
    2,
    (4, "forward", 0, 2.0, 2.5),
    (5, "receive", 0, 9.5, 11.5),
    (5, "forward", 0, 11.5, 12.5),
    (5, "backward", 0, 12.5, 15.0),
    (5, "send", 0, 15.0, 15.25),
)
REPLICA = trace(1, (5, "forward", 0, 0.0, 100.0))


def test_the_row_of_a_stage_is_its_first_rank_in_the_last_step() -> None:
    schedule = measured_schedule([SECOND, REPLICA, FIRST], LAYOUT)
    assert schedule.source == "measured"
    first, second = schedule.stages
    assert second[0] == Interval(kind="wait", micro_batch=0, start_seconds=0.0, end_seconds=1.5), (
        "rank 2 waited until rank 0 had computed"
    )
    assert [(i.kind, i.start_seconds, i.end_seconds) for i in second[1:]] == [
        ("receive", 1.5, 2.0), ("forward", 2.0, 3.0), ("backward", 3.0, 5.5), ("send", 5.5, 5.75),
    ]  # fmt: skip
    assert [(i.kind, i.start_seconds, i.end_seconds) for i in first] == [
        ("forward", 0.5, 1.5), ("send", 1.5, 1.75), ("wait", 1.75, 5.5), ("receive", 5.5, 6.0),
        ("backward", 6.0, 8.0), ("update", 8.0, 8.5),
    ]  # fmt: skip
    busy = 1 + 0.25 + 0.5 + 2 + 0.5 + 1 + 2.5 + 0.25
    assert schedule.bubble_share == pytest.approx(1 - busy / (2 * 8.0))
    assert [(i.start_seconds, i.end_seconds) for i in schedule.idle(0)] == [(0, 0.5), (1.75, 5.5)]


def test_a_clock_that_is_a_little_off_makes_no_negative_times() -> None:
    late = trace(
        2, *((step, kind, m, a - 1.6, b - 1.6) for step, kind, m, a, b in SECOND.intervals)
    )
    for row in measured_schedule([FIRST, late], LAYOUT).stages:
        assert all(interval.seconds >= 0 for interval in row)


@pytest.mark.parametrize(
    ("traces", "sentence"),
    [
        ([], "the trace must have rank 0, got ranks"),
        ([FIRST, REPLICA], "the trace must have rank 2, got ranks"),
        ([FIRST, trace(2, (5, "forward", 0, 1.0, 2.0))], "must have 4 passes, got 3"),
    ],
)
def test_traces_of_another_layout_are_refused(traces: list[RankTrace], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        measured_schedule(traces, LAYOUT)


def test_pieces_of_traces_are_put_together() -> None:
    pieces = [
        trace(1, (3, "forward", 0, 7.0, 8.0)),
        trace(0, (3, "forward", 0, 5.0, 6.0)),
        trace(1, (3, "backward", 0, 8.0, 9.0)),
    ]
    assert merged(pieces) == (
        trace(0, (3, "forward", 0, 0.0, 1.0)),
        trace(1, (3, "forward", 0, 2.0, 3.0), (3, "backward", 0, 3.0, 4.0)),
    )
    assert merged([]) == ()
