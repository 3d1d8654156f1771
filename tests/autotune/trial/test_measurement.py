"""The figures of a trial."""

import dataclasses

import pytest

from autotune.hardware import device_named
from autotune.layout import Layout
from autotune.space import SearchSpace
from autotune.trial.measurement import measure
from autotune.trial.trial import RankStep, StepReport, TrialSpec


def report(step: int, *rank_seconds: float) -> StepReport:
    return StepReport(
        step=step,
        ranks=tuple(
            RankStep(
                rank=rank,
                step=step,
                step_seconds=seconds,
                loss=5.0 - step,
                grad_norm=1.0,
                peak_memory_gib=float(rank),
                peak_reserved_gib=0.0,
            )
            for rank, seconds in enumerate(rank_seconds)
        ),
    )


def spec_on(space: SearchSpace, device: str) -> TrialSpec:
    return TrialSpec(
        trial_id="0001",
        layout=Layout(data_parallel=2),
        model=space.model,
        cluster=dataclasses.replace(space.cluster, device=device_named(device)),
        precision="fp32" if device == "cpu" else "bf16",
        warmup_steps=1,
        measured_steps=5,
        log_dir=None,
    )


def test_median_of_the_slowest_rank_without_warm_up(small_space: SearchSpace) -> None:
    spec = spec_on(small_space, "h100")
    steps = [report(0, 99, 99), report(1, 1, 2), report(2, 4, 1), report(3, 3, 3)]
    measured = measure(spec, steps)
    assert measured.measured_steps == 3
    assert measured.step_seconds == 3
    assert measured.step_seconds_iqr == 1.0
    assert measured.peak_memory_gib == 1
    assert measured.final_loss == 2.0
    tokens_per_second = 16 * 8 / 3 / 2
    assert measured.tokens_per_second_per_gpu == pytest.approx(tokens_per_second)
    model = small_space.model
    mfu = tokens_per_second * model.model_flops_per_token / 989e12
    assert measured.mfu == pytest.approx(mfu)
    assert 0 < measured.hardware_flops_utilisation < measured.mfu


def test_what_was_not_measured_is_null(small_space: SearchSpace) -> None:
    nothing = measure(spec_on(small_space, "h100"), [report(0, 99)])
    assert nothing.measured_steps == 0
    assert nothing.step_seconds is None and nothing.mfu is None
    assert nothing.peak_memory_gib == 0.0, "memory counts from the first step"
    on_cpu = measure(spec_on(small_space, "cpu"), [report(0, 9), report(1, 1)])
    assert on_cpu.step_seconds == 1 and on_cpu.step_seconds_iqr is None
    assert on_cpu.mfu is None and on_cpu.hardware_flops_utilisation is None
