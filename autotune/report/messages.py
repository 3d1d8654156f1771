"""Messages of a dry run, and of the end of a search."""

import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from autotune.cost.feasibility import why_nothing_fits
from autotune.ledger.ledger import Ledger
from autotune.ledger.ranking import equal_within_noise
from autotune.ledger.search_setup import CONFIRMED, expected_seconds
from autotune.report.facts import REPORT_FILE
from autotune.report.plan import print_headline, print_not_ranked
from autotune.report.screen import Screen, print_best
from autotune.request import Request
from autotune.space import not_generated
from autotune.store.record import TrialRecord


def dry_run(request: Request) -> dict[str, Any]:
    """What would run, as a dictionary. Seconds and GPU-hours are predictions or limits."""
    space, devices = request.space, request.space.cluster.devices
    trials = request.max_trials + CONFIRMED
    max_hours = trials * request.trial_timeout_seconds * devices / 3600
    seconds = expected_seconds(request)
    return {
        "predicted": True,
        "space": space.name,
        "trainable": request.trainable,
        "search": request.search,
        "layouts": len(request.all_layouts()),
        "nothing_fits": why_nothing_fits(space, request.description.trainer),
        "not_generated": {} if request.layouts is not None else not_generated(space),
        "max_trials": request.max_trials,
        "confirmations": CONFIRMED,
        "warmup_steps": space.warmup_steps,
        "measured_steps": space.measured_steps,
        "expected_seconds": seconds,
        "expected_gpu_hours": None if seconds is None else seconds * devices / 3600,
        "most_gpu_hours": min(max_hours, request.gpu_hours or max_hours),
    }


def print_dry_run(console: Console, request: Request) -> None:
    """Print what would run."""
    content = dry_run(request)
    if request.layouts is None:
        print_headline(console, request.space, f"{content['layouts']} layouts")
        print_not_ranked(console, content["not_generated"], "not generated")
    else:
        given = f"{content['layouts']} given layouts of {request.space.name}"
        console.print(f"would try only {given}", soft_wrap=True)
    if content["nothing_fits"] is not None:
        console.print(f"predicted: {content['nothing_fits']}", soft_wrap=True)
    expected = "the time cannot be predicted for this device"
    if content["expected_seconds"] is not None:
        expected = (
            f"predicted to take about {_duration(content['expected_seconds'])}, "
            f"{content['expected_gpu_hours']:.3g} GPU-hours"
        )
    console.print(
        f"would run at most {content['max_trials']} trials of {content['warmup_steps']} + "
        f"{content['measured_steps']} steps, chosen by {content['search']}, and confirm the best "
        f"{CONFIRMED}: {expected}; never more than {content['most_gpu_hours']:.3g} GPU-hours. "
        "Nothing was started.",
        soft_wrap=True,
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def print_end(screen: Screen, ledger: Ledger, directory: Path) -> None:
    """Print why the search ended, the fastest layouts, and how to train with the best."""
    best = ledger.best
    screen.note(f"finished: {ledger.stopped_because}")
    if not best:
        screen.note(f"no layout worked; see the reasons in {directory}/trials")
        return
    print_best(screen.console, best, simulated=ledger.request.simulated)
    screen.note(f"best: {best[0].layout.describe()}")
    if ledger.warning is not None:
        screen.warn(ledger.warning)
    equal = [record.trial_id for record in best[1:] if equal_within_noise(best[0], record)]
    if equal:
        screen.note(f"equal within noise: trials {', '.join(equal)}")
    _print_trends(screen, best[0])
    for device in sorted({r.slow_device for r in ledger.records if r.slow_device is not None}):
        screen.warn(f"slow device: {device}")
    description = ledger.request.description
    if description.export_format is not None:
        python = "" if description.command_line is not None else _python_variable()
        screen.note(f"train it with {python}{directory}/export/launch.sh")
    if (directory / REPORT_FILE).exists():
        screen.note(f"report: {directory}/{REPORT_FILE}")
    if ledger.request.description.notice is not None:
        screen.warn(ledger.request.description.notice)


def _python_variable() -> str:
    """What makes launch.sh use this Python, where `python3` is another one."""
    found = shutil.which("python3")
    if found is not None and Path(found).parent == Path(sys.executable).parent:
        return ""
    return f"PYTHON={shlex.quote(sys.executable)} "


def _print_trends(screen: Screen, best: TrialRecord) -> None:
    """Print the drift of step time and the growth of memory over the confirmation."""
    drift, growth = best.measurement.step_seconds_drift, best.measurement.memory_growth_gib
    if drift is None or growth is None:
        return
    screen.note(
        f"over its {best.measurement.measured_steps} steps: step time {drift:+.1%}, "
        f"peak memory {growth:+.2f} GiB"
    )
