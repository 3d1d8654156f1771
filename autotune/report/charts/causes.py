"""Predicted step time and memory of one layout by cause."""

import dataclasses
from typing import Any

import altair as alt

from autotune.cost.model import Estimates
from autotune.report.charts.style import BLUE, ORANGE, Layers, Width

_BAR = 24


def time_by_cause(estimates: Estimates, place: int, *, width: Width = 420) -> Layers:
    """Predicted seconds per step by cause, of the layout at `place` in the estimates."""
    return _by_cause(estimates.time, place, "seconds per step, predicted", BLUE, width)


def memory_by_cause(estimates: Estimates, place: int, *, width: Width = 420) -> Layers:
    """Predicted GiB by cause on the worst rank."""
    return _by_cause(estimates.memory, place, "GiB on the worst rank, predicted", ORANGE, width)


def _by_cause(parts: Any, place: int, title: str, colour: str, width: Width) -> Layers:
    values = {f.name: float(getattr(parts, f.name)[place]) for f in dataclasses.fields(parts)}
    total = sum(values.values())
    rows: list[dict[str, Any]] = [
        {"cause": name.replace("_", " "), "value": value, "share": value / total}
        for name, value in values.items()
        if value > 0
    ]
    rows.sort(key=lambda row: -row["value"])
    order = [row["cause"] for row in rows]
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y(
            "cause:N",
            sort=order,
            title=None,
            axis=alt.Axis(labelLimit=160),
        ),
        x=alt.X("value:Q", title=title),
        tooltip=[
            alt.Tooltip("cause:N"),
            alt.Tooltip("value:Q", format=".3~g"),
            alt.Tooltip("share:Q", format=".1%"),
        ],
    )
    bars = base.mark_bar(color=colour)
    labels = base.mark_text(align="left", dx=4, fontSize=11).encode(
        text=alt.Text("share:Q", format=".0%")
    )
    return alt.layer(bars, labels).properties(width=width, height=_BAR * len(rows))
