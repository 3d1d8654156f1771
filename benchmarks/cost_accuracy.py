"""How good the cost model's predictions are on recorded sweeps that it has not seen.

    python benchmarks/cost_accuracy.py --runs PATH --json OUT

PATH is a CSV or .xlsx of recorded runs or a folder of them. Each sweep is judged with constants
that know nothing of it: see `autotune.calibration.held_out`.
"""

import dataclasses
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from autotune.calibration.fit import accuracy
from autotune.calibration.held_out import unseen_constants
from autotune.calibration.recorded_runs import read_sweeps
from autotune.options.command_line import command_line

_WIDTH = 110
_AVERAGED = ("step_time_mape", "oom_f1", "oom_precision", "oom_recall", "spearman")


@click.command()
@click.option("--runs", "path", type=click.Path(path_type=Path), required=True, metavar="PATH")
@click.option("--json", "out", type=click.Path(path_type=Path), metavar="OUT")
def main(path: Path, out: Path | None) -> int:
    """Judge predictions of step time and memory, sweep by sweep."""
    sweeps = read_sweeps(path)
    constants = unseen_constants(sweeps, path)
    results = {
        sweep.name: dataclasses.asdict(accuracy(sweep, constants[sweep.name])) for sweep in sweeps
    }
    mean = {name: _mean([found[name] for found in results.values()]) for name in _AVERAGED}
    _print(results, mean)
    if out is not None:
        content = {"sweeps": results, "mean": mean}
        out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return 0


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _print(results: dict[str, dict[str, Any]], mean: dict[str, float | None]) -> None:
    table = Table(title="Predictions of sweeps that were left out of the fit")
    table.add_column("sweep")
    for heading in ("rows", "ok", "oom", "time error", "OOM F1", "precision", "recall", "Spearman"):
        table.add_column(heading, justify="right")
    for sweep, found in results.items():
        counts = (str(found[name]) for name in ("rows", "ok", "oom"))
        table.add_row(sweep, *counts, *_figures(found))
    table.add_section()
    table.add_row("mean", "", "", "", *_figures(mean))
    Console(width=_WIDTH).print(table)


def _figures(found: dict[str, Any]) -> list[str]:
    forms = {name: ".3f" for name in _AVERAGED} | {"step_time_mape": ".1%"}
    return ["-" if found[n] is None else format(found[n], form) for n, form in forms.items()]


if __name__ == "__main__":
    sys.exit(command_line(main))
