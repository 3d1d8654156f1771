"""Cross-validation of the cost model on recorded sweeps: errors of step time, memory and ranking.

    python benchmarks/cost_accuracy.py --runs PATH --json OUT

PATH is a CSV or .xlsx of recorded runs or a folder of them. Each sweep is predicted with constants
that were not fitted on it (leave one out): see `autotune.calibration.held_out`.
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
from autotune.calibration.held_out import held_out_constants
from autotune.calibration.recorded_runs import read_sweeps
from autotune.options.command_line import command_line

_WIDTH = 110
_AVERAGED = ("step_time_mape", "oom_f1", "oom_precision", "oom_recall", "spearman")


@click.command()
@click.option("--runs", "path", type=click.Path(path_type=Path), required=True, metavar="PATH")
@click.option("--json", "out", type=click.Path(path_type=Path), metavar="OUT")
def main(path: Path, out: Path | None) -> int:
    """Print the prediction errors of each recorded sweep."""
    sweeps = read_sweeps(path)
    constants = held_out_constants(sweeps, path)
    results = {
        sweep.name: dataclasses.asdict(accuracy(sweep, constants[sweep.name])) for sweep in sweeps
    }
    mean = {name: _mean([figures[name] for figures in results.values()]) for name in _AVERAGED}
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
    for sweep, figures in results.items():
        counts = (str(figures[name]) for name in ("rows", "ok", "oom"))
        table.add_row(sweep, *counts, *_formatted(figures))
    table.add_section()
    table.add_row("mean", "", "", "", *_formatted(mean))
    Console(width=_WIDTH).print(table)


def _formatted(figures: dict[str, Any]) -> list[str]:
    formats = {name: ".3f" for name in _AVERAGED} | {"step_time_mape": ".1%"}
    return ["-" if figures[n] is None else format(figures[n], f) for n, f in formats.items()]


if __name__ == "__main__":
    sys.exit(command_line(main))
