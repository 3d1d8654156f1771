"""How the best layout's throughput grows with the number of nodes.

Strong scaling keeps the global batch; weak scaling keeps the batch per node.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from rich.console import Console

from autotune.cost.model import CostModel
from autotune.cost.trainers import Trainer
from autotune.errors import InputError
from autotune.inputs import LARGEST_COUNT
from autotune.layout import Layout
from autotune.planning import plan
from autotune.report.facts import RunFacts, number, percent
from autotune.report.layouts import narrow_table
from autotune.space import SearchSpace

Kind = Literal["strong", "weak"]
KINDS: tuple[Kind, ...] = ("strong", "weak")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ScalePoint:
    """The best layout on one number of nodes."""

    kind: Kind
    nodes: int
    devices: int
    global_batch_size: int
    """Sequences per step."""
    word: str
    """What the figures are: predicted, measured, simulated or replayed."""
    layout: Layout | None = None
    """The best layout; None where there is none."""
    why_none: str | None = None
    """Why there is none."""
    step_seconds: float | None = None
    interval: tuple[float, float] | None = None
    """Seconds that hold the step time with a probability of 80 %; None where it is not predicted.
    """
    mfu: float | None = None
    """0..1; None where the device's peak is unknown, or the precision is not bf16."""
    tokens_per_second: float | None = None
    """Of all devices together."""
    efficiency: float | None = None
    """Tokens/s per device over those on the fewest nodes with a layout."""


def spaces_on(space: SearchSpace, kind: Kind, nodes: Sequence[int]) -> Iterator[SearchSpace]:
    """The space on each number of nodes. The global batch is that of the space on its own number of
    nodes. Raises InputError where a batch is not a whole number of sequences."""
    batch, own = space.model.global_batch_size, space.cluster.nodes
    for count in nodes:
        if kind == "weak" and batch * count % own:
            raise InputError(
                f"weak scaling needs a whole number of sequences per step, got {batch} of {own} "
                f"nodes on {count}",
                field="nodes",
            )
        size = batch * count // own if kind == "weak" else batch
        if size > LARGEST_COUNT:
            raise InputError(
                f"weak scaling needs at most {LARGEST_COUNT} sequences per step, got {size} on "
                f"{count} nodes",
                field="nodes",
            )
        model = dataclasses.replace(space.model, global_batch_size=size)
        cluster = dataclasses.replace(space.cluster, nodes=count)
        yield space.replaced({"model": model, "cluster": cluster}, what=None)


def predicted_point(space: SearchSpace, kind: Kind, trainer: Trainer) -> ScalePoint:
    """The layout that is predicted best on the space's nodes."""
    empty = point_without_layout(space, kind, "predicted")
    model = CostModel(space.model, space.precision, space.cluster, trainer=trainer)
    try:
        planned = plan(space, model)
    except InputError as error:  # no layout is legal on so many nodes
        return dataclasses.replace(empty, why_none=str(error))
    rows = planned.rows(top=1)
    if not rows:
        return dataclasses.replace(empty, why_none=planned.nothing_fits)
    seconds = rows[0]["step_seconds"]
    return dataclasses.replace(
        empty,
        layout=planned.ranked[0],
        step_seconds=seconds,
        interval=(rows[0]["low_step_seconds"], rows[0]["high_step_seconds"]),
        mfu=rows[0]["mfu"],
        tokens_per_second=space.model.tokens_per_step / seconds,
    )


def point_of_run(run: RunFacts, kind: Kind) -> ScalePoint:
    """The best layout that a search found."""
    empty = point_without_layout(run.space, kind, run.word)
    if run.best is None:
        return dataclasses.replace(empty, why_none="no layout worked")
    measured = run.best.measurement
    rate = measured.tokens_per_second_per_gpu
    return dataclasses.replace(
        empty,
        layout=run.best.layout,
        step_seconds=measured.step_seconds,
        mfu=measured.mfu,
        tokens_per_second=None if rate is None else rate * run.space.cluster.devices,
    )


def point_without_layout(
    space: SearchSpace, kind: Kind, word: str, why_none: str | None = None
) -> ScalePoint:
    """The point of a space without a layout, or before it is known."""
    return ScalePoint(
        kind=kind,
        nodes=space.cluster.nodes,
        devices=space.cluster.devices,
        global_batch_size=space.model.global_batch_size,
        word=word,
        why_none=why_none,
    )


def with_efficiency(points: Sequence[ScalePoint]) -> list[ScalePoint]:
    """The points of one kind, from few nodes to many, with their efficiency."""
    ordered = sorted(points, key=lambda point: point.nodes)
    first = next((p for p in ordered if p.tokens_per_second is not None), None)
    if first is None or first.tokens_per_second is None:
        return ordered
    of_first = first.tokens_per_second / first.devices
    return [
        point
        if point.tokens_per_second is None
        else dataclasses.replace(
            point, efficiency=point.tokens_per_second / point.devices / of_first
        )
        for point in ordered
    ]


def print_scaling(console: Console, points: Sequence[ScalePoint]) -> None:
    """Print a table of each kind."""
    for kind in dict.fromkeys(point.kind for point in points):
        own = [point for point in points if point.kind == kind]
        words = ", ".join(dict.fromkeys(point.word for point in own))
        batch = "global batch" if kind == "strong" else "batch per node"
        table = narrow_table(f"{kind} scaling (the same {batch}), {words}")
        for heading in ("nodes", "devices", "batch"):
            table.add_column(heading, justify="right")
        table.add_column("best layout", min_width=16)
        for heading in ("step s", "80 % in", "MFU", "tokens/s", "efficiency"):
            table.add_column(heading, justify="right")
        for point in own:
            interval = ""
            if point.interval is not None:
                interval = " to ".join(f"{bound:.3g}" for bound in point.interval)
            table.add_row(
                str(point.nodes),
                str(point.devices),
                str(point.global_batch_size),
                point.layout.describe() if point.layout else f"none: {point.why_none}",
                number(point.step_seconds, ".4g"),
                interval,
                percent(point.mfu),
                number(point.tokens_per_second, ",.0f"),
                percent(point.efficiency, 0),
            )
        console.print(table)


def plain_point(point: ScalePoint) -> Mapping[str, Any]:
    """The point as JSON values."""
    values = {
        field.name: getattr(point, field.name)
        for field in dataclasses.fields(point)
        if field.name not in ("layout", "interval")
    }
    low, high = point.interval or (None, None)
    layout = None if point.layout is None else point.layout.columns()
    return {**values, "layout": layout, "low_step_seconds": low, "high_step_seconds": high}
