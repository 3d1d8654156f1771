"""A step as a picture: a row per pipeline stage, what it does as bars along time."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import altair as alt

from autotune.pipeline.schedule import Interval, Schedule
from autotune.report.charts.style import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY
from autotune.trial.trace import Kind

# By what the legend calls them, in its order. Idle time lets the page shine through.
_COLOURS = {
    "forward": BLUE,
    "backward": ORANGE,
    "message": GREEN,
    "idle (bubble)": f"{GREY}50",
    "reduce gradients": PURPLE,
    "update": SKY,
}
_WORDS: dict[Kind, str] = {
    "forward": "forward",
    "backward": "backward",
    "send": "message",
    "receive": "message",
    "wait": "idle (bubble)",
    "reduction": "reduce gradients",
    "update": "update",
}
_NUMBER_COLOURS = {"forward": "white", "backward": "black"}
_FONT_SIZE = 14
_DIGIT_PIXELS = 9
_HEIGHT, _LEAST_ROW, _LARGEST_ROW = 480, 14, 44
_GAP_PIXELS = 18
# With more micro-batches, only the first and the last part of the step are shown.
_MOST_MICRO_BATCHES = 24
# Passes in each part, beside those that fill or drain the pipeline.
_PASSES_OF_PART = 6


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A part of a step, which a panel shows."""

    start_seconds: float
    end_seconds: float
    pixels_per_second: float

    @property
    def pixels(self) -> float:
        return (self.end_seconds - self.start_seconds) * self.pixels_per_second


def pipeline_chart(schedule: Schedule, *, layout: str = "", width: int = 720) -> Any:
    """The Altair chart of a schedule, about `width` pixels wide.

    `layout` describes the layout in the title. Time until the end of the last pass in which a stage
    does nothing is grey. Of a long step the first and the last part are shown.
    """
    parts = _parts(schedule, width)
    title = alt.TitleParams(
        text=_title(schedule),
        subtitle=[*filter(None, [layout]), *_sentences(schedule, whole=len(parts) == 1)],
        anchor="start",
        fontSize=_FONT_SIZE + 3,
        subtitleFontSize=_FONT_SIZE,
        subtitleLineHeight=_FONT_SIZE + 4,
        offset=10,
    )
    panels = [_panel(schedule, part, is_first=part is parts[0]) for part in parts]
    return alt.hconcat(*panels, spacing=_GAP_PIXELS).properties(title=title)


def _title(schedule: Schedule) -> str:
    source, share = schedule.source, 100 * schedule.bubble_share
    if len(schedule.stages) == 1:
        return f"Step of one stage, {source}: no bubble"
    digits = f"{share:.0f}" if share >= 10 else f"{share:.2g}"
    return f"Pipeline schedule, {source}: {digits} % bubble"


def _sentences(schedule: Schedule, *, whole: bool) -> list[str]:
    stages, micro_batches = len(schedule.stages), schedule.micro_batches
    return [
        f"{_counted(stages, 'stage')}, {_counted(micro_batches, 'micro-batch')}, "
        f"{schedule.step_seconds:.3g} s per step{'' if whole else '; first and last part'}"
    ]


def _counted(number: int, what: str) -> str:
    plural = "es" if what.endswith("h") else "s"
    return f"{number:,} {what}{'' if number == 1 else plural}"


def _parts(schedule: Schedule, width: int) -> list[_Part]:
    """The whole step, or its first and last part on the same scale."""
    end, passes = schedule.step_seconds, schedule.passes_seconds
    slots = schedule.micro_batches + len(schedule.stages) - 1
    shown = len(schedule.stages) + _PASSES_OF_PART
    if schedule.micro_batches <= _MOST_MICRO_BATCHES or 2 * shown >= slots:
        times = [(0.0, end)]
    else:
        first = passes * shown / slots
        times = [(0.0, first), (passes - first, end)]
    scale = (width - _GAP_PIXELS * (len(times) - 1)) / sum(stop - start for start, stop in times)
    return [
        _Part(start_seconds=start, end_seconds=stop, pixels_per_second=scale)
        for start, stop in times
    ]


def _panel(schedule: Schedule, part: _Part, *, is_first: bool) -> Any:
    unit, factor = ("ms", 1e3) if schedule.step_seconds < 1 else ("s", 1.0)
    times = alt.Scale(domain=[part.start_seconds * factor, part.end_seconds * factor], nice=False)
    rows = [_name(stage) for stage in range(len(schedule.stages))]
    row_height = max(_LEAST_ROW, min(_LARGEST_ROW, _HEIGHT // len(rows)))
    y = alt.Y(
        "stage:N",
        title=None,
        axis=alt.Axis(labelFontSize=_FONT_SIZE, ticks=False, domain=False) if is_first else None,
        scale=alt.Scale(domain=rows, paddingInner=0.15, paddingOuter=0.05),
    )
    axis = alt.Axis(grid=False, labelFontSize=_FONT_SIZE, titleFontSize=_FONT_SIZE, tickCount=6)
    title = f"{unit} since the start of the step" if is_first else None
    legend = alt.Legend(
        title=None,
        orient="bottom",
        columns=3,
        labelFontSize=_FONT_SIZE,
        symbolType="square",
        symbolSize=180,
        columnPadding=28,
    )
    kinds = [kind for kind in _COLOURS if kind in _kinds(schedule)]
    colours = alt.Scale(domain=kinds, range=[_COLOURS[kind] for kind in kinds])
    bars = alt.Chart(alt.InlineData(values=list(_bars(schedule, part, factor))))
    rectangles = bars.mark_bar(clip=True).encode(
        x=alt.X("start:Q", scale=times, axis=axis, title=title),
        x2="end:Q",
        y=y,
        color=alt.Color("kind:N", scale=colours, legend=legend),
        tooltip=["stage:N", "kind:N", "micro_batch:Q", alt.Tooltip(f"{unit}:Q", format=".3~g")],
    )
    numbers = [
        bars.transform_filter(f"datum.kind === '{kind}' && datum.number !== ''")
        .mark_text(fontSize=_FONT_SIZE, color=colour, clip=True)
        .encode(x=alt.X("middle:Q", scale=times), y=y, text="number:N")
        for kind, colour in _NUMBER_COLOURS.items()
    ]
    return alt.layer(rectangles, *numbers).properties(
        width=part.pixels, height=row_height * len(rows), view=alt.ViewBackground(stroke=None)
    )


def _kinds(schedule: Schedule) -> set[str]:
    """What the legend names."""
    kinds = {_WORDS[interval.kind] for row in schedule.stages for interval in row}
    idle = any(True for stage in range(len(schedule.stages)) for _ in schedule.idle(stage))
    return kinds | ({_WORDS["wait"]} if idle else set())


def _bars(schedule: Schedule, part: _Part, factor: float) -> Iterator[dict[str, Any]]:
    """The rows of the chart's data: what lies in the part, cut at its ends."""
    unit = "ms" if factor > 1 else "s"
    for stage, row in enumerate(schedule.stages):
        done = (interval for interval in row if interval.kind != "wait")
        for interval in (*schedule.idle(stage), *done):
            start = max(interval.start_seconds, part.start_seconds)
            end = min(interval.end_seconds, part.end_seconds)
            if end > start:
                yield {
                    "stage": _name(stage),
                    "kind": _WORDS[interval.kind],
                    "micro_batch": interval.micro_batch,
                    "number": _number(interval, (end - start) * part.pixels_per_second),
                    "start": start * factor,
                    "middle": (start + end) / 2 * factor,
                    "end": end * factor,
                    unit: interval.seconds * factor,
                }


def _number(interval: Interval, pixels: float) -> str:
    """The micro-batch's number where it fits into so many pixels, else nothing."""
    number = "" if interval.micro_batch is None else str(interval.micro_batch)
    return number if len(number) * _DIGIT_PIXELS <= pixels else ""


def _name(stage: int) -> str:
    return f"stage {stage}"
