"""Prints a run, and one trial of it in full."""

import collections
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from autotune.report.advice import advice
from autotune.report.facts import RunFacts, notices, number, percent, state
from autotune.report.plan import headline, parts_table
from autotune.report.screen import print_best
from autotune.store.record import TrialRecord
from autotune.store.results import Run
from autotune.trial.trial import Outcome

_MOST_STEPS = 20
_LOG_LINES = 15
# Enough for the last lines; logs can have gigabytes.
_LOG_BYTES = 16_384
# A log may have what a terminal takes for commands.
_NOT_SHOWN = "\N{REPLACEMENT CHARACTER}"


def print_run(console: Console, facts: RunFacts) -> None:
    """Print the state of a run, its fastest layouts, and what its trials say."""
    console.print(headline(facts.space), soft_wrap=True)
    console.print(state(facts), soft_wrap=True)
    for notice in notices(facts):
        console.print(notice, style="bold yellow", soft_wrap=True, markup=False)
    if facts.best is not None:
        print_best(console, facts.ranked, simulated=facts.request.simulated)
    for item in advice(facts):
        console.print(f"- {item.sentence} ({item.basis})", soft_wrap=True, markup=False)


def print_trial(console: Console, facts: RunFacts, record: TrialRecord) -> None:
    """Print one trial: layout, figures beside predictions, causes, steps, and the logs' ends."""
    _plain(console, f"trial {record.trial_id} ({record.purpose}): {record.layout.describe()}")
    reason = f": {record.reason}" if record.reason else ""
    _plain(console, f"outcome: {record.outcome}{reason}")
    console.print(_figures(facts, record))
    if facts.predicted is not None:
        place = facts.predicted.place(record.layout)
        estimates = facts.predicted.estimates
        console.print(parts_table("Predicted seconds per step", estimates.time, "s", place))
        title = "Predicted peak memory of the worst rank"
        console.print(parts_table(title, estimates.memory, "GiB", place))
    steps = _steps(facts, record)
    if steps is not None:
        console.print(steps)
    for line in _log_ends(facts.store.log_directory / record.trial_id, record):
        _plain(console, line)


def _figures(facts: RunFacts, record: TrialRecord) -> Table:
    measured, prediction = record.measurement, record.prediction
    table = Table()
    for heading in ("figure", facts.word, "predicted at its start"):
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    expected: tuple[float | None, ...] = (None, None, None)
    if prediction is not None:
        expected = (
            prediction.step_seconds,
            prediction.peak_memory_gib,
            prediction.fit_probability,
        )
    table.add_row(
        "seconds per step", number(measured.step_seconds, ".4g"), number(expected[0], ".4g")
    )
    table.add_row("interquartile range, s", number(measured.step_seconds_iqr, ".2g"), "")
    table.add_row("MFU", percent(measured.mfu), "")
    table.add_row("tokens/s/GPU", number(measured.tokens_per_second_per_gpu, ".4g"), "")
    table.add_row("peak memory, GiB", number(measured.peak_memory_gib), number(expected[1], ".3g"))
    fits = {Outcome.OK: "yes", Outcome.STOPPED: "yes", Outcome.OOM: "no"}
    table.add_row("fits", fits.get(record.outcome, ""), percent(expected[2], 0))
    table.add_row("final loss", number(measured.final_loss, ".5g"), "")
    table.add_row("start-up, s", number(record.startup_seconds), "")
    table.add_row("GPU-hours", number(record.gpu_seconds / 3600), "")
    table.add_row("attempts", str(record.attempts), "")
    if record.slow_device is not None:
        table.add_row("slow device", record.slow_device, "")
    return table


def _steps(facts: RunFacts, record: TrialRecord) -> Table | None:
    """The steps, each with the slowest rank's time and the largest memory."""
    rows = Run(facts.directory).steps_of(record.trial_id).to_pylist()
    by_step = collections.defaultdict(list)
    for row in rows:
        by_step[row["step"]].append(row)
    if not by_step:
        return None
    shown = sorted(by_step)[-_MOST_STEPS:]
    left = len(by_step) - len(shown)
    table = Table(title=f"Steps{f', the last {len(shown)} of {len(by_step)}' if left else ''}")
    if record.purpose == "reduced":
        table.caption = "The step time of the layout is extrapolated from these."
    headings = ("step", "micro-batches", "slowest rank, s", "rank", "loss", "gradient norm", "GiB")
    for heading in headings:
        table.add_column(heading, justify="right")
    for step in shown:
        slowest = max(by_step[step], key=lambda row: row["step_seconds"])
        peaks = [r["peak_memory_gib"] for r in by_step[step] if r["peak_memory_gib"] is not None]
        warm_up = " warm-up" if step % _period(facts, record) < facts.space.warmup_steps else ""
        table.add_row(
            f"{step}{warm_up}",
            str(slowest["micro_batches"] or record.layout.gradient_accumulation_steps),
            number(slowest["step_seconds"], ".4g"),
            str(slowest["rank"]),
            number(slowest["loss"], ".5g"),
            number(slowest["grad_norm"], ".4g"),
            number(max(peaks, default=None), ".3g"),
        )
    return table


def _period(facts: RunFacts, record: TrialRecord) -> int:
    """Steps after which the warm-up comes again: a reduced trial runs all steps twice."""
    counts = len(record.measurement.measured_micro_batches) or 1
    measured = record.measurement.measured_steps // counts
    return facts.space.warmup_steps + max(1, measured)


def _log_ends(folder: Path, record: TrialRecord) -> Iterator[str]:
    """The last lines of the log of the rank that the reason names, else of the first."""
    files = sorted(folder.glob("rank-*.log"), key=lambda file: (len(file.name), file.name))
    if not files:
        return
    named = [f for f in files if record.reason.startswith(f"{f.stem.replace('-', ' ')}:")]
    file = (named or files)[0]
    try:
        with file.open("rb") as log:
            log.seek(0, 2)
            log.seek(max(0, log.tell() - _LOG_BYTES))
            lines = log.read().decode(errors="replace").splitlines()[-_LOG_LINES:]
    except OSError as error:
        yield f"{file} cannot be read: {error.strerror}"
        return
    yield f"last lines of {file} ({len(files)} logs):"
    for line in lines:
        yield "".join(c if c.isprintable() or c == "\t" else _NOT_SHOWN for c in line)


def _plain(console: Console, line: str) -> None:
    console.print(line, soft_wrap=True, markup=False, highlight=False)
