"""Soak test: looks for leaks of memory, files and processes over many trials in one process.

    python benchmarks/soak.py [--simulated N] [--real N] [--json OUT]

Runs a simulated search of llm13b, then a real search of the tiny space. After every trial it
samples the search process and its descendants (Ray, the trainable's actor, host processes). Exit
status 1 if memory grew by more than 10 %, or open files, threads, processes or shared memory by
more than one per hundred trials: some are opened once and late.
"""

import contextlib
import dataclasses
import json
import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
import psutil
from rich.console import Console
from rich.table import Table

from autotune.ledger.ledger import Ledger
from autotune.ledger.ranking import CONFIRMED
from autotune.named_spaces import load_space
from autotune.on_ray.connection import ray_cluster
from autotune.on_ray.tuner import run_trials
from autotune.options.command_line import command_line
from autotune.request import Request
from autotune.store.record import TrialRecord
from autotune.store.run_directory import create_run
from autotune.trial.trainable import Trainable
from autotune.trial.trial import StepReport, TrialSpec
from trainables.deepspeed_llm.launch import DeepSpeedLlm
from trainables.simulated import SimulatedTrainable

_WIDTH = 110
_MIB = 2**20
# Growth is from the second tenth of the trials to the last: caches fill during the first tenth.
_PARTS = 10
_LARGEST_MEMORY_GROWTH = 0.10
_LARGEST_GROWTH_PER_TRIAL = 0.01


@click.command()
@click.option("--simulated", type=click.IntRange(min=20), default=300, show_default=True)
@click.option("--real", type=click.IntRange(min=20), default=60, show_default=True)
@click.option("--json", "out", type=click.Path(path_type=Path), metavar="OUT")
def main(simulated: int, real: int, out: Path | None) -> int:
    """Run both searches in this process and compare the first trials with the last."""
    before = _left_over()
    trials = {f"{simulated} simulated trials": simulated, f"{real} real trials": real}
    searches = (
        soak("llm13b", simulated, SimulatedTrainable()),
        soak("tiny", real, DeepSpeedLlm(device_kind="cpu")),
    )
    results = dict(zip(trials, searches, strict=True))
    after = _left_over()
    console = Console(width=_WIDTH)
    for title, figures in results.items():
        table = Table(title=title)
        for heading in ("", "second tenth", "last tenth", "growth"):
            table.add_column(heading, justify="left" if not heading else "right")
        for what, (first, last) in figures.items():
            table.add_row(what, f"{first:.4g}", f"{last:.4g}", f"{last - first:+.3g}")
        console.print(table)
    console.print(f"before and after both searches: {before}, {after}", highlight=False)
    if out is not None:
        content = {**results, "before": before, "after": after}
        out.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    grown = [
        what
        for title, figures in results.items()
        for what in figures
        if _grew(what, figures[what], trials[title])
    ]
    grown += [f"{what} left at the end" for what in after if after[what] > before[what]]
    if grown:
        console.print(f"grew: {', '.join(grown)}", style="red")
        return 1
    return 0


def soak(space: str, trials: int, trainable: Trainable) -> dict[str, tuple[float, float]]:
    """Run one search; returns each figure's median in the second and last tenth of the trials."""
    simulated = isinstance(trainable, SimulatedTrainable)
    whole = load_space(space)
    cluster = dataclasses.replace(whole.cluster, nodes=2)
    request = Request(
        space=whole.replaced({"cluster": cluster}, what="cluster"),
        trainable="simulated" if simulated else "deepspeed",
        search="random",  # a guided search would stop after a few trials
        max_trials=trials - CONFIRMED,
        stop_factor=100.0,
    )
    samples = Samples()
    with tempfile.TemporaryDirectory() as scratch:
        store = create_run(Path(scratch) / "run", request)
        with ray_cluster(cluster, address=None, virtual=simulated):
            run_trials(Ledger(store, samples), trainable, virtual=simulated)
    tenth = len(samples.taken) // _PARTS
    first, last = samples.taken[tenth : 2 * tenth], samples.taken[-tenth:]
    return {
        what: (
            statistics.median(sample[what] for sample in first),
            statistics.median(sample[what] for sample in last),
        )
        for what in samples.taken[0]
    }


class Samples:
    """Samples this process and its descendants after every trial. A `Listener`."""

    def __init__(self) -> None:
        self.taken: list[dict[str, float]] = []

    def trial_started(self, spec: TrialSpec) -> None:
        """Nothing."""

    def step_done(self, spec: TrialSpec, step: StepReport) -> None:
        """Nothing."""

    def trial_begins_again(self, spec: TrialSpec, reason: str) -> None:
        """Nothing."""

    def trial_finished(self, record: TrialRecord) -> None:
        """Take a sample."""
        driver = psutil.Process()
        descendants = list(_alive(driver.children(recursive=True)))
        workers = [p for p in descendants if _is(p, "ray::LayoutTrial") or _is_host(p)]
        self.taken.append(
            {
                "memory of the search, MiB": _memory_mib([driver]),
                "memory of trainable and hosts, MiB": _memory_mib(workers),
                "memory of all descendants, MiB": _memory_mib(descendants),
                "open files of the search": driver.num_fds(),
                "open files of trainable and hosts": sum(p.num_fds() for p in workers),
                "threads of the search": driver.num_threads(),
                "descendants": len(descendants),
                "shared memory files": len(os.listdir("/dev/shm")),
            }
        )


def _memory_mib(processes: list[psutil.Process]) -> float:
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # a rank that has just exited
            total += process.memory_info().rss / _MIB
    return total


def _alive(processes: list[psutil.Process]) -> Iterator[psutil.Process]:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                yield process


def _is(process: psutil.Process, word: str) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return word in " ".join(process.cmdline())
    return False


def _is_host(process: psutil.Process) -> bool:
    """Whether it is a host process, not a rank: ranks are forks with the same command line."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = process.parent()
        return _is(process, "host_process") and not (parent and _is(parent, "host_process"))
    return False


def _left_over() -> dict[str, int]:
    """Descendants and shared-memory files that exist now."""
    return {
        "descendants": len(list(_alive(psutil.Process().children(recursive=True)))),
        "shared memory files": len(os.listdir("/dev/shm")),
    }


def _grew(what: str, figures: tuple[float, float], trials: int) -> bool:
    first, last = figures
    if "memory of" in what:
        return last > first * (1 + _LARGEST_MEMORY_GROWTH)
    return last > first + _LARGEST_GROWTH_PER_TRIAL * trials


if __name__ == "__main__":
    raise SystemExit(command_line(main))
