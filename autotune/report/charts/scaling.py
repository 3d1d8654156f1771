"""Throughput by number of devices, with the line of perfect scaling."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from autotune.report.charts.style import BLUE, GREY, ORANGE, Layers, Width
from autotune.report.scaling import ScalePoint


def scaling_chart(points: Sequence[ScalePoint], *, width: Width = 320) -> alt.HConcatChart:
    """Tokens per second of the best layout against devices: a panel for strong scaling, and one for
    weak. Numbers are efficiencies, bands the 80 % intervals of predictions; the dashed line is
    perfect scaling."""
    panels = [
        _panel([point for point in points if point.kind == kind], colour, width)
        for kind, colour in (("strong", BLUE), ("weak", ORANGE))
        if any(point.kind == kind and point.tokens_per_second for point in points)
    ]
    return alt.hconcat(*panels)


def _panel(points: Sequence[ScalePoint], colour: str, width: Width) -> Layers:
    rows = [_row(point) for point in points if point.tokens_per_second is not None]
    devices = [row["devices"] for row in rows]
    first = rows[0]["tokens"] / rows[0]["devices"]
    ideal = [{"devices": count, "tokens": first * count} for count in devices]
    x = alt.X(
        "devices:Q",
        title="devices",
        scale=alt.Scale(type="log", base=2, nice=False, padding=24),
        axis=alt.Axis(values=devices, format="d"),
    )
    y = alt.Y(
        "tokens:Q",
        title="tokens per second",
        scale=alt.Scale(type="log", nice=False, padding=20),
        axis=alt.Axis(format="~s"),
    )
    base = alt.Chart(alt.Data(values=rows))
    layers = [
        alt.Chart(alt.Data(values=ideal)).mark_line(strokeDash=[4, 4], color=GREY).encode(x=x, y=y),
        base.transform_filter("isValid(datum.low)")
        .mark_area(opacity=0.18, color=colour)
        .encode(x=x, y=alt.Y("low:Q"), y2="high:Q"),
        base.mark_line(point={"color": colour}, strokeWidth=2.5, color=colour).encode(
            x=x,
            y=y,
            tooltip=[
                "devices:Q",
                "layout:N",
                alt.Tooltip("tokens:Q", format=",.0f"),
                alt.Tooltip("efficiency:Q", format=".0%"),
            ],
        ),
        base.mark_text(dy=16, dx=10, fontSize=11).encode(
            x=x, y=y, text=alt.Text("efficiency:Q", format=".0%")
        ),
    ]
    batch = "same global batch" if points[0].kind == "strong" else "same batch per node"
    words = ", ".join(dict.fromkeys(point.word for point in points))
    title = f"{points[0].kind} scaling ({batch}), {words}"
    return alt.layer(*layers).properties(width=width, height=300, title=title)


def _row(point: ScalePoint) -> dict[str, Any]:
    assert point.tokens_per_second is not None and point.step_seconds is not None
    tokens = point.tokens_per_second * point.step_seconds
    low, high = point.interval or (None, None)
    return {
        "devices": point.devices,
        "tokens": point.tokens_per_second,
        "low": None if high is None else tokens / high,
        "high": None if low is None else tokens / low,
        "layout": "" if point.layout is None else point.layout.describe(),
        "efficiency": point.efficiency,
    }
