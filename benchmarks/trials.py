"""Overhead of trials outside training steps, and step time of the exported launch script.

    python -m benchmarks.trials

Three parts, all on this machine: a search of the tiny space; a search whose trials train for about
20 s; and the best layout, run alternately by its exported script and as a trial.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from autotune.store.record import TrialRecord
from autotune.store.run_directory import RunStore, open_run
from autotune.trial.trial import Outcome, StepReport, TrialSpec
from trainables.deepspeed_llm.host import LocalHost
from trainables.deepspeed_llm.launch import DeepSpeedLlm

LONG_SPACE = """
import dataclasses
from search_spaces import tiny

def space():
    return dataclasses.replace(tiny.space(), name="long", measured_steps=60)
"""
LONG_TRIALS = 4
# Layouts with step times of about 1/3 s, none of which runs out of memory.
LONG_LAYOUTS = ("--fix", "pipeline_parallel=4", "--fix", "micro_batch_size=1,2")
TURNS = 3
STEPS_PER_TURN = 15


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SearchCost:
    """How the reserved time of a search was spent."""

    outcomes: dict[str, int]
    reserved_seconds: float
    """From the first trial's start to the last one's end."""
    step_seconds: float
    """The part of it in training steps (slowest rank), including warm-up."""
    startups: list[float]
    """Start-up of each trial after the first, until every rank is ready for its first step."""
    besides_steps: list[float]
    """Time outside training steps of each successful trial after the first."""

    @property
    def share_in_steps(self) -> float:
        """Share of the reserved time that was spent in steps."""
        return self.step_seconds / self.reserved_seconds


def search_cost(directory: Path) -> SearchCost:
    """Compute it from a run directory."""
    store = open_run(directory)
    records = store.trials()
    in_steps = {record.trial_id: _seconds_in_steps(store, record) for record in records}
    durations = {
        record.trial_id: (record.finished_at - record.started_at).total_seconds()
        for record in records
    }
    later = records[1:]
    outcomes = [record.outcome for record in records]
    return SearchCost(
        outcomes={outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))},
        reserved_seconds=(records[-1].finished_at - records[0].started_at).total_seconds(),
        step_seconds=sum(in_steps.values()),
        startups=[r.startup_seconds for r in later if r.startup_seconds is not None],
        besides_steps=[
            durations[r.trial_id] - in_steps[r.trial_id] for r in later if r.outcome is Outcome.OK
        ],
    )


def _seconds_in_steps(store: RunStore, record: TrialRecord) -> float:
    rows = pq.read_table(store.directory / "steps" / f"{record.trial_id}.parquet").to_pylist()
    slowest: dict[int, float] = {}
    for row in rows:
        slowest[row["step"]] = max(row["step_seconds"], slowest.get(row["step"], 0.0))
    return sum(slowest.values())


def run_search(directory: Path, *arguments: str) -> SearchCost:
    """Run a search in a separate process."""
    command = [sys.executable, "-m", "autotune.run", "--out", str(directory), *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return search_cost(directory)


def export_ratios(directory: Path) -> list[float]:
    """Median step time of the exported script over that of a trial, in alternating runs."""
    store = open_run(directory)
    best = min(
        (r for r in store.trials() if r.outcome is Outcome.OK),
        key=lambda r: r.measurement.step_seconds or 0.0,
    )
    space = store.request.space
    spec = TrialSpec(
        trial_id="bench",
        layout=best.layout,
        model=space.model,
        cluster=space.cluster,
        precision=space.precision,
        warmup_steps=1,
        measured_steps=STEPS_PER_TURN - 1,
        log_dir=None,
    )
    pairs = []
    with LocalHost(device_kind="cpu") as first, LocalHost(device_kind="cpu") as second:
        for _ in range(TURNS):
            pairs.append(
                (_script_seconds(directory / "export"), _trial_seconds(spec, [first, second]))
            )
    return [script / trial for script, trial in pairs]


def _trial_seconds(spec: TrialSpec, hosts: Sequence[LocalHost]) -> float:
    events = DeepSpeedLlm(device_kind="cpu").run(spec, hosts)
    steps = [event.step_seconds for event in events if isinstance(event, StepReport)]
    return statistics.median(steps[spec.warmup_steps :])


def _script_seconds(export: Path) -> float:
    environment = {**os.environ, "PYTHON": sys.executable, "STEPS": str(STEPS_PER_TURN)}
    script = subprocess.run(
        [export / "launch.sh"], env=environment, capture_output=True, text=True, check=True
    )
    return float(json.loads(script.stdout.splitlines()[-1])["step_seconds"])


def main() -> None:
    """Run all three parts and print the results."""
    console = Console(width=110)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        tiny = run_search(root / "tiny", "--space", "tiny")
        (root / "long.py").write_text(LONG_SPACE)
        arguments = ("--max-trials", str(LONG_TRIALS), *LONG_LAYOUTS)
        long = run_search(root / "long", "--space", str(root / "long.py"), *arguments)
        ratios = export_ratios(root / "tiny")
    table = Table(title="Trial overhead outside training steps")
    for heading in ("search", "outcomes", "start-up s", "overhead s", "time in steps"):
        table.add_column(heading)
    for name, cost, target in (("tiny", tiny, 0.6), ("20 s of steps", long, 0.8)):
        table.add_row(
            name,
            " ".join(f"{outcome}={count}" for outcome, count in cost.outcomes.items()),
            f"{statistics.median(cost.startups):.2f} (max {max(cost.startups):.2f}, target 2)",
            f"{statistics.median(cost.besides_steps):.2f}",
            f"{cost.share_in_steps:.0%} (target {target:.0%})",
        )
    console.print(table)
    console.print(
        "exported script / trial, median step times of alternating runs: "
        f"{', '.join(f'{ratio:.2f}' for ratio in ratios)} (target 0.85 to 1.15)"
    )


if __name__ == "__main__":
    main()
