"""What a search says on the screen before its first trial and after its last."""

from pathlib import Path

from rich.console import Console

from autotune.ledger.ledger import Ledger
from autotune.ledger.ranking import CONFIRMED, equal_within_noise
from autotune.report.screen import print_best, print_plan
from autotune.request import Request
from autotune.store.record import TrialRecord

_SAID_OF = {
    "simulated": "simulated: figures are predictions",
    "replay": "replayed: figures are recorded ones of earlier runs",
}


def say_what_it_is(console: Console, request: Request) -> None:
    """That figures are not measured, where they are not."""
    if request.simulated:
        console.print(_SAID_OF[request.trainable], style="bold yellow", soft_wrap=True)


def print_start(
    console: Console, request: Request, directory: Path, finished: int, url: str | None
) -> None:
    """What is searched, where, and where to watch it."""
    space = request.space
    resumed = f", {finished} trials already finished" if finished else ""
    layouts = f"{len(request.all_layouts())} layouts on {space.cluster.describe()}"
    console.print(
        f"searching {space.name}: {layouts}, at most {request.max_trials} trials{resumed}, "
        f"into {directory}",
        soft_wrap=True,
        highlight=False,
    )
    if url is not None:
        console.print(f"Ray dashboard: {url}", soft_wrap=True, highlight=False)


def print_dry_run(console: Console, request: Request) -> None:
    """What would run, at most."""
    if request.layouts is None:
        print_plan(console, request.space)
    else:
        recorded = f"{len(request.layouts)} recorded layouts of {request.space.name}"
        console.print(f"would replay {recorded}", soft_wrap=True, highlight=False)
    trials = request.max_trials + CONFIRMED
    most_hours = trials * request.trial_timeout_seconds * request.space.cluster.devices / 3600
    limit = most_hours if request.gpu_hours is None else min(most_hours, request.gpu_hours)
    console.print(
        f"would run at most {request.max_trials} trials of {request.space.warmup_steps} + "
        f"{request.space.measured_steps} steps, chosen by {request.search}, and confirm the best "
        f"{CONFIRMED}: about {limit:.3g} GPU-hours at most. Nothing was started.",
        soft_wrap=True,
        highlight=False,
    )


def print_end(console: Console, ledger: Ledger, directory: Path) -> None:
    """Why the search is over, the fastest layouts, and what to do with the best."""
    best = ledger.best
    console.print(f"finished: {ledger.stopped_because}", highlight=False)
    if not best:
        console.print(f"no layout worked; see the reasons in {directory}/trials", soft_wrap=True)
        return
    print_best(console, best, simulated=ledger.request.simulated)
    console.print(f"best: {best[0].layout.describe()}", soft_wrap=True, highlight=False)
    equal = [record.trial_id for record in best[1:] if equal_within_noise(best[0], record)]
    if equal:
        console.print(f"equal within noise: trials {', '.join(equal)}", highlight=False)
    _print_trends(console, best[0])
    for device in sorted({r.slow_device for r in ledger.records if r.slow_device is not None}):
        console.print(f"slow device: {device}", style="yellow", soft_wrap=True, highlight=False)
    if ledger.request.trainable != "replay":
        launch = f"{directory}/export/launch.sh"
        console.print(f"train it with {launch}", soft_wrap=True, highlight=False)
    say_what_it_is(console, ledger.request)


def _print_trends(console: Console, best: TrialRecord) -> None:
    """Whether the confirmed layout became slower or larger while it ran."""
    drift, growth = best.measurement.step_seconds_drift, best.measurement.memory_growth_gib
    if drift is None or growth is None:
        return
    console.print(
        f"over its {best.measurement.measured_steps} steps: step time {drift:+.1%}, "
        f"peak memory {growth:+.2f} GiB",
        highlight=False,
    )
