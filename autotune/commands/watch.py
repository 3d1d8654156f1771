"""`autotune watch`: follow a search from another terminal, or another machine."""

import time
from pathlib import Path

import click

from autotune.errors import InputError, in_field
from autotune.options.command_line import PATH, SECONDS
from autotune.options.output import plain_console
from autotune.report import Screen
from autotune.report.facts import RunFacts
from autotune.report.trial import print_run
from autotune.store.files import RUN_FILE
from autotune.store.record import TrialRecord
from autotune.store.run_directory import open_run
from autotune.store.status import Status, read_status

# A search writes its status at least once per step; longer steps are possible.
_QUIET_SECONDS = 120.0


@click.command()
@click.argument("directory", metavar="DIR", type=PATH)
@click.option(
    "--every",
    type=SECONDS,
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Look so often.",
)
def main(directory: Path, every: float) -> int:
    """Show the search of the run in DIR while it goes, and its result at the end.

    Only the directory is read: it may be on a shared file system. Ctrl-C ends the watching, not the
    search.
    """
    with in_field("directory"):
        store = open_run(directory)
        finished = store.trials()
    screen = Screen(plain_console())
    was_quiet = False
    screen.search_begins(store.request, directory, [])
    try:
        for record in finished:
            screen.trial_finished(record)
        status = read_status(directory)
        while status is not None and status.running and not status.is_gone:
            _show(screen, status)
            is_quiet = _quiet_seconds(status) > _QUIET_SECONDS
            if is_quiet and not was_quiet:
                screen.warn(f"nothing heard for {_quiet_seconds(status) / 60:.0f} min")
            was_quiet = is_quiet
            time.sleep(every)
            with in_field("directory"):
                if not (directory / RUN_FILE).exists():
                    raise InputError(f"the run directory {str(directory)!r} is gone")
            status = read_status(directory) or status
            for record in store.trials_after(_last(finished)):
                finished.append(record)
                screen.trial_finished(record)
    finally:
        screen.search_ends()
    if status is not None and status.is_gone:
        screen.warn(f"the search was killed: go on with autotune run --resume {directory}")
    print_run(screen.console, RunFacts(directory))
    return 0


def _last(finished: list[TrialRecord]) -> str | None:
    return finished[-1].trial_id if finished else None


def _quiet_seconds(status: Status) -> float:
    return time.time() - status.updated_at.timestamp()


def _show(screen: Screen, status: Status) -> None:
    """Show the trial that runs, and how long nothing was heard of it."""
    quiet = _quiet_seconds(status)
    heard = f", nothing heard for {quiet / 60:.0f} min" if quiet > _QUIET_SECONDS else ""
    trial = status.trial
    if trial is None:
        screen.show_running("between trials", f"on {status.host}{heard}")
        return
    doing = "starting"
    if trial.step is not None:
        doing = f"step {trial.step + 1}/{trial.steps} {trial.step_seconds:.3g} s"
        if trial.peak_memory_gib is not None:
            doing += f" {trial.peak_memory_gib:.3g} GiB"
    screen.show_running(trial.layout.describe(), f"{doing}{heard}")
