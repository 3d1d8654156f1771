"""The trace for Perfetto says what the schedule does."""

import json

import pytest

from autotune.pipeline.trace_events import trace_events
from tests.autotune.pipeline.schedules import equal_stages


def test_a_trace_is_read_back() -> None:
    schedule = equal_stages(3, 5, transfer=0.25, reduction=0.5, update=1.0)
    trace = json.loads(json.dumps(trace_events(schedule)))
    assert trace["otherData"]["source"] == "predicted"
    assert trace["otherData"]["bubble_share"] == schedule.bubble_share
    names = [
        event["args"]["name"]
        for event in trace["traceEvents"]
        if event["ph"] == "M" and event["name"].endswith("_name")
    ]
    assert names == ["step (predicted)", "stage 0", "stage 1", "stage 2"]
    for stage, row in enumerate(schedule.stages):
        events = [e for e in trace["traceEvents"] if e["ph"] == "X" and e["tid"] == stage]
        assert len(events) == len(row)
        for event, interval in zip(events, row, strict=True):
            assert event["cat"] == interval.kind
            assert event["args"] == {"micro_batch": interval.micro_batch}
            assert event["ts"] == pytest.approx(1e6 * interval.start_seconds), "microseconds"
            assert event["dur"] == pytest.approx(1e6 * interval.seconds)
    assert {e["name"] for e in trace["traceEvents"] if e["ph"] == "X"} >= {"forward 4", "update"}
