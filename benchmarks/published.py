"""Predictions judged by training runs that others published: errors, intervals, order, memory.

    python benchmarks/published.py --runs CSV [--json OUT]

CSV has the columns of `autotune.calibration.published_runs.COLUMNS`. No constant of the cost model
is fitted to published runs, so no row is judged by a fit that saw it or its source.
"""

import collections
import dataclasses
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table
from scipy import stats

from autotune.calibration.published_runs import PublishedRun, read_published_runs
from autotune.cost.model import CostModel
from autotune.cost.uncertainty import STATED_SHARE, step_time_interval
from autotune.errors import InputError, in_field
from autotune.inputs import shown
from autotune.options.command_line import command_line

_WIDTH = 110
# Sets of runs of one model on one cluster have at least as many.
_SMALLEST_SET = 3


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A published run and its prediction; null where it cannot be predicted."""

    run: PublishedRun
    why_not: str | None
    step_seconds: float | None = None
    low_step_seconds: float | None = None
    high_step_seconds: float | None = None
    peak_memory_gib: float | None = None
    fit_probability: float | None = None

    @property
    def error(self) -> float:
        """Relative error of the step time of a clean run."""
        assert self.step_seconds is not None and self.run.step_seconds is not None
        return self.step_seconds / self.run.step_seconds - 1

    @property
    def in_interval(self) -> bool:
        """Whether the published step time is within the predicted interval."""
        low, high, published = self.low_step_seconds, self.high_step_seconds, self.run.step_seconds
        assert low is not None and high is not None and published is not None
        return low <= published <= high

    def as_json(self) -> dict[str, Any]:
        """The row of the JSON file."""
        return {
            "id": self.run.id,
            "source": self.run.source,
            "status": self.run.status,
            "doubt": self.run.doubtful,
            "trainer": self.run.training and self.run.training.trainer,
            "published_step_seconds": self.run.step_seconds,
            "predicted_step_seconds": self.step_seconds,
            "low_step_seconds": self.low_step_seconds,
            "high_step_seconds": self.high_step_seconds,
            "published_peak_memory_gib": self.run.peak_memory_gib,
            "predicted_peak_memory_gib": self.peak_memory_gib,
            "oom": self.run.ran_out_of_memory,
            "fit_probability": self.fit_probability,
            "why_not": self.why_not,
        }


def judge(run: PublishedRun) -> Judged:
    """Predict a published run."""
    training = run.training
    if training is None:
        return Judged(run=run, why_not=run.why_not)
    try:
        model = CostModel(training.model, "bf16", training.cluster, trainer=training.trainer)
        prepared = model.prepare([training.layout])
    except InputError as error:
        return Judged(run=run, why_not=str(error))
    estimates = model.estimate(prepared)
    low, high = step_time_interval(model, prepared)
    return Judged(
        run=run,
        why_not=None,
        step_seconds=float(estimates.step_seconds[0]),
        low_step_seconds=float(low[0]),
        high_step_seconds=float(high[0]),
        peak_memory_gib=float(estimates.peak_memory_gib[0]),
        fit_probability=float(estimates.fit_probability[0]),
    )


def clean_rows(judged: Sequence[Judged]) -> list[Judged]:
    """The rows whose step time judges the predictions."""
    return [row for row in judged if row.run.clean and row.step_seconds is not None]


def hardware_of(run: PublishedRun) -> str:
    """Device of a run that can be said."""
    assert run.training is not None
    return run.training.cluster.device.name


def kind_of(run: PublishedRun) -> str:
    """Device, one or more nodes, and pipeline stages or ZeRO stage."""
    training = run.training
    assert training is not None
    nodes = "one node" if training.cluster.nodes == 1 else "more nodes"
    staged = training.layout.pipeline_parallel > 1
    parallelism = "pipeline" if staged else f"ZeRO {training.layout.zero_stage}"
    return f"{training.cluster.device.name}, {nodes}, {parallelism}"


def order_within_sets(judged: Sequence[Judged]) -> list[tuple[float, float]]:
    """For each set of runs of one model on one cluster: the rank correlation of published and
    predicted seconds per sequence, and how much slower than the best the predicted best ran."""
    sets: dict[Any, list[Judged]] = collections.defaultdict(list)
    for row in judged:
        training = row.run.training
        assert training is not None
        one_batch = dataclasses.replace(training.model, global_batch_size=1)
        sets[row.run.source, one_batch, training.cluster.describe()].append(row)
    found = []
    for rows in sets.values():
        batches = np.array([_batch(row) for row in rows])
        published = np.array([row.run.step_seconds for row in rows], dtype=float) / batches
        predicted = np.array([row.step_seconds for row in rows], dtype=float) / batches
        if len(rows) >= _SMALLEST_SET and min(len(set(published)), len(set(predicted))) > 1:
            correlation = float(stats.spearmanr(published, predicted).statistic)
            regret = float(published[predicted.argmin()] / published.min() - 1)
            found.append((correlation, regret))
    return found


def _batch(judged: Judged) -> int:
    assert judged.run.training is not None
    return judged.run.training.model.global_batch_size


def write_text(path: Path, text: str) -> None:
    """Write a file. Raises InputError where that is impossible."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {shown(path)}: {error.strerror}") from None


@click.command()
@click.option("--runs", "path", type=click.Path(path_type=Path), required=True, metavar="CSV")
@click.option("--json", "out", type=click.Path(path_type=Path), metavar="OUT")
def main(path: Path, out: Path | None) -> int:
    """Print the prediction errors of published runs."""
    judged = [judge(run) for run in read_published_runs(path)]
    clean = clean_rows(judged)
    console = Console(width=_WIDTH)
    for title, group in (
        ("source", lambda run: run.source),
        ("hardware", hardware_of),
        ("kind", kind_of),
    ):
        _print_errors(console, clean, title, group)
    _print_others(console, judged, clean)
    if out is not None:
        rows = [row.as_json() for row in judged]
        with in_field("json"):
            write_text(out, json.dumps({"rows": rows}, indent=2) + "\n")
    return 0


def _print_errors(
    console: Console, clean: Sequence[Judged], title: str, group: Callable[[PublishedRun], str]
) -> None:
    table = Table(title=f"Predicted step times against published ones, by {title}")
    table.add_column(title)
    for heading in ("runs", "median error", "mean error", "bias (median)", "in 80 % interval"):
        table.add_column(heading, justify="right")
    groups: dict[str, list[Judged]] = collections.defaultdict(list)
    for row in clean:
        groups[group(row.run)].append(row)
    for name, rows in sorted(groups.items()):
        table.add_row(name, *_errors(rows))
    table.add_section()
    table.add_row("all", *_errors(clean))
    console.print(table)


def _errors(rows: Sequence[Judged]) -> list[str]:
    if not rows:
        return ["0", *["-"] * 4]
    errors = [row.error for row in rows]
    sizes = [abs(error) for error in errors]
    return [
        str(len(rows)),
        f"{statistics.median(sizes):.1%}",
        f"{statistics.fmean(sizes):.1%}",
        f"{statistics.median(errors):+.1%}",
        f"{statistics.fmean(row.in_interval for row in rows):.0%}",
    ]


def _print_others(console: Console, judged: Sequence[Judged], clean: Sequence[Judged]) -> None:
    orders = order_within_sets(clean)
    if orders:
        console.print(
            f"{len(orders)} sets of runs of one model on one cluster: rank correlation "
            f"{statistics.fmean(order[0] for order in orders):.2f}, regret of the predicted best "
            f"{statistics.fmean(order[1] for order in orders):.1%} (means)"
        )
    known = [row for row in judged if row.fit_probability is not None and not row.run.doubtful]
    out = [row for row in known if row.run.ran_out_of_memory]
    fits = [row for row in known if row.run.step_seconds is not None]
    missed = [row.run.id for row in out if (row.fit_probability or 0) >= 0.5]
    false_alarms = [row.run.id for row in fits if (row.fit_probability or 0) < 0.5]
    console.print(
        f"Out of memory: {len(out) - len(missed)} of {len(out)} predicted (missed: "
        f"{', '.join(missed) or 'none'}); of {len(fits)} runs that fitted, "
        f"{len(false_alarms)} were predicted not to ({', '.join(false_alarms) or 'none'})"
    )
    ratios: dict[str, list[float]] = collections.defaultdict(list)
    for row in known:
        if row.run.peak_memory_gib and row.peak_memory_gib:
            ratios[row.run.memory_kind].append(row.peak_memory_gib / row.run.peak_memory_gib)
    for kind, values in ratios.items():
        console.print(
            f"Peak memory, {kind or 'kind unknown'}: predicted over published "
            f"{statistics.median(values):.2f} (median of {len(values)})"
        )
    reasons = collections.Counter(row.why_not for row in judged if row.why_not)
    for reason, count in reasons.most_common():
        console.print(f"{count:>5} not predicted: {reason}")
    console.print(
        f"{len(judged)} rows, {len(clean)} of them clean. Intervals are meant to hold "
        f"{STATED_SHARE:.0%}. No constant is fitted to published runs."
    )


if __name__ == "__main__":
    sys.exit(command_line(main))
