"""Number of trials that each search algorithm needs on recorded sweeps.

    python benchmarks/search_replay.py --runs PATH --seeds K --json OUT

PATH is a CSV or .xlsx of recorded runs or a folder of them. A trial costs 120 s of start-up, plus
15 steps if it does not fail, times its GPUs. A search ends with the first layout whose step time is
within 1 % of the sweep's best. Seeds vary the noise on step times (0.5 %) and the order of ties.
The cost model is not fitted on the sweep that it guides: see `autotune.calibration.held_out`.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from autotune.calibration.held_out import held_out_constants
from autotune.calibration.recorded_runs import RecordedRun, Sweep, read_sweeps
from autotune.cost.model import CostModel
from autotune.options.command_line import command_line
from autotune.search import Observation, Prior, TrialCost, make_search, prune

STARTUP_SECONDS = 120.0
STEPS = 15
GOOD_ENOUGH = 1.01
NOISE = 0.005
_WIDTH = 120
SEARCHES = ("guided", "hyperopt", "random", "rules")


@dataclasses.dataclass(frozen=True, slots=True)
class Replay:
    """Cost of one search on one sweep, until it ran a layout within 1 % of the best."""

    trials: int
    gpu_hours: float


def replay(name: str, sweep: Sweep, prior: Prior | None, seed: int) -> Replay:
    """Run a search to the first layout within 1 % of the best."""
    random = np.random.default_rng(seed)
    noise = dict(
        zip(sweep.runs, np.exp(NOISE * random.standard_normal(len(sweep.runs))), strict=True)
    )
    runs = {run.layout: run for run in sweep.runs}
    devices = sweep.cluster.devices
    cost = TrialCost(
        seconds=lambda layout: (STARTUP_SECONDS, STEPS),
        devices=devices,
        training_gpu_hours=math.inf,  # no early end: only the time to a good layout counts
        training_steps=1,
    )
    search = make_search(name, list(runs), seed=seed, prior=prior, cost=cost)
    left = set(runs)
    trials, seconds = 0, 0.0
    while (layout := search.ask()) is not None:
        run = runs[layout]
        trials += 1
        seconds += STARTUP_SECONDS + STEPS * (run.step_seconds or 0.0)
        if _is_good(run, sweep):
            return Replay(trials, seconds * devices / 3600)
        measured = run.step_seconds and run.step_seconds * noise[run]
        observation = Observation(layout=layout, outcome=run.outcome, step_seconds=measured)
        search.tell(observation)
        left.discard(layout)
        pruned = [pruned_layout.layout for pruned_layout in prune(observation, left)]
        left.difference_update(pruned)
        search.discard(pruned)
    raise AssertionError(f"{name} ended before it found a good layout of {sweep.name}")


def _is_good(run: RecordedRun, sweep: Sweep) -> bool:
    return run.step_seconds is not None and run.step_seconds <= GOOD_ENOUGH * sweep.best_seconds


@click.command()
@click.option("--runs", "path", type=click.Path(path_type=Path), required=True, metavar="PATH")
@click.option("--seeds", type=click.IntRange(min=1), default=5, show_default=True, metavar="K")
@click.option("--json", "out", type=click.Path(path_type=Path), metavar="OUT")
def main(path: Path, seeds: int, out: Path | None) -> int:
    """Replay recorded sweeps with every search algorithm."""
    sweeps = read_sweeps(path)
    constants = held_out_constants(sweeps, path)
    results: dict[str, dict[str, dict[str, float]]] = {}
    console = Console(width=_WIDTH)
    for sweep in track(sweeps, "replaying", console=Console(stderr=True), transient=True):
        model = CostModel(
            sweep.model,
            sweep.precision,
            sweep.cluster,
            trainer=sweep.trainer,
            constants=constants[sweep.name],
        )
        prior = Prior(model, [run.layout for run in sweep.runs])
        results[sweep.name] = {
            name: _summary([replay(name, sweep, prior, seed) for seed in range(seeds)])
            for name in SEARCHES
        }
    _print(console, results, seeds)
    if out is not None:
        out.write_text(json.dumps({"sweeps": results}, indent=2) + "\n", encoding="utf-8")
    return 0


def _summary(replays: Sequence[Replay]) -> dict[str, float]:
    trials = [replay.trials for replay in replays]
    return {
        "median_trials": float(np.median(trials)),
        "p90_trials": float(np.quantile(trials, 0.9)),
        "median_gpu_hours": float(np.median([replay.gpu_hours for replay in replays])),
    }


def _print(console: Console, results: dict[str, dict[str, dict[str, float]]], seeds: int) -> None:
    table = Table(
        title=f"Replayed, {seeds} seeds: median trials to within 1 % of the best (p90; GPU-hours)"
    )
    table.add_column("sweep")
    for name in SEARCHES:
        table.add_column(name, justify="right")
    for sweep, summaries in results.items():
        table.add_row(
            sweep,
            *(
                f"{summaries[name]['median_trials']:g} ({summaries[name]['p90_trials']:g}; "
                f"{summaries[name]['median_gpu_hours']:.0f})"
                for name in SEARCHES
            ),
        )
    totals = {
        name: [
            sum(summaries[name][key] for summaries in results.values())
            for key in ("median_trials", "median_gpu_hours")
        ]
        for name in SEARCHES
    }
    table.add_section()
    table.add_row("sum", *(f"{trials:g} ({hours:.0f})" for trials, hours in totals.values()))
    console.print(table)


if __name__ == "__main__":
    sys.exit(command_line(main))
