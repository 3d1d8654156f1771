"""Predicted schedules keep the rules of 1F1B, and agree with the cost model's step time."""

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.cost.model import CostModel
from autotune.cost.passes import PassTimes, pass_times
from autotune.layout import Layout
from autotune.named_spaces import load_space
from autotune.pipeline.predicted import predicted_schedule, simulated
from autotune.pipeline.schedule import Schedule
from tests.autotune.pipeline.schedules import equal_stages
from tests.conftest import examples

seconds = st.floats(0.01, 10)
maybe_none = st.just(0.0) | st.floats(0.001, 2)
ROUNDING = 1e-9


@st.composite
def times_of_stages(draw: st.DrawFn) -> PassTimes:
    stages = draw(st.integers(1, 8))
    forward, backward = (
        np.array(draw(st.lists(seconds, min_size=stages, max_size=stages))) for _ in range(2)
    )
    return PassTimes(
        forward=forward,
        backward=backward,
        message=(message := draw(maybe_none)),
        exchange=message * draw(st.sampled_from([1.0, 1.5, 2.0])),
        reduction=draw(maybe_none),
        update=draw(maybe_none),
    )


def at(schedule: Schedule, kind: str) -> dict[tuple[int, int | None], tuple[float, float]]:
    """Start and end by stage and micro-batch."""
    return {
        (stage, interval.micro_batch): (interval.start_seconds, interval.end_seconds)
        for stage, row in enumerate(schedule.stages)
        for interval in row
        if interval.kind == kind
    }


@given(times=times_of_stages(), micro_batches=st.integers(1, 24))
def test_a_stage_does_one_thing_at_a_time_and_every_pass_once(
    times: PassTimes, micro_batches: int
) -> None:
    schedule = simulated(times, micro_batches)
    stages = len(times.forward)
    assert len(schedule.stages) == stages and schedule.micro_batches == micro_batches
    for stage, row in enumerate(schedule.stages):
        for before, after in itertools.pairwise(row):
            assert before.start_seconds < before.end_seconds <= after.start_seconds
        for kind, of_stages in (("forward", times.forward), ("backward", times.backward)):
            passes = [interval for interval in row if interval.kind == kind]
            assert [interval.micro_batch for interval in passes] == list(range(micro_batches))
            assert all(i.seconds == pytest.approx(of_stages[stage]) for i in passes)
        idle = sum(interval.seconds for interval in schedule.idle(stage))
        in_passes = [(i.start_seconds, min(i.end_seconds, schedule.passes_seconds)) for i in row]
        busy = sum(max(0.0, end - start) for start, end in in_passes)
        assert idle + busy == pytest.approx(schedule.passes_seconds)


@given(times=times_of_stages(), micro_batches=st.integers(1, 24))
def test_a_pass_waits_for_its_input(times: PassTimes, micro_batches: int) -> None:
    schedule = simulated(times, micro_batches)
    forward, backward = at(schedule, "forward"), at(schedule, "backward")
    shortest = min(times.message, times.exchange / 2)
    last = len(times.forward) - 1
    for (stage, micro_batch), (start, _) in forward.items():
        if stage > 0:
            assert start >= forward[stage - 1, micro_batch][1] + shortest - ROUNDING
    for (stage, micro_batch), (start, _) in backward.items():
        source = forward[last, micro_batch] if stage == last else backward[stage + 1, micro_batch]
        message = 0.0 if stage == last else shortest
        assert start >= source[1] + message - ROUNDING
        assert start >= forward[stage, micro_batch][1]


@given(times=times_of_stages(), micro_batches=st.integers(1, 24))
def test_a_message_takes_the_time_of_both_stages(times: PassTimes, micro_batches: int) -> None:
    schedule = simulated(times, micro_batches)
    sent, received = (
        sorted(
            (interval.start_seconds, interval.end_seconds, interval.micro_batch)
            for row in schedule.stages
            for interval in row
            if interval.kind == kind
        )
        for kind in ("send", "receive")
    )
    assert sent == received
    if times.message > 0:
        assert len(sent) == 2 * micro_batches * (len(times.forward) - 1)


@given(times=times_of_stages(), micro_batches=st.integers(1, 24))
def test_a_stage_holds_no_more_micro_batches_than_stages_follow(
    times: PassTimes, micro_batches: int
) -> None:
    schedule = simulated(times, micro_batches)
    for stage, row in enumerate(schedule.stages):
        in_flight = most = 0
        for interval in row:
            in_flight += (interval.kind == "forward") - (interval.kind == "backward")
            most = max(most, in_flight)
        assert most == min(len(schedule.stages) - stage, micro_batches)


@given(times=times_of_stages(), micro_batches=st.integers(1, 24))
def test_all_stages_update_together_after_every_reduction(
    times: PassTimes, micro_batches: int
) -> None:
    schedule = simulated(times, micro_batches)
    reductions, updates = at(schedule, "reduction"), at(schedule, "update")
    stages = len(schedule.stages)
    assert len(reductions) == stages * (times.reduction > 0)
    assert len(updates) == stages * (times.update > 0)
    assert len({start for start, _ in updates.values()}) <= 1
    end = max((end for _, end in reductions.values()), default=schedule.passes_seconds)
    assert schedule.step_seconds == pytest.approx(end + times.update)


@given(stages=st.integers(1, 12), micro_batches=st.integers(1, 40), transfer=maybe_none)
def test_the_bubble_is_that_of_the_formulas(
    stages: int, micro_batches: int, transfer: float
) -> None:
    without = equal_stages(stages, micro_batches)
    share = (stages - 1) / (micro_batches + stages - 1)
    assert without.bubble_share == pytest.approx(share)
    schedule = equal_stages(stages, micro_batches, transfer=transfer)
    # Stages in the middle take part in four messages per micro-batch, those at the ends in two.
    # Messages on the way to and from that stage fill and drain the pipeline with the passes.
    busiest = 3.0 + 2 * min(stages - 1, 2) * transfer
    passes = micro_batches * busiest + 3.0 * (stages - 1)
    assert passes - 4 * transfer - ROUNDING <= schedule.passes_seconds
    assert schedule.passes_seconds <= passes + 4 * stages * transfer + ROUNDING


@functools.cache
def model_and_layouts(name: str) -> tuple[CostModel, list[Layout]]:
    space = load_space(name)
    return CostModel(space.model, space.precision, space.cluster), space.layouts()


@examples(60)
@given(name=st.sampled_from(["tiny", "llm13b", "llm405b"]), number=st.integers(0, 10**6))
def test_a_schedule_takes_as_long_as_the_step_is_predicted_to(name: str, number: int) -> None:
    """To 1 %: the cost model takes the longest of a few chains of passes."""
    model, layouts = model_and_layouts(name)
    layout = layouts[number % len(layouts)]
    predicted = float(model.estimate([layout]).step_seconds[0])
    schedule = predicted_schedule(model, layout)
    assert predicted * (1 - ROUNDING) <= schedule.step_seconds <= 1.01 * predicted
    assert schedule.source == "predicted" and len(schedule.stages) == layout.pipeline_parallel


def test_the_stages_of_a_layout_have_their_own_times() -> None:
    space = load_space("llm13b")
    model = CostModel(space.model, space.precision, space.cluster)
    layouts = [layout for layout in space.layouts() if layout.pipeline_parallel == 4]
    plain = pass_times(model, next(x for x in layouts if x.activation_checkpointing == "none"))
    full = pass_times(model, next(x for x in layouts if x.activation_checkpointing == "full"))
    assert (plain.forward[:3] == plain.forward[0]).all()
    assert plain.forward[3] > plain.forward[0], "the last stage has the head"
    assert (full.backward / full.forward > plain.backward / plain.forward).all(), "it recomputes"
