"""Runs side by side: a fair comparison has the same devices, model, batch and precision.

MFU is computed anew by the same formula for all runs.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console

from autotune.errors import InputError
from autotune.ledger.ranking import equal_within_noise
from autotune.report.facts import RunFacts, hours_text, number, percent
from autotune.report.layouts import narrow_table
from autotune.store.record import TrialRecord
from autotune.trial.measurement import utilisation

# What must be equal, as text for a reader.
_MUST_BE_EQUAL: Mapping[str, Callable[[RunFacts], str]] = {
    "devices": lambda run: str(run.space.cluster.devices),
    "nodes": lambda run: str(run.space.cluster.nodes),
    "device": lambda run: run.space.cluster.device.name,
    "memory limit": lambda run: number(run.memory_limit_gib, ".4g", "GiB"),
    "parameters": lambda run: f"{run.space.model.parameters:,}",
    "FLOPs per token": lambda run: f"{run.space.model.model_flops_per_token:.6g}",
    "sequence length": lambda run: str(run.space.model.sequence_length),
    "global batch": lambda run: str(run.space.model.global_batch_size),
    "precision": lambda run: run.space.precision,
    "figures": lambda run: run.word,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """The best layout of one run."""

    name: str
    """The run's directory."""
    word: str
    """What its figures are: measured, replayed or simulated."""
    record: TrialRecord
    mfu: float | None
    """0..1; None where the device's peak is unknown, or the precision is not bf16."""
    trials: int
    gpu_hours: float
    beside_first: str
    """Its step time beside that of the first run, as text."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Several runs, in the order in which they were named."""

    runs: Sequence[Compared]
    differences: Mapping[str, Sequence[str]]
    """What is not equal, with its value in each run; empty: the comparison is fair."""


def compare(runs: Sequence[RunFacts], *, anyway: bool = False) -> Comparison:
    """Compare the best layouts of runs.

    Raises InputError for less than two runs, for one in which no layout worked, and, unless
    `anyway`, where they are not alike.
    """
    if len(runs) < 2:
        raise InputError(f"must be two runs or more, got {len(runs)}", field="directories")
    places = [run.directory.resolve() for run in runs]
    if len(set(places)) < len(places):
        twice = next(run.directory for run in runs if places.count(run.directory.resolve()) > 1)
        raise InputError(
            f"must not name a run twice, got {str(twice)!r} again", field="directories"
        )
    differences = {}
    for what, value_of in _MUST_BE_EQUAL.items():
        values = [value_of(run) for run in runs]
        if len(set(values)) > 1:
            differences[what] = values
    if differences and not anyway:
        named = "; ".join(f"{what} {' and '.join(v)}" for what, v in differences.items())
        raise InputError(
            f"must be alike for a fair comparison, got {named} (`anyway` compares them all the "
            "same)",
            field="directories",
        )
    compared = [_compared(run, runs[0]) for run in runs]
    return Comparison(runs=compared, differences=differences)


def _compared(run: RunFacts, first: RunFacts) -> Compared:
    if run.best is None or first.best is None:
        nothing = run if run.best is None else first
        raise InputError(
            f"must be runs in which a layout worked, got {str(nothing.directory)!r}",
            field="directories",
        )
    space, rate = run.space, run.best.measurement.tokens_per_second_per_gpu
    flops = space.model.model_flops_per_token
    return Compared(
        name=str(run.directory),
        word=run.word,
        record=run.best,
        mfu=utilisation(space.cluster, space.precision, flops, rate),
        trials=len(run.records),
        gpu_hours=run.gpu_hours,
        beside_first=_beside(first.best, run.best),
    )


def _beside(first: TrialRecord, other: TrialRecord) -> str:
    if other is first:
        return "first"
    if equal_within_noise(first, other):
        return "within noise"
    a, b = first.measurement.step_seconds, other.measurement.step_seconds
    return "–" if not a or not b else f"{b / a - 1:+.1%}"  # noqa: RUF001


def print_comparison(console: Console, comparison: Comparison) -> None:
    """Print the runs as a table, after what makes the comparison unfair."""
    for what, values in comparison.differences.items():
        console.print(
            f"not alike: {what} {' and '.join(values)}", style="bold yellow", soft_wrap=True
        )
    words = {run.word for run in comparison.runs}
    title = f"Best layouts, {words.pop()}" if len(words) == 1 else "Best layouts"
    table = narrow_table(title)
    table.add_column("run", overflow="fold")
    table.add_column("layout", min_width=16)
    for heading in ("step s", "IQR", "vs first", "MFU", "tok/s/GPU", "GiB", "trials", "GPU-h"):
        table.add_column(heading, justify="right")
    for run in comparison.runs:
        measured = run.record.measurement
        table.add_row(
            run.name if len({r.word for r in comparison.runs}) == 1 else f"{run.name} ({run.word})",
            run.record.layout.describe(),
            number(measured.step_seconds, ".4g"),
            number(measured.step_seconds_iqr, ".2g"),
            run.beside_first,
            percent(run.mfu),
            number(measured.tokens_per_second_per_gpu, ".4g"),
            number(measured.peak_memory_gib, ".3g"),
            str(run.trials),
            hours_text(run.gpu_hours),
        )
    console.print(table)


def plain(comparison: Comparison) -> dict[str, Any]:
    """The comparison as JSON values."""
    names = ("trial_id", "purpose", "step_seconds", "step_seconds_iqr", "peak_memory_gib")
    runs = []
    for run in comparison.runs:
        row = run.record.row()
        runs.append(
            {
                "run": run.name,
                "word": run.word,
                "layout": run.record.layout.columns(),
                **{name: row[name] for name in names},
                "tokens_per_second_per_gpu": row["tokens_per_second_per_gpu"],
                "mfu": run.mfu,
                "trials": run.trials,
                "gpu_hours": run.gpu_hours,
            }
        )
    return {
        "fair": not comparison.differences,
        "differences": {what: list(values) for what, values in comparison.differences.items()},
        "runs": runs,
    }
