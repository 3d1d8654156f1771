"""`python -m autotune.plan`: predict the layouts of a space without running any."""

import collections
import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from autotune.cost.model import CostModel, Estimates
from autotune.errors import InputError
from autotune.hardware import Device, known_devices, unknown_gpu
from autotune.inputs import read_json, validated
from autotune.layout import Layout, layout_from_mapping
from autotune.options.command_line import AMOUNT, COUNT, command_line, plain_console
from autotune.options.space_options import (
    SpaceOptions,
    device_of_option,
    space_from_options,
    space_options,
)
from autotune.report.plan import predicted_mfu, print_explained, print_ranked
from autotune.rules import why_illegal
from autotune.space import Excluded, SearchSpace

# Less likely to fit than this, a layout is not worth a line.
_HOPELESS = 0.01
_STATED = "--peak-tflops, --memory-gib, --memory-bandwidth and --multiprocessors"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Layouts in the order in which they are worth trying, and what became of the others."""

    layouts: list[Layout]
    estimates: Estimates
    """Of `layouts`, in another order: see `order`."""
    order: NDArray[np.intp]
    """Places in `layouts`, most promising first: by predicted time over probability to fit."""
    dropped: Mapping[str, int]
    """How many layouts or branches of the space are not listed, by reason."""


@click.command()
@space_options
@click.option("--top", type=COUNT, default=10, show_default=True, metavar="K", help="Lines.")
@click.option("--explain", metavar="JSON", help="One layout in full, inline or as a file.")
@click.option("--peak-tflops", type=AMOUNT, metavar="X", help="Dense peak of the device.")
@click.option("--memory-gib", type=AMOUNT, metavar="X", help="Memory per device.")
@click.option("--memory-bandwidth", type=AMOUNT, metavar="X", help="In GB/s per device.")
@click.option("--multiprocessors", type=COUNT, metavar="N", help="Streaming multiprocessors.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def main(
    top: int,
    explain: str | None,
    peak_tflops: float | None,
    memory_gib: float | None,
    memory_bandwidth: float | None,
    multiprocessors: int | None,
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
    options = SpaceOptions(**given)
    space = space_from_options(options, device=_device(options.gpu, stated))
    model = CostModel(space.model, space.precision, space.cluster)
    console = plain_console()
    if explain is not None:
        layout = _layout_to_explain(explain, space)
        estimates = model.estimate([layout])
        if as_json:
            print(json.dumps(_explained(layout, estimates, space), indent=2))
        else:
            print_explained(console, space, layout, estimates)
        return 0
    found = plan(space, model)
    if as_json:
        rows = [_row(found, int(place), space) for place in found.order[:top]]
        content = {"predicted": True, "layouts": rows, "dropped": dict(found.dropped)}
        print(json.dumps(content, indent=2))
    else:
        print_ranked(console, space, found.layouts, found.estimates, found.order[:top])
        _print_dropped(console, found)
    return 0


def plan(space: SearchSpace, model: CostModel) -> Plan:
    """Estimate and rank every layout of the space. Raises InputError where it has none."""
    dropped: collections.Counter[str] = collections.Counter()
    layouts = []
    for found in space.walk():
        if isinstance(found, Excluded):
            dropped[found.reason] += 1
        else:
            layouts.append(found)
    if not layouts:
        space.check_not_empty()
    estimates = model.estimate(layouts)
    score = np.log(estimates.step_seconds) - np.log(estimates.fit_probability)
    order = np.argsort(score, kind="stable")
    hopeless = estimates.fit_probability[order] < _HOPELESS
    if hopeless.any():
        reason = (
            f"predicted to need more than the {estimates.capacity_gib:.1f} GiB of a device "
            f"(probability to fit below {_HOPELESS:.0%})"
        )
        dropped[reason] = int(hopeless.sum())
    return Plan(
        layouts=layouts,
        estimates=estimates,
        order=order[~hopeless],
        dropped=dict(dropped.most_common()),
    )


def _device(gpu: str | None, stated: Mapping[str, float | None]) -> Callable[[Device], Device]:
    """What makes the device that is meant out of the space's own. Raises InputError."""

    def device(own: Device) -> Device:
        given = {name: value for name, value in stated.items() if value is not None}
        if gpu is None:
            known = own
        elif len(given) == len(stated) and not gpu.endswith(".json"):
            known = known_devices().get(gpu) or unknown_gpu(gpu)
        else:
            try:
                known = device_of_option(gpu)
            except InputError as error:
                raise InputError(f"{error}; or state {_STATED} of another") from None
        fields = {field.name: getattr(known, field.name) for field in dataclasses.fields(known)}
        return validated(Device, {**fields, **given}, what="--gpu")

    return device


def _layout_to_explain(text: str, space: SearchSpace) -> Layout:
    """The layout of --explain; its data-parallel size follows from the cluster if absent."""
    values = read_json(text, what="--explain")
    ranks = [values.get(f"{kind}_parallel", 1) for kind in ("tensor", "pipeline")]
    if all(isinstance(size, int) and size > 0 for size in ranks):
        values.setdefault("data_parallel", max(1, space.cluster.devices // (ranks[0] * ranks[1])))
    layout = layout_from_mapping(values, space.model, what="--explain")
    if layout.world_size != space.cluster.devices:
        raise InputError(
            f"--explain: tensor_parallel * pipeline_parallel * data_parallel must be the "
            f"{space.cluster.devices} devices of the cluster, got {layout.world_size}"
        )
    if reason := why_illegal(layout, space.model, space.precision):
        raise InputError(f"--explain: {reason}")
    return layout


def _row(found: Plan, place: int, space: SearchSpace) -> dict[str, Any]:
    estimates = found.estimates
    seconds = float(estimates.step_seconds[place])
    return {
        "layout": found.layouts[place].columns(),
        "step_seconds": seconds,
        "mfu": predicted_mfu(space, seconds),
        "peak_memory_gib": float(estimates.peak_memory_gib[place]),
        "fit_probability": float(estimates.fit_probability[place]),
    }


def _explained(layout: Layout, estimates: Estimates, space: SearchSpace) -> dict[str, Any]:
    def parts(of: Any) -> dict[str, float]:
        return {f.name: float(getattr(of, f.name)[0]) for f in dataclasses.fields(of)}

    seconds = float(estimates.step_seconds[0])
    return {
        "predicted": True,
        "layout": layout.columns(),
        "step_seconds": seconds,
        "mfu": predicted_mfu(space, seconds),
        "peak_memory_gib": float(estimates.peak_memory_gib[0]),
        "capacity_gib": estimates.capacity_gib,
        "fit_probability": float(estimates.fit_probability[0]),
        "step_seconds_by_cause": parts(estimates.time),
        "peak_memory_gib_by_cause": parts(estimates.memory),
    }


def _print_dropped(console: Console, found: Plan) -> None:
    console.print(f"{len(found.order)} layouts ranked; not ranked:")
    for reason, count in found.dropped.items():
        console.print(f"{count:>7}  {reason}", soft_wrap=True)


if __name__ == "__main__":
    sys.exit(command_line(main))
