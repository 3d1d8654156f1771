"""The lines of JSON that `python -m trainables.deepspeed_llm` prints."""

import dataclasses
from typing import Any

from autotune.trial.measurement import measure
from autotune.trial.trial import Ended, StepReport, TrialSpec


def step_line(step: StepReport) -> dict[str, Any]:
    """The line of a step."""
    return {
        "step": step.step,
        "loss": step.loss,
        "grad_norm": step.grad_norm,
        "step_seconds": step.step_seconds,
    }


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
