"""`python -m autotune.run`: search a space for the layout that trains fastest."""

import contextlib
import dataclasses
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from autotune import __version__
from autotune.cli import EXIT_INTERRUPTED, EXIT_NOTHING_WORKED, SECONDS, command_line
from autotune.cost.setting import setting_of
from autotune.errors import ClusterTooSmall, InputError
from autotune.export import export_layout
from autotune.hardware import device_of_accelerator
from autotune.ledger import CONFIRMED, Ledger, equal_within_noise
from autotune.options import TRAINABLES, SearchOptions, request_from_options
from autotune.recorded import read_sweeps
from autotune.report import Screen, print_best, print_plan
from autotune.request import Request
from autotune.space_options import COUNT, refuse_empty, space_options
from autotune.store import RunStore, create_run, open_run, refuse_existing_run, sole_user
from autotune.trainable import Trainable

_PLAIN_WIDTH = 130
_POSITIVE = click.FloatRange(min=0, min_open=True)
_SAID_OF = {
    "simulated": "simulated: figures are predictions",
    "replay": "replayed: figures are recorded ones of earlier runs",
}


@click.command()
@space_options
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="New run directory.")
@click.option("--resume", type=click.Path(path_type=Path), metavar="DIR", help="Continue a run.")
@click.option("--trainable", type=click.Choice(TRAINABLES), default="auto", show_default=True)
@click.option("--runs", metavar="PATH", help="Recorded runs for --trainable replay.")
@click.option(
    "--search", default="guided", show_default=True, help="guided, hyperopt, random, grid or rules."
)
@click.option("--max-trials", type=COUNT, metavar="N", help="Finished trials.")
@click.option("--gpu-hours", type=_POSITIVE, metavar="H", help="Device hours for the search.")
@click.option(
    "--reduced-trials/--whole-trials",
    default=True,
    show_default=True,
    help="Explore by fewer micro-batches per step where that is much cheaper.",
)
@click.option(
    "--training-gpu-hours",
    type=_POSITIVE,
    metavar="H",
    help="Device hours of the real run: the search ends when another trial no longer pays.",
)
@click.option("--address", metavar="RAY", help="Address of a running Ray cluster.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--stop-factor",
    type=click.FloatRange(min=1),
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
@click.option("--json", "as_json", is_flag=True, help="Print best.json on the standard output.")
@click.pass_context
def main(
    context: click.Context,
    /,
    *,
    out: Path | None,
    resume: Path | None,
    address: str | None,
    dry_run: bool,
    dashboard: bool,
    as_json: bool,
    **search: Any,
) -> int:
    """Search a space for the parallel layout that trains fastest."""
    console = Console(stderr=as_json)
    if not console.is_terminal:
        console = Console(stderr=as_json, width=_PLAIN_WIDTH)
    store = None
    if resume is not None:
        _refuse_new_search_options(context)
        store = open_run(resume)
        request = store.request
        directory = resume
    else:
        request = request_from_options(SearchOptions(address=address, **search))
        directory = out or Path("runs") / request.space.name
        if not dry_run:
            refuse_existing_run(directory)
    if dry_run:
        _print_dry_run(console, request)
        return 0
    if request.simulated:
        if address is not None:
            raise InputError(
                f"--address is for real trials, got it with --trainable {request.trainable}"
            )
        console.print(_SAID_OF[request.trainable], style="bold yellow", soft_wrap=True)
    elif address is None:
        _refuse_without_devices(request)
    with _terminated_like_interrupted():
        try:
            with sole_user(directory) if store else contextlib.nullcontext():
                ledger = _search(console, request, directory, store, address, dashboard)
        except KeyboardInterrupt:
            console.print(f"interrupted; continue with --resume {directory}", soft_wrap=True)
            return EXIT_INTERRUPTED
    return _finish(console, ledger, directory, as_json=as_json)


def _search(
    console: Console,
    request: Request,
    directory: Path,
    store: RunStore | None,
    address: str | None,
    dashboard: bool,
) -> Ledger:
    # Imported here: Ray takes seconds to import, and bad input should not wait for it.
    from autotune.placement import inspect_nodes, ray_cluster
    from autotune.tuner import run_trials

    cluster = request.space.cluster
    with ray_cluster(
        cluster, address=address, dashboard=dashboard, virtual=request.simulated
    ) as url:
        nodes = [] if request.simulated else inspect_nodes(cluster)
        with contextlib.ExitStack() as held:
            if store is None:
                if not request.simulated:
                    request = _with_actual_device(console, request, nodes)
                    request = _with_installed_kernels(console, request, nodes)
                    refuse_empty(request.space)
                    request = _with_possible_search(console, request)
                held.enter_context(sole_user(directory))
                about = {"versions": {"autotune": __version__}, "nodes": nodes}
                store = create_run(directory, request, about)
            finished = store.trials()
            _print_start(console, request, directory, len(finished), url)
            screen = Screen(console, max_trials=request.max_trials, finished=finished)
            ledger = Ledger(store, screen)
            with screen:
                run_trials(ledger, _trainable(request), virtual=request.simulated)
            if ledger.best:
                store.write_json("best.json", ledger.summary())
                if request.trainable != "replay":  # its kernels are of another code base
                    export_layout(directory / "export", ledger.best[0].layout, request)
            return ledger


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


def _finish(console: Console, ledger: Ledger, directory: Path, *, as_json: bool) -> int:
    best = ledger.best
    if as_json:
        print(json.dumps(ledger.summary(), indent=2))
    console.print(f"finished: {ledger.stopped_because}", highlight=False)
    if not best:
        console.print(f"no layout worked; see the reasons in {directory}/trials", soft_wrap=True)
        return EXIT_NOTHING_WORKED
    print_best(console, best, simulated=ledger.request.simulated)
    console.print(f"best: {best[0].layout.describe()}", soft_wrap=True, highlight=False)
    equal = [record.trial_id for record in best[1:] if equal_within_noise(best[0], record)]
    if equal:
        console.print(f"equal within noise: trials {', '.join(equal)}", highlight=False)
    if ledger.request.trainable != "replay":
        launch = f"{directory}/export/launch.sh"
        console.print(f"train it with {launch}", soft_wrap=True, highlight=False)
    if ledger.request.simulated:
        console.print(_SAID_OF[ledger.request.trainable], style="bold yellow", soft_wrap=True)
    return 0


def _print_start(
    console: Console, request: Request, directory: Path, finished: int, url: str | None
) -> None:
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


def _print_dry_run(console: Console, request: Request) -> None:
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


def _refuse_new_search_options(context: click.Context) -> None:
    """A resumed search is the one that was begun: only how it is shown and reached may change."""
    may_change = {"resume", "address", "dashboard", "as_json", "dry_run"}
    for parameter in context.command.params:
        name = str(parameter.name)
        given = context.get_parameter_source(name)
        if given is click.core.ParameterSource.COMMANDLINE and name not in may_change:
            raise InputError(f"{parameter.opts[0]} cannot be changed by --resume")


def _refuse_without_devices(request: Request) -> None:
    from autotune.local_devices import refuse_without_devices

    try:
        refuse_without_devices(request.space.cluster)
    except ClusterTooSmall as error:
        raise ClusterTooSmall(
            f"--space {request.space.name} {error}; name a Ray cluster with --address, or take "
            "--trainable simulated"
        ) from None


def _with_actual_device(console: Console, request: Request, nodes: list[dict[str, Any]]) -> Request:
    """Put the device that the nodes have in the place of the one that the space names."""
    cluster = request.space.cluster
    accelerator = nodes[0]["accelerator"]
    if accelerator is None or cluster.device.kind != "gpu":
        return request
    device = device_of_accelerator(accelerator)
    if device.name == cluster.device.name or accelerator in cluster.device.ray_accelerator_types:
        return request  # perhaps with constants of the user's own
    console.print(f"the nodes have {device.name}, not {cluster.device.name}", highlight=False)
    actual = dataclasses.replace(cluster, device=device)
    space = request.space.replaced({"cluster": actual}, what="cluster")
    return dataclasses.replace(request, space=space)


def _with_installed_kernels(
    console: Console, request: Request, nodes: list[dict[str, Any]]
) -> Request:
    """Leave flash-attn out of the space where a node does not have it."""
    kernels = request.space.attention_kernel
    missing = [node["address"] for node in nodes if not node["flash_attn"]]
    usable = request.space.cluster.device.attention_kernels
    if "flash_attn" not in kernels or "flash_attn" not in usable or not missing:
        return request
    if kernels == ("flash_attn",):
        raise InputError(f"attention_kernel flash_attn is not installed on node {missing[0]}")
    console.print(f"flash_attn is not installed on node {missing[0]}: left out", highlight=False)
    left = tuple(kernel for kernel in kernels if kernel != "flash_attn")
    space = request.space.replaced({"attention_kernel": left}, what="attention_kernel")
    return dataclasses.replace(request, space=space)


def _with_possible_search(console: Console, request: Request) -> Request:
    """Search without a cost model where the nodes' device is not known to it."""
    space = request.space
    if request.search != "guided":
        return request
    try:
        setting_of(space.model, space.precision, space.cluster)
    except InputError:
        console.print(
            f"{space.cluster.device.name} is not known to the cost model (describe it with --gpu "
            "FILE.json): searching with hyperopt",
            soft_wrap=True,
            highlight=False,
        )
        return dataclasses.replace(request, search="hyperopt")
    return request


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM ends the search as Ctrl-C does."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(command_line(main))
