"""Prints plans: ranked layouts, and one layout in detail. All figures are predictions."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from autotune.cost.model import Estimates
from autotune.layout import DIMENSIONS, Layout
from autotune.planning import Plan
from autotune.report.layouts import add_layout_column, narrow_table
from autotune.space import SearchSpace
from autotune.trial.measurement import predicted_mfu

_MOST_REASONS = 8


def print_ranked(console: Console, plan: Plan, top: int) -> None:
    """Print the `top` best layouts, one line each.

    Layouts that differ only in kernels or compilation share a line: it shows the best of them, the
    number of the others, and how much slower the slowest is.
    """
    space, estimates = plan.space, plan.estimates
    print_headline(console, space)
    if plan.nothing_fits is not None:
        console.print(f"predicted: {plan.nothing_fits}", soft_wrap=True)
        return
    groups = list(_by_layout(plan))[:top]
    table = narrow_table("Predicted, most promising first")
    cells = add_layout_column(table, [plan.layouts[best] for best, _ in groups], console.width)
    table.add_column("step s, 80 % in", justify="right", no_wrap=True)
    for heading in ("MFU", f"GiB of {estimates.capacity_gib:.1f}", "fits"):
        table.add_column(heading, justify="right")
    table.add_column("other kernels")
    low, high = plan.intervals([best for best, _ in groups])
    for place, (best, others) in enumerate(groups):
        seconds = float(estimates.step_seconds[best])
        table.add_row(
            cells[place],
            f"{seconds:.3g}, {low[place]:.3g} to {high[place]:.3g}",
            _percent(predicted_mfu(space, seconds)),
            f"{estimates.peak_memory_gib[best]:.3g}",
            f"{estimates.fit_probability[best]:.0%}",
            _others(plan, seconds, others),
        )
    console.print(table)


def _by_layout(plan: Plan) -> Iterator[tuple[int, list[int]]]:
    """Groups of layouts that differ only in their kernels: index of the best, and of the others."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    names = [name for name, dim in DIMENSIONS.items() if not dim.is_implementation]
    for index in map(int, plan.order):
        layout = plan.layouts[index]
        groups.setdefault(tuple(getattr(layout, name) for name in names), []).append(index)
    for first, *others in groups.values():
        yield first, others


def _others(plan: Plan, seconds: float, others: list[int]) -> str:
    if not others:
        return ""
    slowest = max(float(plan.estimates.step_seconds[index]) for index in others)
    return f"{len(others)}, up to {slowest / seconds - 1:+.0%}"


def print_not_ranked(console: Console, reasons: Mapping[str, int], what: str) -> None:
    """Print how many layouts each reason excludes, most frequent first."""
    if not reasons:
        return
    console.print(f"{what}: {sum(reasons.values())} layouts, because")
    ordered = sorted(reasons.items(), key=lambda item: -item[1])
    shown = ordered if len(ordered) <= _MOST_REASONS else ordered[: _MOST_REASONS - 1]
    for reason, count in shown:
        console.print(f"{count:>9}  {reason}", soft_wrap=True)
    if rest := ordered[len(shown) :]:
        left = sum(count for _, count in rest)
        console.print(f"{left:>9}  of {len(rest)} other reasons", soft_wrap=True)


def print_explained(
    console: Console,
    space: SearchSpace,
    layout: Layout,
    estimates: Estimates,
    interval: tuple[float, float],
) -> None:
    """Print one layout's step time and memory by cause."""
    print_headline(console, space)
    console.print(f"layout: {layout.describe()}", soft_wrap=True)
    seconds = float(estimates.step_seconds[0])
    console.print(parts_table("Predicted seconds per step", estimates.time, "s"))
    console.print(parts_table("Predicted peak memory of the worst rank", estimates.memory, "GiB"))
    console.print(
        f"predicted: {seconds:.3g} s per step, {interval[0]:.3g} to {interval[1]:.3g} s with a "
        f"probability of 80 %, MFU {_percent(predicted_mfu(space, seconds))}; "
        f"{estimates.peak_memory_gib[0]:.3g} of {estimates.capacity_gib:.3g} GiB, fits with "
        f"probability {estimates.fit_probability[0]:.0%}",
        soft_wrap=True,
    )


def print_headline(console: Console, space: SearchSpace, count: str | None = None) -> None:
    """Print a space as one line, and a line for each note of its model."""
    console.print(headline(space, count), soft_wrap=True)
    for note in space.model.notes:
        console.print(f"note: {note}", soft_wrap=True)


def headline(space: SearchSpace, count: str | None = None) -> str:
    """A space as one line: model, batch and cluster."""
    model = space.model
    layouts = "" if count is None else f"{count} of "
    active = ""
    if model.active_parameters < model.parameters:
        active = f" ({_count(model.active_parameters)} active)"
    return (
        f"{space.name}: {layouts}{_count(model.parameters)} parameters{active} in "
        f"{space.precision}, global batch {model.global_batch_size} x {model.sequence_length} "
        f"tokens, on {space.cluster.describe()}"
    )


def _count(parameters: int) -> str:
    return (
        f"{parameters / 1e9:.3g} billion"
        if parameters >= 1e8
        else f"{parameters / 1e6:.3g} million"
    )


def parts_table(title: str, parts: Any, unit: str, place: int = 0) -> Table:
    """A table of step time or memory by cause, of the layout at `place` in the estimates."""
    total = float(parts.total[place])
    table = Table(title=title)
    table.add_column("cause")
    table.add_column(unit, justify="right")
    table.add_column("share", justify="right")
    for field in dataclasses.fields(parts):
        value = float(getattr(parts, field.name)[place])
        table.add_row(field.name.replace("_", " "), f"{value:.3g}", f"{value / total:.1%}")
    table.add_section()
    table.add_row("all", f"{total:.3g}", "100.0%")
    return table


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"
