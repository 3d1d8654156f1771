"""Colours and sizes that all charts share. The colours can be told apart by colour-blind readers
(Okabe and Ito 2008), on a white and on a dark page."""

from typing import Any, Literal

import altair as alt

from autotune.trial.trial import Outcome

Mode = Literal["light", "dark"]
Layers = alt.LayerChart | alt.FacetChart
"""A chart of several layers."""
Width = int | str
"""Pixels, or "container": that of the element around the chart."""

BLUE, ORANGE, RED, GREEN, PURPLE, SKY, GREY = (
    "#0072b2",
    "#d18f00",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#8a8a8a",
)
OUTCOME_COLOURS = {
    Outcome.OK: BLUE,
    Outcome.STOPPED: ORANGE,
    Outcome.OOM: RED,
    Outcome.TIMEOUT: PURPLE,
    Outcome.CRASHED: GREY,
    Outcome.LOST: SKY,
    Outcome.INVALID: GREEN,
}
OUTCOME_SHAPES = {
    Outcome.OK: "circle",
    Outcome.STOPPED: "triangle-down",
    Outcome.OOM: "cross",
    Outcome.TIMEOUT: "square",
    Outcome.CRASHED: "diamond",
    Outcome.LOST: "triangle-left",
    Outcome.INVALID: "triangle-right",
}
CAUSE_COLOURS = (BLUE, SKY, GREEN, ORANGE, RED, PURPLE, GREY)

_TEXT = {"light": "#1f2328", "dark": "#e6e6e6"}
_LINES = {"light": "#d8dde3", "dark": "#3a4048"}


def config(mode: Mode) -> dict[str, Any]:
    """Vega-Lite's `config` for a light or a dark page."""
    text, lines = _TEXT[mode], _LINES[mode]
    font = "system-ui, sans-serif"
    labels = {"labelColor": text, "titleColor": text, "labelFont": font, "titleFont": font}
    return {
        "background": None,
        "font": font,
        "view": {"stroke": lines},
        "axis": {**labels, "gridColor": lines, "domainColor": lines, "tickColor": lines},
        "legend": {**labels, "orient": "bottom", "columns": 4, "labelLimit": 220},
        "header": labels,
        "title": {"color": text, "subtitleColor": text, "font": font, "anchor": "start"},
        "text": {"color": text, "font": font},
        "rule": {"color": text},
    }
