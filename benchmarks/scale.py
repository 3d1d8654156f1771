"""Simulated searches on many nodes, and the work per trial over thousands of trials.

    python benchmarks/scale.py [--nodes N]... [--trials T] [--ledger-trials L] [--json OUT]

Each number of nodes is one search of llm405b in a separate process, with real Ray Tune trials in
one real placement group. Then, without Ray: a random search of L trials over 18,000 layouts, which
is resumed from its files; and a guided search that is told 1,000 results.
"""

import dataclasses
import functools
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import psutil
from rich.console import Console
from rich.table import Table

from autotune.hardware import device_named
from autotune.ledger.ledger import Ledger
from autotune.ledger.search_setup import observation_of, search_for
from autotune.named_spaces import load_space
from autotune.options.command_line import command_line
from autotune.request import Request
from autotune.space import SearchSpace
from autotune.store.record import TrialRecord
from autotune.store.run_directory import create_run, open_run
from autotune.trial.trial import StepReport, TrialSpec
from trainables.simulated import SimulatedTrainable

_WIDTH = 110
# Data parallelism over 131,072 devices needs a batch that it divides.
_LEAST_BATCH = 2048
# Trials of which the time is compared: medians over so many around each.
_EARLY, _LATE, _AROUND = 100, 2000, 50
_TOLD = 1000


@click.command()
@click.option("--nodes", "sizes", type=int, multiple=True, default=(256, 2048, 16_384))
@click.option("--trials", type=click.IntRange(min=2), default=30, show_default=True)
@click.option(
    "--ledger-trials", type=click.IntRange(min=_LATE + _AROUND), default=5000, show_default=True
)
@click.option("--json", "out", type=click.Path(path_type=Path), metavar="OUT")
def main(sizes: tuple[int, ...], trials: int, ledger_trials: int, out: Path | None) -> int:
    """Run one simulated search per size, a long one without Ray, and a guided one."""
    console = Console(width=_WIDTH)
    searches = {nodes: measure(nodes, trials) for nodes in sizes}
    table = Table(title=f"Simulated searches of llm405b, at most {trials} trials")
    table.add_column("nodes of 8")
    names = list(next(iter(searches.values())))
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for nodes, figures in searches.items():
        table.add_row(str(nodes), *(f"{figures[name]:.3g}" for name in names))
    console.print(table)
    ledger = measure_ledger(ledger_trials)
    _print(console, f"Random search of {ledger_trials} trials, without Ray", ledger)
    guided = measure_guided()
    _print(console, f"Guided search that is told {_TOLD} results", guided)
    if out is not None:
        results = {"searches": searches, "ledger": ledger, "guided": guided}
        out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


def _print(console: Console, title: str, figures: Mapping[str, float]) -> None:
    table = Table(title=title, show_header=False)
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), f"{value:.3g}")
    console.print(table)


def measure(nodes: int, trials: int) -> dict[str, Any]:
    """Run one search; returns times in seconds and memory in MiB."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "run"
        command = [
            *(sys.executable, "-m", "autotune.run", "--space", "llm405b", "--no-dashboard"),
            # Random order: a guided search would stop after a few trials.
            *("--trainable", "simulated", "--search", "random", "--out", str(directory)),
            *("--nodes", str(nodes), "--max-trials", str(trials)),
            *("--global-batch-size", str(max(_LEAST_BATCH, nodes))),
        ]
        start = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as search:
            memory = _memory_while_running(search, directory)
        if search.returncode != 0:
            raise RuntimeError(f"the search on {nodes} nodes ended with status {search.returncode}")
        wall = time.monotonic() - start
        records = open_run(directory).trials()
    durations = [(r.finished_at - r.started_at).total_seconds() for r in records]
    between = [
        (later.finished_at - sooner.finished_at).total_seconds()
        for sooner, later in itertools.pairwise(records)
    ]
    first, last = memory[0][1], memory[-1][1]
    return {
        "trials": len(records),
        "wall_seconds": wall,
        "first_trial_with_group_seconds": durations[0],
        "median_seconds_per_trial": statistics.median(between),
        "driver_mib": last,
        "driver_mib_per_100_trials": 100 * (last - first) / max(1, memory[-1][0] - memory[0][0]),
    }


def _memory_while_running(
    search: subprocess.Popen[bytes], directory: Path
) -> list[tuple[int, float]]:
    """(finished trials, resident MiB of the driver), every second from the first trial on."""
    process = psutil.Process(search.pid)
    samples = [(0, 0.0)]
    while search.poll() is None:
        finished = len(list(directory.glob("trials/*.parquet")))
        try:
            resident = process.memory_info().rss / 2**20
        except psutil.NoSuchProcess:
            break
        if finished:
            sample = (finished, resident)
            samples = [*samples, sample] if samples[0][0] else [sample]
        time.sleep(1)
    return samples


class _Silent:
    """A listener that shows nothing."""

    def trial_started(self, spec: TrialSpec) -> None: ...

    def step_done(self, spec: TrialSpec, step: StepReport) -> None: ...

    def trial_begins_again(self, spec: TrialSpec, reason: str) -> None: ...

    def trial_finished(self, record: TrialRecord) -> None: ...


def large_space() -> SearchSpace:
    """A space of 18,000 layouts."""
    space, device = load_space("llm13b"), device_named("h100")
    values = {
        "cluster": dataclasses.replace(space.cluster, device=device),
        "pipeline_parallel": (1, 2, 4, 8, 16, 32),
        "micro_batch_size": (1, 2, 4, 8, 16, 32),
        "attention_kernel": device.attention_kernels,
        "torch_compile": (False, True),
    }
    return space.replaced(values, what=None)


def _request(search: str, trials: int) -> Request:
    return Request(space=large_space(), trainable="simulated", search=search, max_trials=trials)


def measure_ledger(trials: int) -> dict[str, float]:
    """Milliseconds that the ledger takes per trial, files included, early and late in one search;
    and the seconds in which that search is resumed."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "run"
        ledger = Ledger(create_run(directory, _request("random", trials)), _Silent())
        milliseconds = []
        while (took := _milliseconds_of_a_trial(ledger)) is not None:
            milliseconds.append(took)
        early, late = (
            statistics.median(milliseconds[number - _AROUND : number + _AROUND])
            for number in (_EARLY, _LATE)
        )
        store = open_run(directory)
        reading = _seconds(store.trials)
        resuming = _seconds(lambda: Ledger(store, _Silent()))
    return {
        f"ms_of_trial_{_EARLY}": early,
        f"ms_of_trial_{_LATE}": late,
        "ratio": late / early,
        "seconds_to_resume": resuming,
        "of_which_reading": reading,
    }


def _milliseconds_of_a_trial(ledger: Ledger) -> float | None:
    """Run the next trial; time the ledger alone. None: the search is over."""
    start = time.perf_counter()
    spec = ledger.next_trial()
    took = time.perf_counter() - start
    if spec is None:
        return None
    events = list(SimulatedTrainable().run(spec, []))
    start = time.perf_counter()
    for event in events:
        if not isinstance(event, StepReport):
            ledger.trial_ended(spec.trial_id, event)
        elif ledger.step_done(spec.trial_id, event):
            ledger.trial_stopped(spec.trial_id)
            break
    return 1000 * (took + time.perf_counter() - start)


def measure_guided() -> dict[str, float]:
    """Milliseconds of an `ask` and a `tell` of the guided search, early and late in one search."""
    with tempfile.TemporaryDirectory() as scratch:
        # Recorded by a random search, whose results disagree with the predictions most.
        request = _request("random", _TOLD)
        ledger = Ledger(create_run(Path(scratch) / "run", request), _Silent())
        while _milliseconds_of_a_trial(ledger) is not None:
            pass
    search = search_for(dataclasses.replace(request, search="guided"), ledger.request.all_layouts())
    asks, tells = [], []
    for record in ledger.records[:_TOLD]:
        tells.append(1000 * _seconds(functools.partial(search.tell, observation_of(record))))
        asks.append(1000 * _seconds(search.ask))
    return {
        f"{what}_{number}": statistics.median(times[number - _AROUND : number])
        for number in (_EARLY, _TOLD)
        for what, times in (("ms_of_tell", tells), ("ms_of_ask", asks))
    }


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(command_line(main))
