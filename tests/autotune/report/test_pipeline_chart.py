"""The picture of a step: what it shows, and that a browser shows it."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from autotune.report.charts.pipeline import pipeline_chart
from autotune.report.schedule_file import write_schedule
from tests.autotune.pipeline.schedules import equal_stages


def drawn(chart: Any) -> list[list[dict[str, Any]]]:
    """The bars of each panel."""
    spec = chart.to_dict()
    # Altair gives the whole chart the data of an only panel.
    sources = [panel.get("data", spec.get("data")) for panel in spec["hconcat"]]
    return [spec["datasets"][source["name"]] for source in sources]


def title(chart: Any) -> str:
    found: dict[str, Any] = chart.to_dict()["title"]
    return found["text"] + " " + " ".join(found["subtitle"])


def test_a_short_step_is_drawn_whole() -> None:
    schedule = equal_stages(4, 8, transfer=0.1, reduction=1.0, update=0.5)
    chart = pipeline_chart(schedule, layout="tp2 pp4")
    (bars,) = drawn(chart)
    busy = [bar for bar in bars if bar["kind"] != "idle (bubble)"]
    assert len(busy) == sum(len(row) for row in schedule.stages)
    assert {bar["stage"] for bar in bars} == {f"stage {number}" for number in range(4)}
    assert [b["number"] for b in bars if b["kind"] == "backward"][:8] == list("01234567")
    idle = sum(bar["end"] - bar["start"] for bar in bars if bar["kind"] == "idle (bubble)")
    assert idle == pytest.approx(sum(i.seconds for s in range(4) for i in schedule.idle(s)))
    assert title(chart).startswith("Pipeline schedule, predicted: 27 % bubble tp2 pp4 4 stages, 8 ")
    assert "background" not in chart.to_dict(), "that of the page"


def test_a_measured_step_says_so() -> None:
    schedule = dataclasses.replace(equal_stages(2, 2), source="measured")
    said = title(pipeline_chart(schedule))
    assert "measured" in said and "predicted" not in said


def test_a_layout_without_stages_is_one_row_without_a_bubble() -> None:
    chart = pipeline_chart(equal_stages(1, 5, update=1.0))
    (bars,) = drawn(chart)
    assert {bar["stage"] for bar in bars} == {"stage 0"}
    assert "idle (bubble)" not in str(chart.to_dict())
    assert title(chart).startswith("Step of one stage, predicted: no bubble")


@pytest.mark.parametrize(("stages", "micro_batches"), [(4, 500), (32, 256), (1, 300)])
def test_of_a_long_step_the_first_and_the_last_part_are_drawn(
    stages: int, micro_batches: int
) -> None:
    schedule = equal_stages(stages, micro_batches, update=2.0)
    chart = pipeline_chart(schedule, width=700)
    first, last = drawn(chart)
    assert min(bar["start"] for bar in first) == 0
    assert max(bar["end"] for bar in last) == schedule.step_seconds
    assert max(bar["end"] for bar in first) < min(bar["start"] for bar in last)
    backward = [bar["micro_batch"] for bar in first if bar["kind"] == "backward"]
    assert 0 in backward, "the pipeline is filled in the first part"
    backward = [bar["micro_batch"] for bar in last if bar["kind"] == "backward"]
    assert micro_batches - 1 in backward
    widths = [panel["width"] for panel in chart.to_dict()["hconcat"]]
    assert sum(widths) == pytest.approx(700, abs=20)
    assert "first and last part" in title(chart)
    assert len(first) + len(last) < 10_000


def test_a_browser_shows_the_page_without_an_error_and_without_a_network(tmp_path: Path) -> None:
    browsers = pytest.importorskip("tests.browser", reason="needs playwright")
    file, picture = tmp_path / "step.html", tmp_path / "step.png"
    write_schedule(file, equal_stages(4, 8, transfer=0.1), layout="tp2 pp4")
    with browsers.browser() as started, browsers.watched_page(started, offline=True) as page:
        page.goto(file.as_uri())
        page.wait_for_selector("svg, canvas")
        page.screenshot(path=str(picture))
    assert picture.stat().st_size > 10_000, "something is drawn"
