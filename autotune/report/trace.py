"""Prints traced ranks: memory, collectives, FLOPs and operations, counted and not measured."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from autotune.cost.per_stage import PredictedStage
from autotune.layout import Layout
from autotune.report.layouts import narrow_table
from autotune.space import SearchSpace
from autotune.trial.traced import TracedRank

_MOST_PLACES = 12
_GB = 1e9


def print_traced(
    console: Console, space: SearchSpace, layout: Layout, ranks: Sequence[TracedRank]
) -> None:
    """Print a line for each rank; of the one that needs most memory what lived at its peak, and
    its collectives."""
    console.print(
        f"{space.name}: {layout.describe()}, a step traced without devices, nothing was timed",
        soft_wrap=True,
    )
    console.print(_by_stage(ranks))
    most = max(ranks, key=lambda rank: rank.peak_memory_gib)
    console.print(_live_at_peak(most))
    console.print(_collectives(most))


def print_side_by_side(
    console: Console, stages: Sequence[tuple[PredictedStage, TracedRank]]
) -> None:
    """Print memory and traffic of each stage, predicted by formulas and traced from code."""
    table = narrow_table("Predicted / traced, per rank and step")
    groups = [
        group
        for group in stages[0][0].exchanged_bytes
        if any(rank.exchanged_bytes(group) for _, rank in stages)
    ]
    for heading in ("stage", "GiB of tensors", *(f"{group} GB" for group in groups)):
        table.add_column(heading, justify="right")
    for predicted, rank in stages:
        exchanged = [
            f"{predicted.exchanged_bytes[name] / _GB:.3f} / {rank.exchanged_bytes(name) / _GB:.3f}"
            for name in groups
        ]
        memory = f"{predicted.peak_memory_gib:.2f} / {rank.peak_memory_gib:.2f}"
        table.add_row(str(rank.stage), memory, *exchanged)
    console.print(table)
    console.print(
        "without the device's context and fragmentation; an all-reduce counts twice",
        soft_wrap=True,
    )


def _by_stage(ranks: Sequence[TracedRank]) -> Table:
    table = narrow_table("GiB of tensors at the peak of each phase")
    phases = [phase for phase in ranks[0].phases if phase != "other"]
    for heading in ("stage", "rank", *phases, "peak", "TFLOP", "operations"):
        table.add_column(heading, justify="right")
    for rank in ranks:
        table.add_row(
            str(rank.stage),
            str(rank.rank),
            *(f"{rank.phases[phase]:.2f}" for phase in phases),
            f"{rank.peak_memory_gib:.2f}",
            f"{rank.flops / 1e12:,.0f}",
            f"{rank.operations:,}",
        )
    return table


def _live_at_peak(rank: TracedRank) -> Table:
    table = narrow_table(f"What lives at the peak of stage {rank.stage}")
    table.add_column("GiB", justify="right")
    table.add_column("from")
    table.add_column("allocated by", overflow="fold")
    for live in rank.live_at_peak[:_MOST_PLACES]:
        table.add_row(f"{live.gib:.3f}", live.phase, live.place)
    if rest := rank.live_at_peak[_MOST_PLACES:]:
        table.add_row(f"{sum(live.gib for live in rest):.3f}", "", f"{len(rest)} other places")
    return table


def _collectives(rank: TracedRank) -> Table:
    table = narrow_table(f"Communication of rank {rank.rank} in a step")
    for heading in ("group", "kind"):
        table.add_column(heading)
    for heading in ("ranks", "count", "GB"):
        table.add_column(heading, justify="right")
    table.add_column("beside computation")
    for one in rank.collectives:
        table.add_row(
            one.group,
            f"{one.kind} {one.dtype}",
            str(one.size),
            f"{one.count:,}",
            f"{one.bytes / _GB:.3f}",
            "yes" if one.beside_computation else "no",
        )
    return table
