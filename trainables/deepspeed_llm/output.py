"""The lines of JSON that `python -m trainables.deepspeed_llm` prints."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from autotune.trial.measurement import measure
from autotune.trial.trace import RankTrace
from autotune.trial.trial import Ended, StepReport, TrialSpec, to_json


def step_line(step: StepReport) -> dict[str, Any]:
    """The line of a step."""
    return {
        "step": step.step,
        "loss": step.loss,
        "grad_norm": step.grad_norm,
        "step_seconds": step.step_seconds,
    }


def trace_lines(traces: Sequence[RankTrace]) -> Iterator[dict[str, Any]]:
    """A line per rank: what it did in the traced steps, as [step, kind, micro_batch, start_seconds,
    end_seconds]."""
    for trace in traces:
        values = to_json(trace)
        assert isinstance(values, dict)
        yield {"trace": True, **values}


def summary_line(spec: TrialSpec, steps: list[StepReport], ended: Ended) -> dict[str, Any]:
    """The last line: outcome, reason and measured figures."""
    measured = dataclasses.asdict(measure(spec, steps))
    return {
        "summary": True,
        "outcome": ended.outcome,
        "reason": ended.reason,
        "losses": [step.loss for step in steps],
        **{name: measured[name] for name in ("step_seconds", "peak_memory_gib", "mfu")},
        "startup_seconds": ended.startup_seconds,
    }
