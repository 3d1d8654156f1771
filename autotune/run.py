"""`python -m autotune.run`: search a space for the layout that trains fastest."""

import contextlib
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from autotune import __version__
from autotune.calibration.recorded_runs import read_sweeps
from autotune.errors import (
    ClusterTooSmall,
    InputError,
    NodeCheckFailed,
    NodesGone,
    RunDirectoryFailed,
    in_field,
)
from autotune.export import export_layout
from autotune.ledger.interruption import signals_interrupt
from autotune.ledger.ledger import Ledger
from autotune.on_ray.detected_cluster import differences, fitted_to_nodes
from autotune.options.command_line import (
    AMOUNT,
    COUNT,
    EXIT_INTERRUPTED,
    EXIT_NOTHING_WORKED,
    FACTOR,
    IP_ADDRESS,
    PATH,
    SECONDS,
    command_line,
    plain_console,
)
from autotune.options.search_options import TRAINABLES, SearchOptions, request_from_options
from autotune.options.space_options import space_options
from autotune.report import Screen, print_dry_run, print_end, print_start, say_what_it_is
from autotune.request import Request
from autotune.store.run_directory import (
    RunStore,
    create_run,
    open_run,
    refuse_existing_run,
    sole_user,
)
from autotune.trial.trainable import Trainable


@click.command()
@space_options
@click.option("--out", type=PATH, metavar="DIR", help="New run directory.")
@click.option("--resume", type=PATH, metavar="DIR", help="Continue a run.")
@click.option("--trainable", type=click.Choice(TRAINABLES), default="auto", show_default=True)
@click.option("--runs", type=PATH, metavar="PATH", help="Recorded runs for --trainable replay.")
@click.option(
    "--search", default="guided", show_default=True, help="guided, hyperopt, random, grid or rules."
)
@click.option("--max-trials", type=COUNT, metavar="N", help="Finished trials.")
@click.option("--gpu-hours", type=AMOUNT, metavar="H", help="Device hours for the search.")
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
@click.option("--address", metavar="RAY", help="Address of a running Ray cluster.")
@click.option(
    "--wait-for-nodes",
    type=SECONDS,
    default=300.0,
    show_default=True,
    metavar="SECONDS",
    help="How long nodes that went away may take to come back.",
)
@click.option(
    "--allow-different-cluster", is_flag=True, help="Resume on other hardware or software."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--stop-factor",
    type=FACTOR,
    default=2.0,
    show_default=True,
    help="Stop layouts slower than this many times the best.",
)
@click.option("--trial-timeout", type=SECONDS, default=600.0, show_default=True, metavar="SECONDS")
@click.option("--data", metavar="PATH", help="File or folder whose bytes are the tokens.")
@click.option("--synthetic-data", is_flag=True, help="Random tokens instead of text.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="Environment of the ranks.")
@click.option("--dry-run", is_flag=True, help="Say what would run; start nothing.")
@click.option("--dashboard/--no-dashboard", default=True, show_default=True)
@click.option(
    "--dashboard-host", type=IP_ADDRESS, default="127.0.0.1", show_default=True, metavar="ADDRESS"
)
@click.option("--json", "as_json", is_flag=True, help="Print best.json on the standard output.")
@click.pass_context
def main(
    context: click.Context,
    /,
    *,
    out: Path | None,
    resume: Path | None,
    address: str | None,
    wait_for_nodes: float,
    allow_different_cluster: bool,
    dry_run: bool,
    dashboard: bool,
    dashboard_host: str,
    as_json: bool,
    **search: Any,
) -> int:
    """Search a space for the parallel layout that trains fastest."""
    console = plain_console(stderr=as_json)
    store = None
    if resume is not None:
        _refuse_new_search_options(context)
        with in_field("resume"):
            store = open_run(resume)
        for read in (store.trials, store.pruned):
            read()  # a damaged file is told of before anything is started
        request = store.request
        directory = resume
    else:
        request = request_from_options(SearchOptions(address=address, **search))
        directory = out or Path("runs") / request.space.name
        if not dry_run:
            refuse_existing_run(directory)
    if dry_run:
        print_dry_run(console, request)
        return 0
    if request.simulated:
        if address is not None:
            raise InputError(
                f"--address is for real trials, got it with --trainable {request.trainable}"
            )
        say_what_it_is(console, request)
    elif address is None:
        _refuse_without_devices(request)
    where = _Where(
        directory=directory,
        address=address,
        dashboard_host=dashboard_host if dashboard else None,
        wait_for_nodes_seconds=wait_for_nodes,
        allow_different_cluster=allow_different_cluster,
    )
    try:
        with signals_interrupt(), sole_user(directory) if store else contextlib.nullcontext():
            ledger = _search(console, request, where, store)
    except KeyboardInterrupt:
        return _interrupted(console, "interrupted", directory)
    except (NodesGone, NodeCheckFailed, RunDirectoryFailed) as error:
        if not (directory / "run.json").exists():
            raise
        return _interrupted(console, str(error), directory)
    if as_json:
        print(json.dumps(ledger.summary(), indent=2))
    print_end(console, ledger, directory)
    return 0 if ledger.best else EXIT_NOTHING_WORKED


def _interrupted(console: Console, why: str, directory: Path) -> int:
    console.print(f"{why}; continue with --resume {directory}", soft_wrap=True, highlight=False)
    return EXIT_INTERRUPTED


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Where:
    """What may change when a search is resumed."""

    directory: Path
    address: str | None
    dashboard_host: str | None
    wait_for_nodes_seconds: float
    allow_different_cluster: bool


def _search(console: Console, request: Request, where: _Where, store: RunStore | None) -> Ledger:
    # Imported here: Ray takes seconds to import, and bad input should not wait for it.
    from autotune.on_ray.connection import ray_cluster
    from autotune.on_ray.nodes import inspect_nodes
    from autotune.on_ray.tuner import run_trials

    cluster = request.space.cluster
    with ray_cluster(
        cluster,
        address=where.address,
        dashboard_host=where.dashboard_host,
        virtual=request.simulated,
    ) as url:
        nodes = [] if request.simulated else inspect_nodes(cluster)
        with contextlib.ExitStack() as held:
            if store is None:
                if not request.simulated:
                    fitted = fitted_to_nodes(request, nodes)
                    request = fitted.request
                    for change in fitted.changes:
                        console.print(change, soft_wrap=True)
                held.enter_context(sole_user(where.directory))
                about = {"versions": {"autotune": __version__}, "nodes": nodes}
                store = create_run(where.directory, request, about)
            elif changes := differences(where.directory, nodes):
                _say_or_refuse(console, changes, allowed=where.allow_different_cluster)
            finished = store.trials()
            print_start(console, request, where.directory, len(finished), url)
            screen = Screen(console, max_trials=request.max_trials, finished=finished)
            ledger = Ledger(store, screen)
            with screen:
                run_trials(
                    ledger,
                    _trainable(request),
                    virtual=request.simulated,
                    wait_for_nodes_seconds=where.wait_for_nodes_seconds,
                )
            if ledger.best:
                store.write_json("best.json", ledger.summary())
                if request.trainable != "replay":  # its kernels are of another code base
                    with store.writing():
                        export_layout(where.directory / "export", ledger.best[0].layout, request)
            return ledger


def _say_or_refuse(console: Console, changes: list[str], *, allowed: bool) -> None:
    what = ", ".join(changes)
    if not allowed:
        raise InputError(
            f"--resume: the cluster must be the one that the run was begun on ({what}); "
            "--allow-different-cluster goes on all the same"
        )
    console.print(f"the cluster has changed: {what}", style="yellow", soft_wrap=True)


def _trainable(request: Request) -> Trainable:
    """What runs the request's trials. Imported where it is needed: torch takes seconds."""
    if request.trainable == "simulated":
        from trainables.simulated import SimulatedTrainable

        return SimulatedTrainable()
    if request.trainable == "replay":
        from trainables.replay import ReplayTrainable

        assert request.runs is not None
        sweeps = {sweep.name: sweep for sweep in read_sweeps(Path(request.runs))}
        found = sweeps.get(request.space.name)
        if found is None or not (set(request.all_layouts()) <= {run.layout for run in found.runs}):
            raise InputError(f"--runs: {request.runs!r} no longer holds what was to be replayed")
        return ReplayTrainable(found.runs)
    from trainables.deepspeed_llm.launch import DeepSpeedLlm

    return DeepSpeedLlm(device_kind=request.space.cluster.device.kind, env=request.env)


def _refuse_new_search_options(context: click.Context) -> None:
    """A resumed search is the one that was begun: only how it is shown and reached may change."""
    may_change = {
        *("resume", "address", "wait_for_nodes", "allow_different_cluster"),
        *("dashboard", "dashboard_host", "as_json", "dry_run"),
    }
    for parameter in context.command.params:
        name = str(parameter.name)
        given = context.get_parameter_source(name)
        if given is click.core.ParameterSource.COMMANDLINE and name not in may_change:
            raise InputError(f"{parameter.opts[0]} cannot be changed by --resume")


def _refuse_without_devices(request: Request) -> None:
    try:
        request.space.cluster.check_this_machine()
    except ClusterTooSmall as error:
        raise ClusterTooSmall(
            f"--space {request.space.name} {error}; name a Ray cluster with --address, or take "
            "--trainable simulated"
        ) from None


if __name__ == "__main__":
    sys.exit(command_line(main))
