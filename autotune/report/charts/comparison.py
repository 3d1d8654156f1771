"""The best layouts of several runs beside each other."""

from typing import Any

import altair as alt

from autotune.report.charts.style import BLUE, Layers, Width
from autotune.report.comparison import Comparison


def comparison_chart(comparison: Comparison, *, width: Width = 560) -> Layers:
    """Step time of each run's best layout with the interquartile range of its steps."""
    rows: list[dict[str, Any]] = []
    for run in comparison.runs:
        measured = run.record.measurement
        seconds, spread = measured.step_seconds, measured.step_seconds_iqr or 0.0
        assert seconds is not None, "of a layout that worked"
        rows.append(
            {
                "run": f"{run.name} ({run.word})",
                "seconds": seconds,
                "low": seconds - spread / 2,
                "high": seconds + spread / 2,
                "text": run.record.layout.describe(),
                "mfu": run.mfu,
            }
        )
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("run:N", sort=[row["run"] for row in rows], title=None)
    )
    x = alt.X("seconds:Q", title="seconds per step")
    bars = base.mark_bar(color=BLUE, opacity=0.8).encode(
        x=x,
        tooltip=["run:N", "text:N", "seconds:Q", alt.Tooltip("mfu:Q", title="MFU", format=".1%")],
    )
    spreads = base.mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q")
    layouts = base.mark_text(align="left", dx=6, fontSize=10, color="white").encode(
        x=alt.datum(0), text="text:N"
    )
    height = 34 * len(rows)
    title = (
        "Not alike: see the table" if comparison.differences else "Same devices, model and batch"
    )
    return alt.layer(bars, spreads, layouts).properties(width=width, height=height, title=title)
