"""The course of a search: its best step time so far, beside that predicted of random order."""

import altair as alt

from autotune.report.charts.style import BLUE, GREY, Layers, Width
from autotune.report.effort import Effort, progress
from autotune.report.facts import RunFacts


def course(facts: RunFacts, effort: Effort, *, by: str, width: Width = 640) -> Layers:
    """Best step time so far against `by`: trials or gpu_hours."""
    title = {"trials": "exploring trials", "gpu_hours": "GPU-hours"}[by]
    x = alt.X(f"{by}:Q", title=title, scale=alt.Scale(type="log", nice=False))
    y = alt.Y("step_seconds:Q", title="best seconds per step so far", scale=alt.Scale(zero=False))
    own, others = f"this search, {facts.word}", "random order, predicted (10 to 90 %)"
    colour = alt.Color(
        "way:N",
        title=None,
        legend=alt.Legend(symbolOpacity=1, columns=1, labelLimit=320),
        scale=alt.Scale(domain=[own, others], range=[BLUE, GREY]),
    )
    rows = [{**row, "way": own} for row in progress(facts)]
    layers: list[alt.Chart] = [
        alt.Chart(alt.Data(values=rows))
        .mark_line(interpolate="step-after", point=True, strokeWidth=2.5)
        .encode(x=x, y=y, color=colour, tooltip=[f"{by}:Q", alt.Tooltip("step_seconds:Q")])
    ]
    if effort.random_curve:
        curve = [{**row, "way": others} for row in effort.random_curve]
        base = alt.Chart(alt.Data(values=curve))
        layers = [
            base.transform_filter("isValid(datum.high)")
            .mark_area(opacity=0.2)
            .encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=colour),
            base.transform_filter("isValid(datum.median)")
            .mark_line()
            .encode(x=x, y=alt.Y("median:Q"), color=colour),
            *layers,
        ]
    return alt.layer(*layers).properties(width=width, height=280)
