"""Simulated searches on many nodes: driver time and memory per trial, placement group creation.

    python benchmarks/scale.py [--nodes N]... [--trials T] [--json OUT]

Each size is one search of llm405b in a separate process, with real Ray Tune trials in one real
placement group of that many logical nodes.
"""

import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import psutil
from rich.console import Console
from rich.table import Table

from autotune.options.command_line import command_line
from autotune.store.run_directory import open_run

_WIDTH = 110
# 10,000 devices need a batch size that all data-parallel sizes divide.
_GLOBAL_BATCH = {1250: 10_000}


@click.command()
@click.option("--nodes", "sizes", type=int, multiple=True, default=(16, 128, 1250))
@click.option("--trials", type=click.IntRange(min=2), default=200, show_default=True)
@click.option("--json", "out", type=click.Path(path_type=Path), metavar="OUT")
def main(sizes: tuple[int, ...], trials: int, out: Path | None) -> int:
    """Run one simulated search per size."""
    results = {nodes: measure(nodes, trials) for nodes in sizes}
    table = Table(title=f"Simulated searches of llm405b, at most {trials} trials")
    table.add_column("nodes of 8")
    names = list(next(iter(results.values())))
    for name in names:
        table.add_column(name.replace("_", " "), justify="right")
    for nodes, figures in results.items():
        table.add_row(str(nodes), *(f"{figures[name]:.3g}" for name in names))
    Console(width=_WIDTH).print(table)
    if out is not None:
        out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


def measure(nodes: int, trials: int) -> dict[str, Any]:
    """Run one search; returns times in seconds and memory in MiB."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch) / "run"
        command = [
            *(sys.executable, "-m", "autotune.run", "--space", "llm405b", "--no-dashboard"),
            # Random order: a guided search would stop after a few trials.
            *("--trainable", "simulated", "--search", "random", "--out", str(directory)),
            *("--nodes", str(nodes), "--max-trials", str(trials)),
            *("--global-batch-size", str(_GLOBAL_BATCH.get(nodes, 2048))),
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


if __name__ == "__main__":
    sys.exit(command_line(main))
