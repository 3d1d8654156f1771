"""Step times of a run's best layout with one dimension changed at a time."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from autotune.report.ablation import Variation
from autotune.report.charts.style import BLUE, ORANGE, Layers, Width
from autotune.trial.trial import Outcome


def ablation_chart(variations: Sequence[Variation], word: str, *, width: Width = 560) -> Layers:
    """Step time beside the best layout's, predicted and of trials. A layout that ran out of memory
    has no bar of its trial, but says so."""
    best = variations[0]
    rows: list[dict[str, Any]] = []
    for variation in variations[1:]:
        if variation.layout is None:
            continue
        name = f"{variation.label} {variation.value}"
        if variation.predicted_seconds is not None and best.predicted_seconds is not None:
            ratio = variation.predicted_seconds / best.predicted_seconds
            rows.append({"change": name, "kind": "predicted", "ratio": ratio, "note": ""})
        record = variation.record
        if record is None or best.record is None:
            continue
        seconds, fastest = record.measurement.step_seconds, best.record.measurement.step_seconds
        ran = record.outcome is Outcome.OK and seconds and fastest
        note = "" if ran else record.outcome.value
        ratio = seconds / fastest if ran and seconds and fastest else None  # type: ignore[assignment]
        rows.append({"change": name, "kind": word, "ratio": ratio, "note": note})
    order = list(dict.fromkeys(row["change"] for row in rows))
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("change:N", sort=order, title=None, axis=alt.Axis(labelLimit=260)),
        yOffset=alt.YOffset("kind:N", sort=["predicted", word]),
    )
    bars = base.mark_bar().encode(
        x=alt.X("ratio:Q", title="step time / that of the best layout"),
        color=alt.Color(
            "kind:N",
            title=None,
            scale=alt.Scale(domain=["predicted", word], range=[ORANGE, BLUE]),
        ),
        tooltip=["change:N", "kind:N", alt.Tooltip("ratio:Q", format=".3f")],
    )
    notes = (
        base.transform_filter("datum.note != ''")
        .mark_text(align="left", dx=4, fontSize=10)
        .encode(x=alt.datum(0), text="note:N")
    )
    best_line = (
        alt.Chart(alt.Data(values=[{"ratio": 1}])).mark_rule(strokeDash=[4, 4]).encode(x="ratio:Q")
    )
    height = 24 * max(1, len(order))
    return alt.layer(bars, notes, best_line).properties(width=width, height=height)
