"""A plan on the screen: ranked layouts, and one layout in full. Every figure is predicted."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from autotune.cost.model import Estimates
from autotune.layout import Layout
from autotune.space import SearchSpace


def print_ranked(
    console: Console,
    space: SearchSpace,
    layouts: Sequence[Layout],
    estimates: Estimates,
    places: Iterable[int],
) -> None:
    """The layouts at `places`, one line each."""
    console.print(_headline(space), soft_wrap=True)
    table = Table(title="Predicted, most promising first")
    table.add_column("layout")
    for heading in ("step s", "MFU", f"memory of {estimates.capacity_gib:.1f} GiB", "fits"):
        table.add_column(heading, justify="right")
    for place in places:
        seconds = float(estimates.step_seconds[place])
        table.add_row(
            layouts[place].describe(),
            f"{seconds:.3g}",
            _percent(predicted_mfu(space, seconds)),
            f"{estimates.peak_memory_gib[place]:.3g}",
            f"{estimates.fit_probability[place]:.0%}",
        )
    console.print(table)


def print_explained(
    console: Console, space: SearchSpace, layout: Layout, estimates: Estimates
) -> None:
    """Where one layout's time and memory go."""
    console.print(_headline(space), soft_wrap=True)
    console.print(f"layout: {layout.describe()}", soft_wrap=True)
    seconds = float(estimates.step_seconds[0])
    console.print(_parts("Predicted seconds per step", estimates.time, "s"))
    console.print(_parts("Predicted peak memory of the worst rank", estimates.memory, "GiB"))
    console.print(
        f"predicted: {seconds:.3g} s per step, MFU {_percent(predicted_mfu(space, seconds))}; "
        f"{estimates.peak_memory_gib[0]:.3g} of {estimates.capacity_gib:.3g} GiB, fits with "
        f"probability {estimates.fit_probability[0]:.0%}",
        soft_wrap=True,
    )


def predicted_mfu(space: SearchSpace, step_seconds: float) -> float | None:
    """Model FLOPs utilisation at that step time, 0..1; None where the peak is not known."""
    peak = space.cluster.device.peak_bf16_tflops
    if peak is None or space.precision != "bf16":
        return None
    flops = space.model.model_flops_per_token * space.model.tokens_per_step
    return flops / (step_seconds * peak * 1e12 * space.cluster.devices)


def _headline(space: SearchSpace) -> str:
    model = space.model
    return (
        f"{space.name}: {model.parameters / 1e9:.3g} billion parameters in {space.precision}, "
        f"global batch {model.global_batch_size} x {model.sequence_length} tokens, on "
        f"{space.cluster.describe()}"
    )


def _parts(title: str, parts: Any, unit: str) -> Table:
    total = float(parts.total[0])
    table = Table(title=title)
    table.add_column("cause")
    table.add_column(unit, justify="right")
    table.add_column("share", justify="right")
    for field in dataclasses.fields(parts):
        value = float(getattr(parts, field.name)[0])
        table.add_row(field.name.replace("_", " "), f"{value:.3g}", f"{value / total:.1%}")
    table.add_section()
    table.add_row("all", f"{total:.3g}", "100.0%")
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
