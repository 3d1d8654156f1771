"""Passes that ranks record: what DeepSpeed runs when, on a clock that all ranks share."""

import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from deepspeed.runtime.pipe.schedule import BackwardPass, ForwardPass, TrainSchedule
from hypothesis import given
from hypothesis import strategies as st

from autotune.cluster import Cluster
from autotune.hardware import device_named
from autotune.layout import Layout, layout_from_mapping
from autotune.model import Model
from autotune.pipeline.measured import measured_schedule
from autotune.pipeline.order import passes_of_stage
from autotune.trial.trace import RankTrace
from autotune.trial.trial import Ended, Outcome, StepReport, TrialSpec
from trainables.deepspeed_llm import tracing
from trainables.deepspeed_llm.host import LocalHost
from trainables.deepspeed_llm.launch import DeepSpeedLlm

STEPS, TRACED = 4, 2


def run(host: LocalHost, spec: TrialSpec) -> tuple[list[float | None], Ended]:
    """Losses and end of a trial that works."""
    *steps, ended = DeepSpeedLlm(device_kind="cpu").run(spec, [host])
    assert isinstance(ended, Ended) and ended.outcome is Outcome.OK, ended
    return [step.loss for step in steps if isinstance(step, StepReport)], ended


def spec_of_layout(model: Model, trace_steps: int, **layout: Any) -> TrialSpec:
    return TrialSpec(
        trial_id="0001",
        layout=layout_from_mapping(layout, model),
        model=model,
        cluster=Cluster(nodes=1, gpus_per_node=2, device=device_named("cpu")),
        precision="fp32",
        warmup_steps=1,
        measured_steps=STEPS - 1,
        log_dir=None,
        synthetic_data=True,
        trial_timeout_seconds=100,
        trace_steps=trace_steps,
    )


def traced(
    host: LocalHost, model: Model, trace_steps: int = TRACED, **layout: Any
) -> tuple[Layout, tuple[RankTrace, ...]]:
    spec = spec_of_layout(model, trace_steps, **layout)
    return spec.layout, run(host, spec)[1].trace


def counts(trace: RankTrace) -> Counter[tuple[int, str]]:
    return Counter((done.step, done.kind) for done in trace.intervals)


@given(stages=st.integers(1, 12), micro_batches=st.integers(1, 40), data=st.data())
def test_the_order_of_passes_is_that_of_deepspeed(
    stages: int, micro_batches: int, data: st.DataObject
) -> None:
    stage = data.draw(st.integers(0, stages - 1))
    commands = itertools.chain(*TrainSchedule(micro_batches, stages, stage))
    kinds = {ForwardPass: "forward", BackwardPass: "backward"}
    theirs = [kinds[type(command)] for command in commands if type(command) in kinds]
    numbers = {kind: itertools.count() for kind in kinds.values()}
    expected = [(kind, next(numbers[kind])) for kind in theirs]
    assert list(passes_of_stage(stage, stages, micro_batches)) == expected


def test_every_pass_of_a_pipeline_is_recorded(host: LocalHost, small_model: Model) -> None:
    layout, traces = traced(host, small_model, pipeline_parallel=2)
    micro_batches = layout.gradient_accumulation_steps
    assert [trace.rank for trace in traces] == [0, 1] and micro_batches == 8
    for trace in traces:
        assert trace.clock_offset_seconds == 0, "one machine, one clock"
        found = counts(trace)
        for step in (STEPS - 2, STEPS - 1):
            for kind in ("forward", "backward", "send", "receive"):
                assert found[step, kind] == micro_batches
            assert found[step, "update"] == 1 and found[step, "reduction"] >= 1
        assert {step for step, _ in found} == {STEPS - 2, STEPS - 1}
        for before, after in itertools.pairwise(trace.intervals):
            assert before.start_seconds <= before.end_seconds <= after.start_seconds
    first, last = (
        {(done.kind, done.micro_batch): done for done in trace.intervals if done.step == STEPS - 1}
        for trace in traces
    )
    for number in range(micro_batches):
        assert last["forward", number].start_seconds >= first["forward", number].end_seconds
        assert first["backward", number].start_seconds >= last["backward", number].end_seconds
    schedule = measured_schedule(traces, layout)
    for stage, row in enumerate(schedule.stages):
        passes = [(i.kind, i.micro_batch) for i in row if i.kind in ("forward", "backward")]
        assert passes == list(passes_of_stage(stage, 2, micro_batches))
    assert 0 < schedule.bubble_share < 1 and schedule.micro_batches == micro_batches


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_a_layout_without_stages_is_recorded(
    zero_stage: int, host: LocalHost, small_model: Model
) -> None:
    layout, traces = traced(
        host, small_model, 1, data_parallel=2, zero_stage=zero_stage, micro_batch_size=2
    )
    found = counts(traces[1])
    assert found[STEPS - 1, "forward"] == found[STEPS - 1, "backward"] == 2
    assert found[STEPS - 1, "update"] == 1 and found[STEPS - 1, "reduction"] >= 1
    schedule = measured_schedule(traces, layout)
    (row,) = schedule.stages
    assert [i.micro_batch for i in row if i.kind == "backward"] == [0, 1]
    for before, after in itertools.pairwise(row):
        assert before.end_seconds <= after.start_seconds


def test_nothing_is_recorded_unless_it_is_asked_for(host: LocalHost, small_model: Model) -> None:
    without, ended = run(host, spec_of_layout(small_model, 0, pipeline_parallel=2))
    assert ended.trace == ()
    losses, ended = run(host, spec_of_layout(small_model, 99, pipeline_parallel=2))
    assert {done.step for done in ended.trace[0].intervals} == set(range(STEPS)), "all there are"
    assert losses == without


SHIFT_SECONDS = 1000.0


def machine(rank: int, folder: str, answers: Any) -> None:
    """A rank on a machine of its own, whose clock is far from that of the other."""
    boot_id = Path(folder, f"boot-{rank}")
    boot_id.write_text(str(rank))
    tracing._BOOT_ID = boot_id
    own = time.monotonic
    tracing.time = type("Clock", (), {"monotonic": lambda: own() + rank * SHIFT_SECONDS})  # type: ignore[assignment]
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    answers.put((rank, tracing.clock_offset_seconds()))
    dist.barrier()
    dist.destroy_process_group()


def test_the_clocks_of_two_machines_are_compared_at_barriers(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    ranks = [context.Process(target=machine, args=(r, str(tmp_path), answers)) for r in (0, 1)]
    for process in ranks:
        process.start()
    offsets = dict(answers.get(timeout=100) for _ in ranks)
    for process in ranks:
        process.join(60)
    assert offsets[0] == 0
    assert offsets[1] == pytest.approx(-SHIFT_SECONDS, abs=1.0)


SPACE = """
import dataclasses
from search_spaces import tiny

def space():
    whole = tiny.space()
    cluster = dataclasses.replace(whole.cluster, nodes=1, memory_gib=1.0)
    return dataclasses.replace(whole, cluster=cluster, measured_steps=2)
"""


def test_try_draws_the_last_step(tmp_path: Path) -> None:
    file, logs = tmp_path / "space.py", tmp_path / "logs"
    file.write_text(SPACE)
    layout = '{"pipeline_parallel": 2, "data_parallel": 1, "micro_batch_size": 2}'
    done = subprocess.run(
        [
            *(sys.executable, "-m", "autotune", "try", "--space", file, "--layout", layout),
            *("--trainable", "deepspeed", "--trace-steps", "1", "--logs", logs),
        ],
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert f"the last step is in {logs}/pipeline.svg" in done.stdout
    assert "Pipeline schedule, measured: " in (logs / "pipeline.svg").read_text("utf-8")
    events = json.loads((logs / "pipeline.json").read_text())["traceEvents"]
    assert {event["tid"] for event in events if event["ph"] == "X"} == {0, 1}
