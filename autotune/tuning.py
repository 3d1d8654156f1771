"""One search on a cluster, from its request to its result: `autotune.tune`."""

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autotune import __version__
from autotune.cost.feasibility import why_nothing_fits
from autotune.errors import ClusterTooSmall, InputError, NothingFits, first_line, in_field
from autotune.export import export_layout
from autotune.ledger.clock import SystemClock
from autotune.ledger.deadline import Deadline, deadline_of
from autotune.ledger.interruption import signals_interrupt
from autotune.ledger.ledger import Ledger
from autotune.ledger.listeners import InBackground, Listeners
from autotune.ledger.status_file import StatusFile
from autotune.loggers import loggers
from autotune.on_ray.address import refuse_address_by_form
from autotune.options.output import lasting_output, plain_console
from autotune.options.search_options import SearchOptions, request_from_options
from autotune.place import Place
from autotune.report import Screen
from autotune.report.facts import REPORT_FILE, RunFacts
from autotune.request import Request
from autotune.space import SearchSpace
from autotune.store.files import RUN_FILE, remove_temporary_files
from autotune.store.lock import new_directory, sole_user
from autotune.store.results import Run
from autotune.store.run_directory import (
    RunStore,
    create_run,
    open_run,
)

RUNS = Path("runs")
"""Default parent folder of run directories."""


def tune(
    space: SearchSpace | str | Path | None = None,
    *,
    out: str | Path | None = None,
    place: Place | None = None,
    env: Mapping[str, str] | None = None,
    **options: Any,
) -> Run:
    """Search a space for the layout that trains fastest.

    `space` is a SearchSpace, the name of one that ships with the project, or the path of a Python
    file. `out` is a new run directory (default: runs/NAME). Further `options` are those of
    `python -m autotune.run` with underscores, for example ``max_trials=10``,
    ``search="hyperopt"``, ``trainable="simulated"``, ``model="config.json"``; `place` says where
    the search runs and `env` is the environment of the ranks.

    Returns the run when the search is over. Raises InputError; NothingFits where no layout is
    predicted to fit; NodesGone, NodeCheckFailed, RunDirectoryFailed or KeyboardInterrupt where the
    search ended early: `resume` goes on.
    """
    of_place = {field.name for field in dataclasses.fields(Place)}
    if misplaced := options.keys() & of_place:
        raise InputError(f"{min(misplaced)} belongs to the place: tune(..., place=Place(...))")
    known = {field.name for field in dataclasses.fields(SearchOptions)}
    known -= of_place | {"space", "env"}
    if unknown := options.keys() - known:
        raise InputError(f"unknown option {min(unknown)}: tune has {', '.join(sorted(known))}")
    place = place or Place()
    variables = [f"{name}={value}" for name, value in (env or {}).items()]
    options = {**options, "address": place.address, "env": variables, "space": space}
    request = request_from_options(SearchOptions(**options))
    directory = RUNS / request.space.name if out is None else Path(out)
    search(request, directory, place, Screen(plain_console()))
    return Run(directory)


def resume(
    directory: str | Path,
    *,
    place: Place | None = None,
    env: Mapping[str, str] | None = None,
    trust_run: bool = False,
) -> Run:
    """Resume an interrupted search; raises the same errors as `tune`.

    Where the run sets environment variables for its ranks, they must be given again as `env`, or
    the run must be trusted: such variables can make the ranks run any code.
    """
    store = open_to_resume(Path(directory), env=env or {}, trust_run=trust_run)
    go_on(store, place or Place(), Screen(plain_console()))
    return Run(directory)


def open_to_resume(directory: Path, *, env: Mapping[str, str], trust_run: bool) -> RunStore:
    """Open a run directory to go on with its search. Raises InputError."""
    with in_field("resume"):
        store = open_run(directory)
        _ = store.request.description  # is it installed, and its command well-formed
        store.pruned()  # not needed, but a run is refused as a whole or read as a whole
    if not trust_run:
        store.request.refuse_unless_given_again(env)
    return store


def check(request: Request, place: Place) -> None:
    """Check the request before anything is started. Raises InputError."""
    if request.simulated and place.address is not None:
        raise InputError(
            f"must be given for real trials only, got it with trainable {request.trainable}",
            field="address",
        )
    if place.address is not None:
        refuse_address_by_form(place.address)
    elif not request.simulated:
        _refuse_without_devices(request)


@lasting_output()
def search(request: Request, directory: Path, place: Place, screen: Screen) -> Ledger:
    """Run a new search into `directory`; raises the same errors as `tune`."""
    check(request, place)
    if request.simulated or request.space.cluster.device.kind == "cpu":
        _refuse_if_nothing_fits(request, place)  # on GPUs when it is known which they are
    deadline = _shown_deadline(place, screen)
    with signals_interrupt(), contextlib.ExitStack() as stack:
        with in_field("out"):
            stack.enter_context(new_directory(directory))
        _warn_if_not_measured(request, screen)
        listeners = Listeners(screen, StatusFile(), *loggers(place.log, screen.warn))
        return _run(request, directory, place, screen, listeners, None, deadline)


def search_or_go_on(request: Request, directory: Path, place: Place, screen: Screen) -> None:
    """Run a new search into `directory`, or go on with the one that is there.

    Raises the same errors as `tune`, and InputError where another search is there.
    """
    if not (directory / RUN_FILE).exists():
        search(request, directory, place, screen)
        return
    # Who asks for the same search again has given its command and variables again.
    store = open_to_resume(directory, env={}, trust_run=True)
    if _asked_for(store.request) != _asked_for(request):
        raise InputError(
            f"must hold no other search than this one, got another in {str(directory)!r}",
            field="out",
        )
    store.raise_limits(max_trials=request.max_trials, gpu_hours=request.gpu_hours)
    go_on(store, place, screen)


def _asked_for(request: Request) -> tuple[object, ...]:
    """What makes a request another one; devices are replaced by those that a cluster has."""
    cluster = request.space.cluster
    return (
        *(request.space.model, request.layouts, request.trainable, request.search),
        *(cluster.nodes, cluster.gpus_per_node, request.env, request.command),
    )


@lasting_output()
def go_on(store: RunStore, place: Place, screen: Screen) -> Ledger:
    """Resume a search; where it has already ended, nothing is started."""
    with signals_interrupt(), contextlib.ExitStack() as stack:
        with in_field("resume"):
            stack.enter_context(sole_user(store.directory))
            store.check_still_there()
            remove_temporary_files(store.directory)
        deadline = _shown_deadline(place, screen)
        listeners = Listeners(screen, StatusFile(), *loggers(place.log, screen.warn))
        with in_field("resume"):
            ledger = Ledger(store, listeners, deadline=deadline)
        if ledger.is_over:
            screen.note(f"{len(ledger.records)} trials already finished, none is left to run")
            _write_result(ledger, place, screen)
            return ledger
        check(store.request, place)
        _warn_if_not_measured(store.request, screen)
        return _run(store.request, store.directory, place, screen, listeners, ledger, deadline)


def _shown_deadline(place: Place, screen: Screen) -> Deadline | None:
    """The time by which the search ends, which is printed; None where there is none."""
    deadline = deadline_of(place.until, SystemClock())
    if deadline is not None:
        screen.note(f"until {deadline.stated}")
    return deadline


def _run(
    request: Request,
    directory: Path,
    place: Place,
    screen: Screen,
    listeners: Listeners,
    ledger: Ledger | None,
    deadline: Deadline | None,
) -> Ledger:
    """Connect to Ray and run the trials: of a new search (`ledger` None), or those left of one."""
    # Imported here because Ray takes seconds to import: invalid input is reported before.
    from autotune.on_ray.connection import Dashboard, ray_cluster
    from autotune.on_ray.detected_cluster import differences, fitted_to_nodes
    from autotune.on_ray.metrics import RayMetrics
    from autotune.on_ray.nodes import inspect_nodes
    from autotune.on_ray.placement import MOST_VIRTUAL_BUNDLES
    from autotune.on_ray.tuner import run_trials

    cluster, simulated = request.space.cluster, request.simulated
    dashboard = Dashboard(host=place.dashboard_host, port=place.dashboard_port)
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(
            ray_cluster(
                cluster,
                address=place.address,
                dashboard=dashboard if place.dashboard else None,
                metrics_port=place.metrics_port,
                virtual=simulated,
                keep_logs=place.keep_ray_logs,
            )
        )
        if connection.kept_logs is not None:
            screen.note(f"Ray's logs are kept in {connection.kept_logs}")
        nodes = [] if simulated else inspect_nodes(cluster)
        if ledger is None:
            if not simulated:
                fitted = fitted_to_nodes(request, nodes)
                request = fitted.request
                for change in fitted.changes:
                    screen.note(change)
                _refuse_if_nothing_fits(request, place)
            versions = {"autotune": __version__}
            store = create_run(directory, request, nodes=nodes, versions=versions)
            ledger = Ledger(store, listeners, deadline=deadline)
        elif changes := differences(ledger.store.nodes, nodes):
            _warn_or_refuse(screen, changes, allowed=place.allow_different_cluster)
        listeners.add(InBackground(RayMetrics(), "metrics", screen.warn))
        listeners.search_begins(request, directory, ledger.records)
        stack.callback(listeners.search_ends)
        for what, url in connection.urls.items():
            screen.note(f"{what}: {url}")
        if simulated and cluster.nodes > MOST_VIRTUAL_BUNDLES:
            screen.note(
                f"the {cluster.nodes} virtual nodes are reserved together: Ray places at most "
                f"{MOST_VIRTUAL_BUNDLES} one by one in a reasonable time"
            )
        run_trials(
            ledger,
            request.description.make(request.trainable_setup),
            virtual=simulated,
            wait_for_nodes_seconds=place.wait_for_nodes_seconds,
        )
    _write_result(ledger, place, screen)
    return ledger


def _refuse_if_nothing_fits(request: Request, place: Place) -> None:
    """Raise NothingFits where no layout of a space is predicted to fit."""
    if place.explore_anyway or request.layouts is not None:
        return
    problem = why_nothing_fits(request.space, request.description.trainer)
    if problem is not None:
        raise NothingFits(problem)


def _write_result(ledger: Ledger, place: Place, screen: Screen) -> None:
    """Write what follows from the finished trials, export the best layout, and write the report."""
    ledger.write_results()
    store, request = ledger.store, ledger.request
    form = request.description.export_format
    if ledger.best and form is not None:
        with store.writing():
            export_layout(store.directory / "export", ledger.best[0].layout, request, form)
    if place.report:
        # Imported here: it takes half a second.
        from autotune.report.page import write_report

        try:
            write_report(RunFacts(store.directory), store.directory / REPORT_FILE)
        except (OSError, InputError) as error:  # the result is on record
            screen.warn(f"{REPORT_FILE} was not written: {first_line(error)}")


def _warn_if_not_measured(request: Request, screen: Screen) -> None:
    """Warn where figures are simulated or replayed."""
    if request.description.notice is not None:
        screen.warn(request.description.notice)


def _warn_or_refuse(screen: Screen, changes: list[str], *, allowed: bool) -> None:
    what = ", ".join(changes)
    if not allowed:
        raise InputError(
            f"the cluster must be the one that the run was begun on ({what}), unless "
            "`allow_different_cluster` is given",
            field="resume",
        )
    screen.warn(f"the cluster has changed: {what}")


def _refuse_without_devices(request: Request) -> None:
    try:
        request.space.cluster.check_this_machine()
    except ClusterTooSmall as error:
        raise ClusterTooSmall(
            f"space {request.space.name} {error}; give the `address` of a Ray cluster, or "
            "simulate the trials (`trainable` simulated)"
        ) from None
