"""`autotune run`: search a space for the layout that trains fastest."""

import json
from pathlib import Path
from typing import Any

import click

from autotune.errors import InputError, NodeCheckFailed, NothingFits, Resumable, in_field
from autotune.inputs import default_of
from autotune.ledger.clock import SystemClock
from autotune.ledger.deadline import deadline_of
from autotune.ledger.interruption import signals_ignored, signals_interrupt
from autotune.ledger.ledger import Ledger
from autotune.options.command_line import (
    AMOUNT,
    COUNT,
    COUNT_OR_ZERO,
    EXIT_INTERRUPTED,
    EXIT_NOTHING_WORKED,
    FACTOR,
    PATH,
    SECONDS,
    print_error,
)
from autotune.options.names import TRAINER, Named
from autotune.options.output import lasting_output, plain_console
from autotune.options.place_options import PLACE_OPTIONS, place_from_options, place_options
from autotune.options.search_options import (
    AUTO,
    SearchOptions,
    environment,
    request_from_options,
    trainable_choices,
)
from autotune.options.space_options import space_options
from autotune.report import Screen, dry_run, print_dry_run, print_end
from autotune.request import Request
from autotune.search import SEARCHES
from autotune.tuning import RUNS, go_on, open_to_resume, search

# Options that --resume accepts: output, place, and limits of the search.
_ALLOWED_WITH_RESUME = frozenset(
    {"resume", "env", "trust_run", "as_json", "dry_run", "max_trials", "gpu_hours"}
    | {name for name in PLACE_OPTIONS if name != "explore_anyway"}
)


@click.command()
@space_options
@click.option("--out", type=PATH, metavar="DIR", help="New run directory.")
@click.option("--resume", type=PATH, metavar="DIR", help="Continue a run.")
@click.option(
    "--trainable",
    type=click.Choice(trainable_choices()),
    default=AUTO,
    show_default=True,
    help="auto: deepspeed where the devices are, else simulated.",
)
@click.option("--runs", type=PATH, metavar="PATH", help="Recorded runs for --trainable replay.")
@click.option(
    "--command",
    type=PATH,
    metavar="FILE",
    help="Your training command (TOML), for --trainable command.",
)
@click.option(
    "--simulated-trainer",
    type=TRAINER,
    metavar="NAME|FILE.json",
    help="Training code that --trainable simulated simulates, if not that of the predictions.",
)
@click.option(
    "--search",
    type=Named(lambda: SEARCHES, or_file=False),
    default=default_of(SearchOptions, "search"),
    show_default=True,
    help=f"One of {', '.join(SEARCHES)}.",
)
@click.option(
    "--max-trials",
    type=COUNT,
    metavar="N",
    help="Finished exploring trials; a resumed search may be given more.",
)
@click.option(
    "--gpu-hours",
    type=AMOUNT,
    metavar="H",
    help="Device hours for the search; a resumed search may be given more.",
)
@click.option(
    "--reduced-trials/--whole-trials",
    default=True,
    show_default=True,
    help="Explore by fewer micro-batches per step where that is much cheaper.",
)
@click.option(
    "--training-gpu-hours",
    type=AMOUNT,
    metavar="H",
    help="Device hours of the real run: the search ends when another trial no longer pays.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=default_of(Request, "seed"), show_default=True
)
@click.option(
    "--stop-factor",
    type=FACTOR,
    default=default_of(Request, "stop_factor"),
    show_default=True,
    help="Stop layouts slower than this many times the best.",
)
@click.option(
    "--trial-timeout",
    type=SECONDS,
    metavar="SECONDS",
    help=f"[default: {default_of(Request, 'trial_timeout_seconds'):g}, or that of the command]",
)
@place_options
@click.option("--data", metavar="PATH", help="File or folder whose bytes are the tokens.")
@click.option("--synthetic-data", is_flag=True, help="Random tokens instead of text.")
@click.option(
    "--trace-steps",
    type=COUNT_OR_ZERO,
    default=default_of(Request, "trace_steps"),
    show_default=True,
    metavar="N",
    help="Record the passes of every rank in the last N steps of each confirming trial.",
)
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="Environment of the ranks.")
@click.option(
    "--trust-run",
    is_flag=True,
    help="Resume a run that starts a command of its own, or sets variables for its ranks without "
    "giving them again by --env.",
)
@click.option("--dry-run", is_flag=True, help="Say what would run; start nothing.")
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print best.json (of a dry run what would run) on the standard output.",
)
@click.pass_context
def main(
    context: click.Context,
    /,
    *,
    out: Path | None,
    resume: Path | None,
    dry_run: bool,
    as_json: bool,
    max_trials: int | None,
    gpu_hours: float | None,
    env: tuple[str, ...],
    trust_run: bool,
    **options: Any,
) -> int:
    """Search a space for the parallel layout that trains fastest."""
    context.with_resource(signals_interrupt())
    screen = Screen(plain_console(stderr=as_json))
    place = place_from_options({name: options.pop(name) for name in PLACE_OPTIONS})
    store = None
    if resume is not None:
        _refuse_new_search_options(context)
        store = open_to_resume(resume, env=environment(env), trust_run=trust_run)
        store.raise_limits(max_trials=max_trials, gpu_hours=gpu_hours)
        request, directory = store.request, resume
    else:
        request = request_from_options(
            SearchOptions(
                address=place.address,
                max_trials=max_trials,
                gpu_hours=gpu_hours,
                env=env,
                **options,
            )
        )
        directory = out or RUNS / request.space.name
    if dry_run:
        deadline_of(place.until, SystemClock())
        with in_field("resume"):
            finished = len(store.trials()) if store else 0
        return _dry_run(screen, request, as_json=as_json, finished=finished)
    try:
        ledger = go_on(store, place, screen) if store else search(request, directory, place, screen)
        if ledger.is_out_of_time and not ledger.best:
            return _interrupted(screen, ledger.stopped_because, directory, context)
        return _print_result(screen, ledger, directory, as_json=as_json)
    except KeyboardInterrupt:
        with signals_ignored():
            return _interrupted(screen, "interrupted", directory, context)
    except NothingFits as error:
        print_error(f"{error}; --explore-anyway searches all the same")
        return EXIT_NOTHING_WORKED
    except (NodeCheckFailed, Resumable) as error:
        if not (directory / "run.json").exists():
            raise
        return _interrupted(screen, str(error), directory, context)


def _dry_run(screen: Screen, request: Request, *, as_json: bool, finished: int) -> int:
    if as_json:
        print(json.dumps(dry_run(request), indent=2))
        return 0
    if finished:
        screen.note(f"{finished} trials already finished")
    print_dry_run(screen.console, request)
    return 0


def _print_result(screen: Screen, ledger: Ledger, directory: Path, *, as_json: bool) -> int:
    if as_json:
        best = directory / "best.json"
        print(best.read_text(encoding="utf-8").rstrip() if best.exists() else "null")
    with lasting_output():
        print_end(screen, ledger, directory)
        if ledger.is_out_of_time:
            screen.note(f"--resume {directory} explores further")
    return 0 if ledger.best else EXIT_NOTHING_WORKED


@lasting_output()
def _interrupted(screen: Screen, why: str, directory: Path, context: click.Context) -> int:
    """Say how to go on, with what run.json does not keep: raised limits, and trust in the stored
    environment and command, which this user gave or trusted."""
    if not (directory / "run.json").exists():
        screen.note(f"{why}; no search was begun")
        return EXIT_INTERRUPTED
    raised = ""
    if context.params["resume"] is not None:
        limits = {"--max-trials": "max_trials", "--gpu-hours": "gpu_hours"}
        given = {option: context.params[name] for option, name in limits.items()}
        raised = "".join(f" {option} {v:g}" for option, v in given.items() if v is not None)
    if context.params["env"] or context.params["trust_run"] or context.params["command"]:
        raised += " --trust-run"
    screen.note(f"{why}; continue with --resume {directory}{raised}")
    return EXIT_INTERRUPTED


def _refuse_new_search_options(context: click.Context) -> None:
    """Raise InputError for an option that would change the search that is resumed."""
    for parameter in context.command.params:
        name = str(parameter.name)
        given = context.get_parameter_source(name)
        if given is click.core.ParameterSource.COMMANDLINE and name not in _ALLOWED_WITH_RESUME:
            options = "/".join([*parameter.opts, *parameter.secondary_opts])
            raise InputError(f"{options} cannot be changed by --resume")
