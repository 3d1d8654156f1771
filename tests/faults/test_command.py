"""Faults of the user's training command."""

import dataclasses
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from autotune.trial.trial import Ended, Outcome, TrialSpec
from tests.faults.conftest import Row
from tests.trainables.command.conftest import Trials, sleepers, spec, trials
from tests.trainables.command.recipes import recipe
from tests.trainables.command.script import FAILS_AT

__all__ = ["spec", "trials"]  # fixtures

WRONG_PATTERN = {"figures": {"step_seconds": {"pattern": r"seconds=([\d.]+)"}}}


@pytest.mark.parametrize(
    ("fault", "behaviour", "changes", "outcome", "sentence"),
    [
        ("a rank is killed", "is killed", {}, Outcome.CRASHED,
         "rank 1: killed by signal 9; its last lines: .*rank 1: is killed"),
        ("leaves with exit status 7", "exits with 7", {}, Outcome.CRASHED,
         "left with exit status 7; its last lines: .*something is wrong"),
        ("prints no figure", "silent", {}, Outcome.CRASHED,
         "the command ended without a step that could be read; its last lines: .*without a word"),
        ("wrong regular expression", "silent", WRONG_PATTERN, Outcome.CRASHED,
         "the command ended without a step that could be read; its last lines: .*without a word"),
        ("NaN as loss", "NaN", {}, Outcome.INVALID, "step 0: loss nan, None as gradient norm"),
        ("reports another figure", "bad report", {}, Outcome.INVALID,
         "a reported step must have step_seconds, .*, got 'step_time'"),
        ("fills stdout (30 MB)", "flood", {}, Outcome.OK, ""),
        ("ignores SIGTERM", "ignores SIGTERM", {}, Outcome.OK, ""),
        ("forks away (setsid)", "forks away", {}, Outcome.OK, ""),
    ],
)  # fmt: skip
def test_how_a_command_ends(
    fault: str,
    behaviour: str,
    changes: dict[str, Any],
    outcome: Outcome,
    sentence: str,
    trials: Trials,
    spec: TrialSpec,
    row: Callable[[Row], None],
) -> None:
    _, ended = trials.run(spec, recipe(behaviour, stop_seconds=0.5, **changes))
    assert ended.outcome is outcome, ended
    assert re.search(sentence, ended.reason), ended.reason
    assert not sleepers()
    row(row_of(fault, ended))


def test_a_command_that_hangs_meets_its_deadline(
    trials: Trials, spec: TrialSpec, row: Callable[[Row], None]
) -> None:
    spec = dataclasses.replace(spec, step_deadline_seconds=1.0)
    started = time.monotonic()
    _, ended = trials.run(spec, recipe("hangs"))
    assert ended == Ended(outcome=Outcome.TIMEOUT, reason="step 2 was not done within its 1 s")
    row(row_of("hangs", ended, seconds=time.monotonic() - started))


def test_a_command_runs_out_of_memory(
    trials: Trials, spec: TrialSpec, row: Callable[[Row], None]
) -> None:
    layout = dataclasses.replace(spec.layout, micro_batch_size=FAILS_AT)
    _, ended = trials.run(dataclasses.replace(spec, layout=layout), recipe())
    assert ended.outcome is Outcome.OOM and "MemoryError: no memory for this" in ended.reason
    row(row_of("out of memory", ended))


def row_of(fault: str, ended: Ended, seconds: float | None = None) -> Row:
    """A row of the table, without what differs between machines."""
    reason = re.sub(r"its last lines: .*", "its last lines", ended.reason)
    recorded = f"{ended.outcome}: {reason}" if reason else str(ended.outcome)
    return Row(fault=f"command: {fault}", recorded=recorded, seconds=seconds)
