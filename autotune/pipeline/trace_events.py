"""A schedule in the trace-event format, which Perfetto (ui.perfetto.dev) and Chrome display."""

from collections.abc import Iterator
from typing import Any

from autotune.pipeline.schedule import Interval, Schedule


def trace_events(schedule: Schedule) -> dict[str, Any]:
    """The content of a trace file: a process for the step, a thread per stage, microseconds."""
    return {
        "traceEvents": list(_events(schedule)),
        "displayTimeUnit": "ms",
        "otherData": {
            "source": schedule.source,
            "step_seconds": schedule.step_seconds,
            "bubble_share": schedule.bubble_share,
        },
    }


def _events(schedule: Schedule) -> Iterator[dict[str, Any]]:
    yield _metadata("process_name", 0, f"step ({schedule.source})")
    for stage, row in enumerate(schedule.stages):
        yield _metadata("thread_name", stage, f"stage {stage}")
        yield {**_metadata("thread_sort_index", stage, ""), "args": {"sort_index": stage}}
        for interval in row:
            yield {
                "ph": "X",
                "pid": 0,
                "tid": stage,
                "name": _name(interval),
                "cat": interval.kind,
                "ts": 1e6 * interval.start_seconds,
                "dur": 1e6 * interval.seconds,
                "args": {"micro_batch": interval.micro_batch},
            }


def _metadata(name: str, thread: int, value: str) -> dict[str, Any]:
    return {"ph": "M", "pid": 0, "tid": thread, "name": name, "args": {"name": value}}


def _name(interval: Interval) -> str:
    if interval.micro_batch is None:
        return interval.kind
    return f"{interval.kind} {interval.micro_batch}"
