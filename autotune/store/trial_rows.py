"""The rows of a trial's steps and traces, and the traces that rows were made from."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from autotune.store.record import TrialRecord
from autotune.trial.trace import RankTrace, Traced
from autotune.trial.trial import StepReport, to_json


def step_rows(record: TrialRecord, steps: Sequence[StepReport]) -> list[dict[str, Any]]:
    """A row per step and rank, by the names of `STEP_SCHEMA`."""
    return [
        {
            "trial_id": record.trial_id,
            "micro_batches": step.micro_batches or record.layout.gradient_accumulation_steps,
            **_plain(to_json(rank)),
        }
        for step in steps
        for rank in step.ranks
    ]


def trace_rows(record: TrialRecord, traces: Sequence[RankTrace]) -> list[dict[str, Any]]:
    """A row per traced event of every rank, by the names of `TRACE_SCHEMA`."""
    per_stage = record.layout.ranks_per_stage
    return [
        {
            "trial_id": record.trial_id,
            "rank": trace.rank,
            "stage": trace.rank // per_stage,
            "clock_offset_seconds": trace.clock_offset_seconds,
            **traced._asdict(),
        }
        for trace in traces
        for traced in trace.intervals
    ]


def ranks_of_rows(rows: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """The fields of the `RankTrace` of each rank, from what `trace_rows` gave."""

    def rank(row: Mapping[str, Any]) -> Any:
        return row["rank"]

    for number, of_rank in itertools.groupby(sorted(rows, key=rank), key=rank):
        own = list(of_rank)
        yield {
            "rank": number,
            "clock_offset_seconds": own[0]["clock_offset_seconds"],
            "intervals": [[row[name] for name in Traced._fields] for row in own],
        }


def _plain(values: object) -> dict[str, Any]:
    assert isinstance(values, dict)
    return values
