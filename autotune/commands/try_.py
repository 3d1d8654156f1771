"""`autotune try`: run one layout, and show how its figures were read."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from autotune.cost.model import CostModel
from autotune.errors import InputError, in_field
from autotune.inputs import default_of, read_json, shown
from autotune.layout import RESTRICTABLE, Layout
from autotune.ledger.interruption import signals_interrupt
from autotune.options.command_line import COUNT_OR_ZERO, PATH, SECONDS
from autotune.options.output import plain_console
from autotune.options.search_options import (
    AUTO,
    SearchOptions,
    request_from_options,
    trainable_choices,
)
from autotune.options.space_options import space_options
from autotune.output_paths import refuse_impossible_directory
from autotune.pipeline.measured import measured_schedule
from autotune.place import Place
from autotune.planning import plan
from autotune.report.schedule_file import write_schedule
from autotune.request import Request
from autotune.trial.measurement import measure
from autotune.trial.trial import Ended, Outcome, StepReport, TrialSpec, spec_of
from autotune.tuning import check


@click.command()
@space_options
@click.option(
    "--layout",
    metavar="JSON",
    help="Values of dimensions, inline or as a file; the rest is as predicted best.",
)
@click.option("--trainable", type=click.Choice(trainable_choices()), help="What runs the trial.")
@click.option("--command", metavar="FILE", help="Training command, a TOML or Python file.")
@click.option(
    "--trace-steps",
    type=COUNT_OR_ZERO,
    default=default_of(SearchOptions, "trace_steps"),
    show_default=True,
    metavar="N",
    help="Record the passes of every rank in the last N steps, and draw the last one.",
)
@click.option("--trial-timeout", type=SECONDS, metavar="SECONDS")
@click.option("--data", metavar="PATH", help="File or folder whose bytes are the tokens.")
@click.option("--synthetic-data", is_flag=True, help="Random tokens instead of text.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="Environment of the ranks.")
@click.option("--address", metavar="RAY", help="Address of a running Ray cluster.")
@click.option("--logs", type=PATH, metavar="DIR", help="New folder  [default: a temporary one]")
@click.pass_context
def main(
    context: click.Context,
    /,
    *,
    layout: str | None,
    trainable: str | None,
    logs: Path | None,
    **given: Any,
) -> int:
    """Run one layout and show its steps. With --command also how its output was read.

    The exit status is 0 where all steps were measured, else 1.
    """
    context.with_resource(signals_interrupt())
    trainable = trainable or (AUTO if given["command"] is None else "command")
    options = SearchOptions(**given, trainable=trainable)
    wanted = {} if layout is None else _wanted(layout)
    request = request_from_options(options)
    if request.simulated:
        raise InputError(f"must run real trials, got {request.trainable}", field="trainable")
    check(request, Place(address=options.address))
    chosen = _layout(request, wanted)
    logs = _folder(logs)
    console = plain_console()
    console.print(
        f"trying {chosen.describe()} on {request.space.cluster.describe()}", soft_wrap=True
    )
    ended = _run(request, chosen, logs, options.address, console)
    description = request.description
    if description.how_read is not None and request.command is not None:
        console.print("how the output was read:", soft_wrap=True)
        for sentence in description.how_read(request.command, logs):
            console.print(f"  {sentence}", soft_wrap=True)
    if ended.trace:
        _draw(ended, chosen, logs, console)
    console.print(f"the whole output is in {logs}", soft_wrap=True)
    return 0 if ended.outcome is Outcome.OK else 1


def _wanted(text: str) -> dict[str, Any]:
    """The values of --layout."""
    values = read_json(text, what="--layout")
    for name in values:
        if name not in RESTRICTABLE:
            raise InputError(
                f"must have dimensions among {', '.join(RESTRICTABLE)}, got {shown(name)}",
                field="layout",
            )
    return values


def _layout(request: Request, wanted: Mapping[str, Any]) -> Layout:
    """The layout with those values that is predicted best."""
    with in_field("layout"):
        space = request.space.restricted({name: (value,) for name, value in wanted.items()})
        space.check_not_empty()
    trainer = request.description.trainer
    planned = plan(space, CostModel(space.model, space.precision, space.cluster, trainer=trainer))
    return planned.ranked[0] if planned.ranked else planned.layouts[0]


def _folder(logs: Path | None) -> Path:
    if logs is None:
        return Path(tempfile.mkdtemp(prefix="autotune-try-"))
    with in_field("logs"):
        refuse_impossible_directory(logs)
        if logs.is_dir() and any(logs.iterdir()):
            raise InputError(f"must be empty or new, got {shown(logs)} with files in it")
    return logs.absolute()


def _run(
    request: Request, layout: Layout, logs: Path, address: str | None, console: Console
) -> Ended:
    """Run the trial; prints each step and the end."""
    # Imported here because Ray takes seconds to import: invalid input is reported before.
    from autotune.on_ray.connection import ray_cluster
    from autotune.on_ray.one_job import run_on_nodes

    space = request.space
    spec = spec_of(
        space,
        layout,
        trial_id="0001",
        log_dir=str(logs),
        data=request.data,
        synthetic_data=request.synthetic_data,
        seed=request.seed,
        trial_timeout_seconds=request.trial_timeout_seconds,
        trace_steps=request.trace_steps,
    )
    trainable = request.description.make(request.trainable_setup)
    assert trainable.host_factory is not None, "a real trial needs processes"
    events: list[StepReport | Ended] = []

    def receive(event: StepReport | Ended) -> None:
        events.append(event)
        if isinstance(event, StepReport):
            console.print(_step(event, spec), soft_wrap=True)

    def work(hosts: Any) -> Any:
        trainable.check(spec.cluster, hosts)
        yield from trainable.run(spec, hosts)

    with ray_cluster(space.cluster, address=address):
        title = f"try {layout.describe()}"
        run_on_nodes(space.cluster, trainable.host_factory, work, receive, title=title)
    *steps, ended = events
    assert isinstance(ended, Ended)
    measured = measure(spec, [step for step in steps if isinstance(step, StepReport)])
    seconds = measured.step_seconds
    result = "" if seconds is None else f", median step {seconds:.3f} s"
    reason = f": {ended.reason}" if ended.reason else ""
    console.print(f"{ended.outcome}{reason}{result}", soft_wrap=True)
    return ended


def _draw(ended: Ended, layout: Layout, logs: Path, console: Console) -> None:
    """Write the last traced step into the folder, as a picture and as a trace."""
    schedule = measured_schedule(ended.trace, layout)
    for name in ("pipeline.svg", "pipeline.json"):
        write_schedule(logs / name, schedule, layout=layout.describe())
    console.print(
        f"the last step is in {logs}/pipeline.svg, and for ui.perfetto.dev in pipeline.json",
        soft_wrap=True,
    )


def _step(report: StepReport, spec: TrialSpec) -> str:
    figures = [f"step {report.step}", f"{report.step_seconds:.3f} s"]
    if report.loss is not None:
        figures.append(f"loss {report.loss:.4f}")
    if report.peak_memory_gib is not None:
        figures.append(f"{report.peak_memory_gib:.2f} GiB")
    if report.step < spec.warmup_steps:
        figures.append("(warm-up)")
    return "  " + "  ".join(figures)
