"""Charts of the trials of a run: by dimension, memory against time, predicted against measured.

They read the dataset `TRIALS`, whose rows `trial_rows` makes.
"""

from collections.abc import Sequence
from typing import Any

import altair as alt

from autotune.report.charts.style import (
    BLUE,
    GREY,
    ORANGE,
    OUTCOME_COLOURS,
    OUTCOME_SHAPES,
    Layers,
    Width,
)
from autotune.report.facts import RunFacts, dimension_label, value_word
from autotune.trial.trial import Outcome

TRIALS = "trials"
"""Name of the dataset."""

_HEIGHT = 260
# Golden section: spreads points of one value evenly, the same every time.
_SPREAD = 0.618
_LOGARITHMIC_FROM = 8.0


def trial_rows(facts: RunFacts) -> list[dict[str, Any]]:
    """A row per trial: layout, outcome, figures, and predictions. What is not known is null.

    The outcome of a layout's exploring trial is that of its longer trial, where it failed that one.

    `step_seconds` and `peak_memory_gib` are as in the table of trials; `model_seconds`, `low` and
    `high` are those of the cost model alone, and `model_memory_gib` likewise.
    """
    rows = []
    for record in facts.records:
        measured, prediction = record.measurement, record.prediction
        row: dict[str, Any] = {
            "trial": record.trial_id,
            "layout": record.layout.describe(),
            "purpose": record.purpose,
            "outcome": facts.outcome_of(record).value,
            "ran": record.outcome is Outcome.OK,
            "step_seconds": measured.step_seconds,
            "peak_memory_gib": measured.peak_memory_gib,
            "mfu": measured.mfu,
            "tokens": measured.tokens_per_second_per_gpu,
            "predicted_seconds": None if prediction is None else prediction.step_seconds,
            **{name: value_word(record.layout, name) for name in facts.varied},
        }
        if facts.predicted is not None:
            predicted, place = facts.predicted, facts.predicted.place(record.layout)
            row |= {
                "model_seconds": float(predicted.estimates.step_seconds[place]),
                "low": float(predicted.low[place]),
                "high": float(predicted.high[place]),
                "model_memory_gib": float(predicted.estimates.peak_memory_gib[place]),
            }
        rows.append(row)
    return rows


def speed_of(facts: RunFacts) -> tuple[str, str, str]:
    """Column, title and number format of speed: MFU, or tokens/s/GPU where the device's peak is not
    known."""
    if any(record.measurement.mfu is not None for record in facts.records):
        return "mfu", f"MFU, {facts.word}", ".0%"
    return "tokens", f"tokens/s/GPU, {facts.word}", "~s"


def by_dimension(facts: RunFacts, dimension: str, *, width: Width = 320) -> Layers:
    """Speed of all trials by the value of one dimension; a bar marks the best of each value."""
    column, title, form = speed_of(facts)
    values = sorted({getattr(r.layout, dimension) for r in facts.explored})
    words = [str(value).lower() if isinstance(value, bool) else str(value) for value in values]
    base = _trials("datum.purpose != 'confirm'").transform_calculate(
        spread=f"(toNumber(datum.trial) * {_SPREAD}) % 1",
    )
    x = alt.X(
        f"{dimension}:O", sort=words, title=dimension_label(dimension), axis=alt.Axis(labelAngle=0)
    )
    offset = alt.XOffset("spread:Q", scale=alt.Scale(domain=[-0.4, 1.4]))
    y = alt.Y(f"{column}:Q", title=title, axis=alt.Axis(format=form), scale=alt.Scale(zero=False))
    style = _style(facts)
    points = base.transform_filter(f"isValid(datum.{column})")
    dots = points.mark_point(filled=True, size=45, opacity=0.75).encode(
        x=x, xOffset=offset, y=y, **style
    )
    best = (
        points.transform_filter("datum.outcome == 'ok'")
        .mark_rule(strokeWidth=2, color=BLUE)
        .encode(
            x=alt.X(f"{dimension}:O", sort=words, bandPosition=0.15),
            x2=alt.X2(dimension, bandPosition=0.85),
            y=alt.Y(f"max({column}):Q", title=title),
        )
    )
    without = (
        base.transform_filter(f"!isValid(datum.{column})")
        .mark_point(filled=True, size=45, opacity=0.75)
        .encode(x=x, xOffset=offset, y=alt.value(_HEIGHT - 8), **style)
    )
    return alt.layer(best, dots, without).properties(width=width, height=_HEIGHT)


def memory_against_time(facts: RunFacts, *, width: Width = 640) -> Layers:
    """Peak memory against step time, the Pareto front, and the memory limit. Trials without a step
    time stand where the cost model predicts them, hollow."""
    times = [r.measurement.step_seconds for r in facts.records]
    scale = _seconds_scale(times)
    x = alt.X("step_seconds:Q", title=f"seconds per step, {facts.word}", scale=scale)
    memory = "GiB per rank"
    style = _style(facts)
    ran = _trials("isValid(datum.step_seconds) && isValid(datum.peak_memory_gib)")
    layers: list[alt.Chart] = [
        ran.mark_point(filled=True, size=55, opacity=0.8).encode(
            x=x, y=alt.Y("peak_memory_gib:Q", title=memory), **style
        )
    ]
    if facts.predicted is not None:
        factor = facts.time_factor or 1.0
        layers.append(
            _trials("!isValid(datum.step_seconds) && datum.outcome == 'oom'")
            .transform_calculate(seconds=f"datum.model_seconds * {factor!r}")
            .mark_point(filled=False, size=55, opacity=0.8)
            .encode(x=alt.X("seconds:Q"), y=alt.Y("model_memory_gib:Q"), **style)
        )
    front = pareto_front(facts)
    if front:
        layers.insert(
            0,
            alt.Chart(alt.Data(values=front))
            .mark_line(interpolate="step-after", color=BLUE, strokeWidth=2, opacity=0.6)
            .encode(x="step_seconds:Q", y="peak_memory_gib:Q"),
        )
    if facts.memory_limit_gib is not None:
        limit = alt.Chart(alt.Data(values=[{"limit": facts.memory_limit_gib}]))
        layers.append(limit.mark_rule(strokeDash=[6, 4]).encode(y="limit:Q"))
        layers.append(
            limit.mark_text(align="left", dx=4, dy=-6, fontSize=11).encode(
                x=alt.value(0),
                y="limit:Q",
                text=alt.value(f"memory limit {facts.memory_limit_gib:.3g} GiB"),
            )
        )
    return alt.layer(*layers).properties(width=width, height=320)


def pareto_front(facts: RunFacts) -> list[dict[str, Any]]:
    """The trials that worked and that no other one beats in both step time and memory, fastest
    first."""
    worked = [
        (record.measurement.step_seconds, record.measurement.peak_memory_gib, record)
        for record in facts.sound
        if record.measurement.peak_memory_gib is not None
    ]
    front: list[dict[str, Any]] = []
    least = float("inf")
    for seconds, memory, record in sorted(worked, key=lambda item: (item[0] or 0.0, item[1])):
        assert memory is not None
        if memory < least:
            least = memory
            front.append(
                {
                    "trial": record.trial_id,
                    "layout": record.layout.describe(),
                    "step_seconds": seconds,
                    "peak_memory_gib": memory,
                }
            )
    return front


def predicted_against_measured(facts: RunFacts, *, width: Width = 640) -> Layers:
    """Predicted step times against those of the trials: of the cost model alone with its 80 %
    interval, and as corrected by the trials before."""
    timed = "isValid(datum.step_seconds) && datum.purpose != 'confirm' && datum.ran"
    rows = _trials(timed)
    times = [r.measurement.step_seconds for r in facts.worked]
    domain = [min(filter(None, times)), max(filter(None, times))]
    scale = _seconds_scale(times)
    x = alt.X("step_seconds:Q", title=f"seconds per step, {facts.word}", scale=scale)
    y = alt.Y("seconds:Q", title="seconds per step, predicted", scale=scale)
    kind = alt.Color(
        "kind:N",
        title=None,
        legend=alt.Legend(symbolOpacity=1, columns=1, labelLimit=320),
        scale=alt.Scale(domain=[_MODEL, _CORRECTED], range=[ORANGE, BLUE]),
    )
    alone = rows.transform_calculate(seconds="datum.model_seconds", kind=f"'{_MODEL}'")
    corrected = rows.transform_filter("isValid(datum.predicted_seconds)").transform_calculate(
        seconds="datum.predicted_seconds", kind=f"'{_CORRECTED}'"
    )
    tooltip = _tooltip(facts)
    layers = [
        alt.Chart(alt.Data(values=[{"step_seconds": end, "seconds": end} for end in domain]))
        .mark_line(color=GREY, strokeDash=[4, 4])
        .encode(x="step_seconds:Q", y="seconds:Q"),
        alone.mark_rule(opacity=0.45).encode(x=x, y=alt.Y("low:Q"), y2="high:Q", color=kind),
        alone.mark_point(filled=True, size=45).encode(x=x, y=y, color=kind, tooltip=tooltip),
        corrected.mark_point(filled=True, shape="diamond", size=55).encode(
            x=x, y=y, color=kind, tooltip=tooltip
        ),
    ]
    return alt.layer(*layers).properties(width=width, height=320)


_MODEL = "cost model alone, 80 % interval"
_CORRECTED = "corrected by the trials before"


def _trials(condition: str) -> alt.Chart:
    return alt.Chart(alt.NamedData(name=TRIALS)).transform_filter(condition)


def _seconds_scale(times: Sequence[float | None]) -> alt.Scale:
    known = [seconds for seconds in times if seconds]
    wide = bool(known) and max(known) / min(known) >= _LOGARITHMIC_FROM
    return alt.Scale(type="log", nice=False) if wide else alt.Scale(zero=False)


def _style(facts: RunFacts) -> dict[str, Any]:
    """Colour and shape by outcome, for the outcomes of the run, and the tooltip."""
    shown = {facts.outcome_of(record) for record in facts.records}
    outcomes = [outcome for outcome in Outcome if outcome in shown]
    names = [outcome.value for outcome in outcomes]
    colours = [OUTCOME_COLOURS[outcome] for outcome in outcomes]
    shapes = [OUTCOME_SHAPES[outcome] for outcome in outcomes]
    legend = alt.Legend(symbolOpacity=1)
    return {
        "color": alt.Color(
            "outcome:N",
            title=None,
            legend=legend,
            scale=alt.Scale(domain=names, range=colours),
        ),
        "shape": alt.Shape(
            "outcome:N", title=None, legend=legend, scale=alt.Scale(domain=names, range=shapes)
        ),
        "tooltip": _tooltip(facts),
    }


def _tooltip(facts: RunFacts) -> list[alt.Tooltip]:
    column, title, form = speed_of(facts)
    return [
        alt.Tooltip("trial:N"),
        alt.Tooltip("layout:N"),
        alt.Tooltip("outcome:N"),
        alt.Tooltip("step_seconds:Q", title=f"seconds per step, {facts.word}", format=".4~g"),
        alt.Tooltip(f"{column}:Q", title=title, format=".1%" if form == ".0%" else ".4~s"),
        alt.Tooltip("peak_memory_gib:Q", title="GiB", format=".3~g"),
    ]
