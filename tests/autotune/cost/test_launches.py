"""What launching kernels costs: the host only where it is slower than the device."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.cluster import Cluster
from autotune.cost.columns import columns_of
from autotune.cost.launches import launch_seconds
from autotune.cost.model import CostModel
from autotune.hardware import device_named
from autotune.layout import Layout
from autotune.model import Model

EAGER, COMPILED = columns_of([Layout()]), columns_of([Layout(torch_compile=True)])
SMALL = Model(
    num_hidden_layers=12,
    hidden_size=768,
    intermediate_size=2048,
    num_attention_heads=12,
    num_key_value_heads=12,
    vocab_size=32_000,
    sequence_length=1024,
    global_batch_size=16,
)
LARGE = dataclasses.replace(SMALL, hidden_size=7680, intermediate_size=20_480, sequence_length=4096)

times = st.floats(1e-5, 1.0)


def launches(
    forward: float, backward: float, *, start: float = 0.0, host: float, compiled: bool = False
) -> tuple[float, float]:
    constants = {"launch_seconds": start, "host_seconds": host, "compiled_launches": 0.5}
    columns = COMPILED if compiled else EAGER
    found = launch_seconds(columns, np.array([forward]), np.array([backward]), constants)
    return float(found[0][0]), float(found[1][0])


@given(times, times, times)
def test_a_pass_takes_as_long_as_the_slower_of_host_and_device(
    device: float, host: float, start: float
) -> None:
    forward, backward = launches(device, 2 * device, start=start, host=host)
    longer = max(device + start, host)
    assert longer <= device + forward * (1 + 1e-9)
    # Where both are equal the device waits for some kernels: 14 % of the host's time.
    assert device + forward <= longer + 0.14 * host
    assert backward == pytest.approx(2 * forward)


def test_the_host_of_a_large_pass_costs_nothing_and_its_starts_remain() -> None:
    assert launches(0.01, 0.02, host=0.001) == pytest.approx((0, 0), abs=1e-9)
    assert launches(0.01, 0.02, start=0.0004, host=0.001) == pytest.approx((0.0004, 0.0008))


def test_where_the_host_is_the_device_all_of_its_time_shows() -> None:
    assert launches(0.01, 0.02, start=0.004, host=0) == (0.004, 0.008)


def test_compiled_blocks_launch_fewer_kernels() -> None:
    tiny = {"forward": 1e-6, "backward": 2e-6, "start": 0.0004, "host": 0.001}
    eager, compiled = launches(**tiny), launches(**tiny, compiled=True)
    assert compiled == pytest.approx((eager[0] / 2, eager[1] / 2), rel=0.01)


def share_of_launches(model: Model, micro_batch_size: int) -> float:
    cluster = Cluster(nodes=1, gpus_per_node=1, device=device_named("h100"))
    layout = Layout(
        micro_batch_size=micro_batch_size, gradient_accumulation_steps=16 // micro_batch_size
    )
    cost = CostModel(model, "bf16", cluster)
    # What the host adds, beside the starts.
    seconds = cost.estimate([layout]).time
    ahead = cost.estimate([layout], {**cost.constants, "host_seconds": 0.0}).time
    return float((seconds.launch - ahead.launch)[0] / seconds.total[0])


def test_the_host_limits_small_models_with_small_micro_batches_only() -> None:
    shares = [share_of_launches(SMALL, size) for size in (1, 2, 4, 8, 16)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.2
    assert shares[-1] < 0.02
    assert all(share_of_launches(LARGE, size) < 1e-6 for size in (1, 4))
