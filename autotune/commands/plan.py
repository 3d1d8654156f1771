"""`autotune plan`: predict the layouts of a space without running any."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from autotune.commands.export import write_export
from autotune.commands.pipeline import write_new_schedule
from autotune.cost.feasibility import least_nodes
from autotune.cost.model import CostModel, Estimates
from autotune.cost.per_stage import PredictedStage, predicted_stages
from autotune.cost.trainers import Trainer, known_trainers, trainer_of
from autotune.cost.uncertainty import step_time_interval
from autotune.errors import InputError, in_field
from autotune.export import formats
from autotune.hardware import Device, device_named, known_devices, unknown_gpu
from autotune.inputs import validated
from autotune.layout import Layout
from autotune.options.command_line import AMOUNT, COUNT, PATH
from autotune.options.names import TRAINER
from autotune.options.one_layout import chosen_layout
from autotune.options.output import plain_console
from autotune.options.search_options import request_of_plan
from autotune.options.space_options import (
    SpaceOptions,
    space_from_options,
    space_options,
)
from autotune.pipeline.predicted import predicted_schedule
from autotune.planning import plan as make_plan
from autotune.report.plan import print_explained, print_not_ranked, print_ranked
from autotune.report.schedule_file import refuse_schedule_file
from autotune.report.trace import print_side_by_side
from autotune.space import SearchSpace
from autotune.trial.measurement import predicted_mfu
from autotune.trial.registry import WORKER, describe_trainable, traced_stages
from autotune.trial.traced import TracedRank, traced_to_json

# More are not tried by --fit.
_MOST_NODES = 1024
_DEVICE_OPTIONS = "--peak-tflops, --memory-gib, --memory-bandwidth and --multiprocessors"


@click.command()
@space_options
@click.option("--top", type=COUNT, default=10, show_default=True, metavar="K", help="Lines.")
@click.option("--explain", metavar="JSON", help="One layout in full, inline or as a file.")
@click.option(
    "--export",
    type=click.Choice(formats()),
    help="Write the layout of --explain for another program.",
)
@click.option("--out", type=PATH, metavar="PATH", help="Folder of --export; default ./export.")
@click.option(
    "--pipeline",
    type=PATH,
    metavar="FILE",
    help="Draw the predicted step of --explain: a new .svg, .png, .html, or .json for Perfetto.",
)
@click.option(
    "--traced",
    is_flag=True,
    help="Run the code of --explain's ranks without devices, and compare memory and traffic.",
)
@click.option("--peak-tflops", type=AMOUNT, metavar="X", help="Dense peak of the device.")
@click.option("--memory-gib", type=AMOUNT, metavar="X", help="Memory per device.")
@click.option("--memory-bandwidth", type=AMOUNT, metavar="X", help="In GB/s per device.")
@click.option("--multiprocessors", type=COUNT, metavar="N", help="Streaming multiprocessors.")
@click.option("--fit", is_flag=True, help="On the fewest nodes that a layout fits on.")
@click.option(
    "--trainer",
    type=TRAINER,
    default="deepspeed_llm",
    metavar="NAME|FILE.json",
    help="Training code to predict: " + ", ".join(known_trainers()) + ", or a file.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def main(
    top: int,
    explain: str | None,
    export: str | None,
    out: Path | None,
    pipeline: Path | None,
    traced: bool,
    peak_tflops: float | None,
    memory_gib: float | None,
    memory_bandwidth: float | None,
    multiprocessors: int | None,
    fit: bool,
    trainer: str,
    as_json: bool,
    **given: Any,
) -> int:
    """Predict step time and memory of a model's layouts; nothing is run."""
    stated = {
        "peak_bf16_tflops": peak_tflops,
        "peak_fp32_tflops": peak_tflops,
        "memory_gib": memory_gib,
        "memory_gb_per_second": memory_bandwidth,
        "multiprocessors": multiprocessors,
    }
    _check_files(explain, export, out, pipeline)
    options = SpaceOptions(**given)
    with in_field("trainer"):
        own = trainer_of(trainer)
    device = _device(options.gpu, stated)
    if traced:
        _check_traced(explain, own)
    if fit:
        options = _on_fewest_nodes(options, device, own)
    space = space_from_options(options, device=device)
    engine = {"deepspeed_engine": own.deepspeed_engine}
    space = space.replaced(engine, what=None)
    model = CostModel(space.model, space.precision, space.cluster, trainer=own)
    console = plain_console()
    if explain is not None:
        layout = chosen_layout(explain, space, "--explain")
        prepared = model.prepare([layout])
        estimates = model.estimate(prepared)
        low, high = (float(bound[0]) for bound in step_time_interval(model, prepared))
        if export is not None:
            write_export(out or Path("export"), layout, request_of_plan(space), export)
        if pipeline is not None:
            title = f"{space.name}, {layout.describe()}"
            schedule = predicted_schedule(model, layout)
            write_new_schedule(pipeline, schedule, layout=title, field="pipeline")
        content = _explained(layout, estimates, space, (low, high))
        stages = _stages(model, space, layout) if traced else []
        if as_json:
            print(json.dumps({**content, **_side_by_side(stages)}, indent=2))
        else:
            print_explained(console, space, layout, estimates, (low, high))
            if stages:
                print_side_by_side(console, stages)
        return 0
    ranked = make_plan(space, model)
    if as_json:
        content = {
            "predicted": True,
            "trainer": own.name,
            "nodes": space.cluster.nodes,
            "notes": list(space.model.notes),
            "layouts": ranked.rows(top),
            "dropped": dict(ranked.dropped),
            "nothing_fits": ranked.nothing_fits,
        }
        print(json.dumps(content, indent=2))
    else:
        print_ranked(console, ranked, top)
        console.print(f"{len(ranked.order)} layouts ranked")
        print_not_ranked(console, ranked.dropped, "not ranked")
    return 0


def _check_files(
    explain: str | None, export: str | None, out: Path | None, pipeline: Path | None
) -> None:
    if export is not None and explain is None:
        raise InputError("must be given with --explain, got none", field="export")
    if out is not None and export is None:
        raise InputError("must be given with --export, got none", field="out")
    if pipeline is not None:
        if explain is None:
            raise InputError("must be given with --explain, got none", field="pipeline")
        with in_field("pipeline"):
            refuse_schedule_file(pipeline)


def _check_traced(explain: str | None, trainer: Trainer) -> None:
    if explain is None:
        raise InputError("must be given with --explain, got none", field="traced")
    worker = describe_trainable(WORKER).trainer
    if trainer.name != worker:
        raise InputError(f"must be given with trainer {worker}, got {trainer.name}", field="traced")


def _on_fewest_nodes(
    options: SpaceOptions, device: Callable[[Device], Device], trainer: Trainer
) -> SpaceOptions:
    """The options with the smallest number of nodes that a layout is likely to fit on."""
    if options.nodes is not None:
        raise InputError("cannot be given with --nodes", field="fit")

    def space_on(nodes: int) -> SearchSpace:
        return space_from_options(dataclasses.replace(options, nodes=nodes), device=device)

    nodes = least_nodes(space_on, trainer, _MOST_NODES)
    if nodes is None:
        raise InputError(f"no layout is predicted to fit on up to {_MOST_NODES} nodes")
    return dataclasses.replace(options, nodes=nodes)


def _device(
    gpu: str | Device | None, stated: Mapping[str, float | None]
) -> Callable[[Device], Device]:
    """A function from the space's device to the one that the options ask for."""

    def device(space_device: Device) -> Device:
        given = {name: value for name, value in stated.items() if value is not None}
        if gpu is None:
            known = space_device
        elif isinstance(gpu, Device):
            known = gpu
        elif len(given) == len(stated) and not gpu.endswith(".json"):
            known = known_devices().get(gpu) or unknown_gpu(gpu)
        else:
            try:
                known = device_named(gpu)
            except InputError as error:
                sentence = f"{error}; for another device give {_DEVICE_OPTIONS}"
                raise InputError(sentence, field="gpu") from None
        fields = {field.name: getattr(known, field.name) for field in dataclasses.fields(known)}
        return validated(Device, {**fields, **given}, what="--gpu")

    return device


def _stages(
    model: CostModel, space: SearchSpace, layout: Layout
) -> list[tuple[PredictedStage, TracedRank]]:
    """Prediction and trace of every pipeline stage."""
    stages = range(layout.pipeline_parallel)
    ranks = traced_stages(space, layout, stages)
    return list(zip(predicted_stages(model, layout, stages), ranks, strict=True))


def _side_by_side(stages: Sequence[tuple[PredictedStage, TracedRank]]) -> dict[str, Any]:
    return (
        {
            "predicted_stages": [dataclasses.asdict(predicted) for predicted, _ in stages],
            "traced_stages": traced_to_json([rank for _, rank in stages]),
        }
        if stages
        else {}
    )


def _explained(
    layout: Layout, estimates: Estimates, space: SearchSpace, interval: tuple[float, float]
) -> dict[str, Any]:
    def parts(causes: Any) -> dict[str, float]:
        return {f.name: float(getattr(causes, f.name)[0]) for f in dataclasses.fields(causes)}

    seconds = float(estimates.step_seconds[0])
    return {
        "predicted": True,
        "layout": layout.columns(),
        "step_seconds": seconds,
        "low_step_seconds": interval[0],
        "high_step_seconds": interval[1],
        "mfu": predicted_mfu(space, seconds),
        "peak_memory_gib": float(estimates.peak_memory_gib[0]),
        "capacity_gib": estimates.capacity_gib,
        "fit_probability": float(estimates.fit_probability[0]),
        "step_seconds_by_cause": parts(estimates.time),
        "peak_memory_gib_by_cause": parts(estimates.memory),
    }
