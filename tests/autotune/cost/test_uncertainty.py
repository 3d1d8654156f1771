"""Intervals of predicted step times: wide where little is known."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from autotune.cluster import Cluster
from autotune.cost.model import CostModel
from autotune.cost.uncertainty import step_time_interval, step_time_spread
from autotune.hardware import Measured, device_named
from autotune.layout import Layout
from autotune.named_spaces import load_space

A100, H100 = device_named("a100-80gb"), device_named("h100")
SPACE = load_space("llm13b")
LAYOUT = Layout(tensor_parallel=2, data_parallel=32, gradient_accumulation_steps=64)


def cost(device: Any = H100, trainer: str = "deepspeed_llm", **more: Any) -> CostModel:
    cluster = Cluster(nodes=8, gpus_per_node=8, device=device)
    return CostModel(SPACE.model, "bf16", cluster, trainer=trainer, **more)


def spread(model: CostModel, layout: Layout = LAYOUT) -> float:
    return float(step_time_spread(model, model.prepare([layout]))[0])


def test_the_interval_is_around_the_prediction() -> None:
    model = cost()
    prepared = model.prepare([LAYOUT])
    (seconds,) = model.estimate(prepared).step_seconds
    (low,), (high,) = step_time_interval(model, prepared)
    assert low < seconds < high
    assert low * high == pytest.approx(seconds**2)
    # 80 % of a normal distribution lie within 1.2816 standard deviations.
    assert np.log(high / low) == pytest.approx(2 * 1.2816 * spread(model), rel=1e-3)
    (lower,), (higher,) = step_time_interval(model, prepared, share=0.95)
    assert lower < low and high < higher


def test_where_nothing_was_fitted_it_is_wider() -> None:
    # The A100's matrix products are fitted to runs; the H100's are assumed from a benchmark.
    assert spread(cost(H100)) > spread(cost(A100))
    # A trainer that was fitted, on its device; and constants that a fit gave.
    assert spread(cost(A100, "hagemann2023"), dataclasses.replace(LAYOUT)) < spread(cost(A100))
    assert spread(cost(H100, constants=cost().constants)) < spread(cost(H100))


def test_what_is_known_better_narrows_it_by_as_much() -> None:
    def known(kind: Any) -> float:
        value = H100.constants["gemm_efficiency"].value
        constant = Measured(value=value, kind=kind, source="here")
        constants = {**H100.constants, "gemm_efficiency": constant}
        return spread(cost(dataclasses.replace(H100, constants=constants)))

    assumed, stated, fitted = (known(kind) for kind in ("assumed", "stated", "fitted"))
    assert assumed > stated > fitted > cost().constants["time_spread"]
    # The variances differ by the constant's alone: its spread 1, 1/2 and 1/5.
    assert (assumed**2 - stated**2) / (assumed**2 - fitted**2) == pytest.approx(
        (1 - 0.25) / (1 - 0.04), rel=1e-2
    )


def test_a_constant_that_does_not_matter_adds_nothing() -> None:
    alone = Layout(gradient_accumulation_steps=2048)
    model = cost(dataclasses.replace(H100))
    single = CostModel(
        SPACE.model, "bf16", Cluster(nodes=1, gpus_per_node=1, device=H100), trainer="deepspeed_llm"
    )
    slow = {**single.spreads, "network_efficiency": 10.0, "stage_efficiency": 10.0}
    before = spread(single, alone)
    single.spreads = slow
    assert spread(single, alone) == before
    assert model.spreads["network_efficiency"] < 10
